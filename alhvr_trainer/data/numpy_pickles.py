"""NumPy values inside pickles, without pickle's power to run code.

nnU-Net puts NumPy scalars into its checkpoints, and scalars and arrays into the ``.pkl`` files of preprocessed cases.
So reading these takes more than tensors and plain Python values. What is let through are numbers and text, each rebuilt
by a stand-in here. NumPy's own functions stay out: they take a data type's layout from the file and believe it, and
a forged layout makes NumPy read foreign memory.
"""

from __future__ import annotations

import io
import pickle
import re
from typing import Any

import numpy as np

_SIMPLE = re.compile(r"[?biufc]\d{0,2}|[SU]\d{1,6}")


class _DType:
    """Stands in for ``numpy.dtype``: booleans, numbers and text, nothing with fields or objects."""

    def __init__(self, code: str | bytes, align: bool = False, copy: bool = True) -> None:
        text = code.decode() if isinstance(code, bytes) else code
        if not isinstance(text, str) or not _SIMPLE.fullmatch(text):
            raise pickle.UnpicklingError(f"NumPy data type {text!r} is not a number or text")
        self.value = np.dtype(text)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """The state must be what NumPy writes for this type in one byte order or the other."""
        for candidate in (self.value, self.value.newbyteorder()):
            if candidate.__reduce__()[2] == tuple(state):
                self.value = candidate
                return
        raise pickle.UnpicklingError(f"the description of NumPy data type {self.value} is forged")


class _Array(np.ndarray):
    """Stands in for ``numpy.ndarray``."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        version, shape, dtype, fortran, content = state
        if not isinstance(dtype, _DType) or not isinstance(content, bytes):
            raise pickle.UnpicklingError("a NumPy array holds something else than numbers or text")
        super().__setstate__((version, shape, dtype.value, fortran, content))


def _scalar(dtype: _DType, content: bytes) -> np.generic:
    """Stands in for ``numpy.core.multiarray.scalar``."""
    if not isinstance(dtype, _DType) or not isinstance(content, bytes):
        raise pickle.UnpicklingError("a NumPy scalar is something else than a number or text")
    return np.frombuffer(content, dtype.value, count=1)[0]


def _array(kind: type, shape: tuple[int, ...], code: bytes) -> _Array:
    """Stands in for ``numpy.core.multiarray._reconstruct``: an empty array, which gets its content afterwards."""
    if kind is not _Array:
        raise pickle.UnpicklingError("a NumPy array of an unknown kind")
    return np.ndarray.__new__(_Array, (0,), np.uint8)


def _array_from_buffer(buffer: bytes, dtype: _DType, shape: tuple[int, ...], order: str) -> np.ndarray:
    """Stands in for ``numpy.core.numeric._frombuffer``."""
    return np.frombuffer(buffer, dtype.value).reshape(shape, order="F" if order == "F" else "C")


ALLOWED: dict[str, Any] = {"numpy.dtype": _DType, "numpy.ndarray": _Array}
"""Name in a pickle -> what is used in its place; NumPy 2 renamed ``core`` to ``_core``."""
for _core in ("numpy.core", "numpy._core"):
    ALLOWED[f"{_core}.multiarray.scalar"] = _scalar
    ALLOWED[f"{_core}.multiarray._reconstruct"] = _array
    ALLOWED[f"{_core}.numeric._frombuffer"] = _array_from_buffer


def without_stand_ins(value: Any) -> Any:
    """What was read, with NumPy's own arrays and data types; dicts and lists are changed in place."""
    if isinstance(value, _Array):
        return value.view(np.ndarray)
    if isinstance(value, _DType):
        return value.value
    if isinstance(value, dict):
        value.update({key: without_stand_ins(entry) for key, entry in value.items()})
    elif isinstance(value, list):
        value[:] = map(without_stand_ins, value)
    elif type(value) is tuple:
        return tuple(map(without_stand_ins, value))
    return value


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in ALLOWED:
            raise pickle.UnpicklingError(f"pickled Python object {module}.{name}")
        return ALLOWED[f"{module}.{name}"]


def load_values(content: bytes) -> Any:
    """Unpickle plain Python and NumPy values; anything else is an error before it is made.

    Raises:
        Exception: of many kinds, for damaged content.
        pickle.UnpicklingError: there are other Python objects in it.
    """
    return without_stand_ins(_Unpickler(io.BytesIO(content)).load())
