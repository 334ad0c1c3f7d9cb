"""Single precision where half is not enough: powers, logarithms and sums over many voxels under- or overflow there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32; what is more precise stays so.

    Example:
        >>> at_least_float32(torch.zeros(1, dtype=torch.float16)).dtype, at_least_float32(torch.zeros(1).double()).dtype
        (torch.float32, torch.float64)
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def in_float32(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """The function with its half precision tensors turned into float32, and computed outside autocast.

    Example:
        >>> in_float32(torch.square)(torch.tensor([1e-5], dtype=torch.float16)) > 0  # it underflows in float16
        tensor([True])
    """

    @functools.wraps(function)
    def computed(*args: Any, **options: Any) -> _Result:
        converted = [_converted(value) for value in args]
        named = {name: _converted(value) for name, value in options.items()}
        device = next(value.device.type for value in (*converted, *named.values()) if isinstance(value, Tensor))
        with torch.autocast(device, enabled=False):
            return function(*converted, **named)  # type: ignore[arg-type]

    return computed


def _converted(value: Any) -> Any:
    return at_least_float32(value) if isinstance(value, Tensor) and value.is_floating_point() else value
