"""Linear upsampling of feature maps as one small matrix per axis, so that no full-resolution feature map is built.

Bi- and trilinear interpolation is linear and separable: ``Up = A_1 x A_2 (x A_3)``. So sums over ``Up(F)`` and its
norm can be taken at feature resolution, and only class scores and norms go up.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode


def _cached(build: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Keep the matrices of recent sizes, but none made while torch compiles or a mode is on, as fake tensors are."""
    kept = lru_cache(maxsize=64)(build)

    @wraps(build)
    def matrix(size_in: int, size_out: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        anew = torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None
        return (build if anew else kept)(size_in, size_out, dtype, device)

    return matrix


@_cached
def axis_matrix(size_in: int, size_out: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A with ``A @ x = interpolate(x, linear, align_corners=False)`` along one axis: (size_out, size_in)."""
    with torch.inference_mode(False):  # a cached tensor outlives the context that asked for it first
        center = (torch.arange(size_out, dtype=torch.float64) + 0.5) * (size_in / size_out) - 0.5
        center = center.clamp(0, size_in - 1)
        lower = center.floor().long()
        upper = (lower + 1).clamp(max=size_in - 1)
        weight = center - lower
        matrix = torch.zeros(size_out, size_in, dtype=torch.float64)
        rows = torch.arange(size_out)
        matrix[rows, lower] += 1 - weight
        matrix[rows, upper] += weight
        return matrix.to(dtype=dtype, device=device)


@_cached
def _pair_matrix(size_in: int, size_out: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Weights of the products of a feature with itself and with its next neighbor: (size_out, 2 * size_in - 1)."""
    matrix = axis_matrix(size_in, size_out, dtype, device)
    return torch.cat((matrix * matrix, matrix[:, :-1] * matrix[:, 1:]), dim=1)


def _apply(x: Tensor, matrices: list[Tensor]) -> Tensor:
    """Apply one matrix to each of the last ``len(matrices)`` axes, the last axis first."""
    x = x @ matrices[-1].T
    for axis in range(len(matrices) - 2, -1, -1):
        trailing = x.shape[x.ndim - len(matrices) + axis + 1 :]
        flat = x.flatten(x.ndim - len(trailing))
        x = (matrices[axis] @ flat).unflatten(-1, trailing)
    return x


def upsample(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``Up(x)``: (..., *s) to (..., *S), as ``torch.nn.functional.interpolate(..., align_corners=False)``."""
    sizes = x.shape[-len(shape) :]
    return _apply(x, [axis_matrix(i, o, x.dtype, x.device) for i, o in zip(sizes, shape, strict=True)])


def upsample_transposed(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``Up^T(x)``: (..., *S) to (..., *s); ``sum(Up(F) * x) = sum(F * Up^T(x))``."""
    sizes = x.shape[-len(shape) :]
    return _apply(x, [axis_matrix(i, o, x.dtype, x.device).T for i, o in zip(shape, sizes, strict=True)])


def upsampled_squared_norm(features: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``|Up(F)[v]|^2`` over the channels, without building ``Up(F)``.

    Along one axis ``|w0 F_i + w1 F_(i+1)|^2 = w0^2 |F_i|^2 + w1^2 |F_(i+1)|^2 + 2 w0 w1 F_i . F_(i+1)``; the axes
    multiply.

    Args:
        features: F, (U, K, *s).
        shape: *S.

    Returns:
        (U, *S); rounding may leave it slightly below zero where neighboring features cancel.
    """
    sizes = features.shape[2:]
    matrices = [_pair_matrix(i, o, features.dtype, features.device) for i, o in zip(sizes, shape, strict=True)]
    return _apply(_pair_products([(features, features)], 2), matrices)


def _pair_products(pairs: list[tuple[Tensor, Tensor]], axis: int) -> Tensor:
    """Dot products over K of each feature with itself and its neighbors: (U, 2 * s_1 - 1, 2 * s_2 - 1, ...)."""
    if axis == pairs[0][0].ndim:
        return torch.stack([(x * y).sum(dim=1) for x, y in pairs]).sum(dim=0)
    first, second = pairs[0]
    inner = first.shape[axis] - 1
    if first is second:  # the two orders of neighbors give one product: take it twice
        neighbors = 2 * _pair_products([(first.narrow(axis, 0, inner), first.narrow(axis, 1, inner))], axis + 1)
    else:
        neighbors = _pair_products(
            [(x.narrow(axis, i, inner), y.narrow(axis, 1 - i, inner)) for x, y in pairs for i in (0, 1)], axis + 1
        )
    return torch.cat((_pair_products(pairs, axis + 1), neighbors), dim=axis - 1)
