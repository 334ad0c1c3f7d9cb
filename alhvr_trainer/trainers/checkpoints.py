"""Checkpoint files: written atomically, read without running code in them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from alhvr_trainer.config.files import replacing
from alhvr_trainer.errors import InputError, one_line

_NUMPY_CORE = np._core if hasattr(np, "_core") else np.core  # NumPy 2 renamed it
_NUMPY: list[Any] = [
    np.dtype,
    np.ndarray,
    *(
        getattr(np.dtypes, kind)
        for kind in dir(np.dtypes)
        if re.match("(Bool|U?Int|Float|Complex|Str|Bytes).*DType", kind)
    ),
    *(
        (getattr(_NUMPY_CORE.multiarray, name), f"numpy.{core}.multiarray.{name}")
        for name in ("scalar", "_reconstruct")
        for core in ("core", "_core")
    ),
]
"""Numbers and text of NumPy, which nnU-Net keeps in its checkpoints."""
_REFUSED = re.compile(r"GLOBAL ([\w.]+)|(?:unrecognized function|new object for|Can only build) .*")
"""How torch names a Python object that it does not let in."""


def write_atomically(content: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """``torch.save`` that leaves either the old or the new file at ``path``, never half of one.

    Raises:
        InputError: the disk is full or the folder is not writable; what stood at ``path`` is still there.
    """
    target = Path(path)
    try:
        with replacing(target, durable=True) as part:
            torch.save(content, part)
    except (OSError, RuntimeError) as error:  # torch wraps a full disk in a RuntimeError
        kept = "the previous one is untouched" if target.exists() else "there was none before"
        raise InputError(f"could not write the checkpoint {target} ({error}); {kept}") from error


def refuse_bad_numbers(checkpoint: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Keep a checkpoint with NaN or Inf from replacing a good one.

    Raises:
        InputError: weights or optimizer states hold NaN or Inf; names where.
    """
    bad = _bad_tensors(checkpoint)
    if bad:
        kept = "the previous one is untouched" if Path(path).exists() else "there was none before"
        raise InputError(
            f"the checkpoint {path} was not written: NaN or Inf in {bad[0]} and {len(bad) - 1} more; {kept}. Go on "
            "from it with a lower learning rate"
        )


def _bad_tensors(content: Any, name: str = "") -> list[str]:
    """Names of the tensors in nested dicts and lists that hold NaN or Inf."""
    if isinstance(content, torch.Tensor):
        return [name] if content.is_floating_point() and not bool(torch.isfinite(content).all()) else []
    if isinstance(content, dict):
        parts = list(content.items())
    else:
        parts = list(enumerate(content)) if isinstance(content, (list, tuple)) else []
    return [bad for key, value in parts for bad in _bad_tensors(value, f"{name}.{key}" if name else str(key))]


def load_without_code(file: str | os.PathLike[str] | IO[bytes], device: torch.device | str = "cpu") -> Any:
    """``torch.load`` of tensors, plain Python and NumPy values alone, so that no code in the file runs.

    Raises:
        Exception: of half a dozen kinds, for damaged files and for files with other objects.
    """
    with torch.serialization.safe_globals(_NUMPY):
        return torch.load(file, map_location=device, weights_only=True)


def read_checkpoint(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> dict[str, Any]:
    """A checkpoint of nnU-Net or ours. It may come from anyone, so pickled Python objects are refused.

    Raises:
        InputError: the file is missing, truncated or no checkpoint, or it holds pickled Python objects.
    """
    try:
        checkpoint = load_without_code(path, device)
    except Exception as error:  # torch raises half a dozen kinds for damaged files
        refused = _REFUSED.search(str(error))
        if refused:
            raise InputError(
                f"{path} holds pickled Python objects ({refused[1] or refused[0].strip()}), which can run any program "
                "when they are read; refused: use a checkpoint with nothing but tensors, numbers and text, as nnU-Net "
                "writes it"
            ) from error
        raise InputError(
            f"{path} is missing or not a readable checkpoint ({one_line(error)}); use another one"
        ) from error
    if not isinstance(checkpoint, dict) or "network_weights" not in checkpoint:
        raise InputError(f'{path} is not an nnU-Net checkpoint: it has no "network_weights"')
    return checkpoint
