"""nnU-Net's rotation and scaling of many patches at once, and cutting patches out of cases."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.helpers.scalar_type import sample_scalar
from batchgeneratorsv2.transforms.spatial.spatial import (
    SpatialTransform,
    create_affine_matrix_2d,
    create_affine_matrix_3d,
)
from torch import Tensor
from torch.nn.functional import grid_sample

from alhvr_trainer.augmentation.patches import constant
from alhvr_trainer.losses.host import host_may_look

OUTSIDE = -1
"""nnU-Net's label of what lies outside of an image."""
_SCORE = 1000.0
_AT_BORDER = 1 << 13
"""More than twice any label."""


def draw_affine(transform: SpatialTransform) -> np.ndarray | None:
    """What ``SpatialTransform`` draws for a patch, from NumPy's generator and in its order.

    Returns:
        The matrix of rotation and scaling, (dimensions, dimensions); None: neither.
    """
    dimensions = len(transform.patch_size)
    rotate, scale, _deform = (
        np.random.uniform() < probability
        for probability in (transform.p_rotation, transform.p_scaling, transform.p_elastic_deform)
    )
    if not rotate and not scale:
        return None
    angles = [sample_scalar(transform.rotation, image=None, dim=axis) if rotate else 0.0 for axis in range(dimensions)]
    if rotate and transform.p_rot_per_axis < 1:
        angles = [0.0 if np.random.uniform() > transform.p_rot_per_axis else angle for angle in angles]
    scales = [1.0] * dimensions
    if scale and np.random.uniform() <= transform.p_synchronize_scaling_across_axes:
        scales = [sample_scalar(transform.scaling, image=None, dim=None)] * dimensions
    elif scale:
        scales = [sample_scalar(transform.scaling, image=None, dim=axis) for axis in range(dimensions)]
    matrix = create_affine_matrix_3d(angles, scales) if dimensions == 3 else create_affine_matrix_2d(angles[-1], scales)
    return np.asarray(matrix)


def coordinates(affines: Tensor, size: Sequence[int], shape: Sequence[int]) -> list[Tensor]:
    """Where the voxels of turned and scaled patches lie in the larger patches around them, in voxels of these.

    Args:
        affines: (n, dimensions, dimensions).
        size: of the patches.
        shape: of those that they are cut from.

    Returns:
        For each axis (n, *size).
    """
    ranges = [torch.linspace((1 - n) / 2, (n - 1) / 2, n, device=affines.device) for n in size]
    axes = [r.view(1, *[-1 if k == axis else 1 for k in range(len(size))]) for axis, r in enumerate(ranges)]
    factors = affines.view(*affines.shape, *[1] * len(size))
    return [
        sum((factors[:, row, axis] * axes[axis] for axis in range(len(size))), torch.tensor((shape[row] - 1) / 2))
        for row in range(len(size))
    ]


def resample_images(images: Tensor, places: list[Tensor]) -> Tensor:
    """Linear interpolation, 0 outside: (n, C, *shape) to (n, C, *size).

    Args:
        images: the larger patches.
        places: see :func:`coordinates`.
    """
    return grid_sample(images, _grid(places, images.shape[2:]), "bilinear", "zeros", align_corners=False)


def _grid(places: list[Tensor], shape: Sequence[int]) -> Tensor:
    """``grid_sample`` counts from -1 to 1, and axes from the last."""
    scaled = [(2 * place + 1) / n - 1 for place, n in zip(places, shape, strict=True)]
    return torch.stack(scaled[::-1], dim=-1)


def resample_labels(labels: Tensor, places: list[Tensor], values: Sequence[int]) -> Tensor:
    """The label with the largest share of each voxel, as ``SpatialTransform`` finds it; :data:`OUTSIDE` outside.

    Shares are compared in float16, which turns near ties into ties: the nearest neighbor wins those that it has part
    in, the smallest label the others. On the CPU, voxels between equal labels are set apart, which are nearly all.

    Args:
        labels: (n, C, *shape), each one of ``values``.
        places: see :func:`coordinates`.
        values: in rising order, :data:`OUTSIDE` among them.

    Returns:
        (n, C, *size), of the type of ``labels``.
    """
    if host_may_look(labels):
        maps, repeated = labels.flatten(0, 1), [p.repeat_interleave(labels.shape[1], dim=0) for p in places]
        return resample_label_maps(maps, repeated, values).view(*labels.shape[:2], *places[0].shape[1:])
    of_class = constant(tuple(values), labels.device, labels.dtype)
    indicator = labels.unsqueeze(2) == of_class.view(1, 1, -1, *[1] * (labels.ndim - 2))
    # outside, the share of OUTSIDE is 1, but grid_sample pads with 0
    offset = torch.where(of_class == OUTSIDE, _SCORE, 0.0).view(1, 1, -1, *[1] * (labels.ndim - 2))
    padded = (indicator * _SCORE - offset).flatten(1, 2)
    shares = resample_images(padded, places).unflatten(1, (labels.shape[1], len(values))) + offset
    grid = _grid(places, labels.shape[2:])
    nearest = grid_sample((labels - OUTSIDE).float(), grid, "nearest", "zeros", align_corners=False) + OUTSIDE
    return _winners(shares.half(), nearest.to(labels.dtype), of_class, axis=2)


def _winners(shares: Tensor, nearest: Tensor, of_class: Tensor, axis: int) -> Tensor:
    best, winner = shares.max(dim=axis)
    position = torch.searchsorted(of_class, nearest.contiguous()).unsqueeze(axis)
    return torch.where(shares.gather(axis, position).squeeze(axis) == best, nearest, of_class[winner])


def resample_label_maps(labels: Tensor, places: list[Tensor], values: Sequence[int]) -> Tensor:
    """As :func:`resample_labels`, of maps (n, *shape); the time goes with the number of voxels at borders."""
    shape, axes = labels.shape[1:], range(labels.ndim - 1)
    padded = labels.new_full((len(labels), *[n + 3 for n in shape]), OUTSIDE)  # one voxel before it, two behind
    within = (slice(None), *(slice(1, n + 1) for n in shape))
    padded[within] = labels
    strides = padded.stride()
    inside = [place.clamp(-1, n) for place, n in zip(places, shape, strict=True)]
    lower = [place.floor() for place in inside]
    index = torch.arange(len(labels), dtype=torch.int32).view(-1, *[1] * len(shape)) * strides[0]
    for axis in axes:
        index = index + (lower[axis].int() + 1) * strides[axis + 1]
    index = index.view(-1).long()
    result = _border_cells_marked(padded).view(-1).gather(0, index)
    unclear = (result > _AT_BORDER // 2).nonzero().flatten()
    low = torch.stack([each.view(-1)[unclear] for each in lower])
    weight = torch.stack([each.view(-1)[unclear] for each in inside]) - low
    corners = torch.tensor(list(product((0, 1), repeat=len(shape))))
    around = padded.view(-1)[index[unclear, None] + corners @ torch.tensor(strides[1:])]
    upper = corners.T.bool().unsqueeze(1)
    share = torch.where(upper, weight.unsqueeze(2), 1 - weight.unsqueeze(2)).prod(dim=0) * _SCORE
    shares = torch.stack([(share * (around == value)).sum(dim=1) for value in values], dim=1).half()
    nearest_corner = ((low + weight).round() - low).long().T @ torch.tensor([2**k for k in axes][::-1])
    nearest = around.gather(1, nearest_corner.unsqueeze(1)).squeeze(1)
    result[unclear] = _winners(shares, nearest, torch.tensor(values, dtype=labels.dtype), axis=1)
    return result.view(places[0].shape)


def _border_cells_marked(labels: Tensor) -> Tensor:
    """Labels (n, *shape), :data:`_AT_BORDER` higher where a neighbor behind, also diagonally, has another label."""
    low = high = labels
    for axis in range(1, labels.ndim):
        kept = labels.shape[axis] - 1
        low = torch.minimum(low.narrow(axis, 0, kept), low.narrow(axis, 1, kept))
        high = torch.maximum(high.narrow(axis, 0, kept), high.narrow(axis, 1, kept))
    marked = labels.clone()  # arithmetic takes a fraction of the time of torch.where
    marked[tuple(slice(0, n) for n in low.shape)] += (high - low).clamp_(max=1) * _AT_BORDER
    return marked


def resample_box(low: Tensor, high: Tensor, places: list[Tensor]) -> Tensor:
    """:func:`resample_labels` of a label that fills a box: True where the box has the larger share.

    Args:
        low, high: first voxel of the box and the one after its last, (n, dimensions).
        places: see :func:`coordinates`.

    Returns:
        (n, *size) bool.
    """
    borders = [[x[:, axis].view(-1, *[1] * len(places)) for x in (low, high)] for axis in range(len(places))]
    share = torch.full_like(places[0], _SCORE)
    for place, (first, end) in zip(places, borders, strict=True):
        share.mul_(torch.minimum(place - (first - 1), end - place).clamp_(0, 1))
    share, half = share.half(), _SCORE / 2
    ties = share == half
    if host_may_look(ties) and not ties.any():
        return share > half
    closest = [place.round() for place in places]
    nearest = [(c >= first) & (c < end) for c, (first, end) in zip(closest, borders, strict=True)]
    return (share > half) | (ties & torch.stack(nearest).all(dim=0))


def cut(array: Any, lower: Sequence[int], out: Tensor, fill: float) -> None:
    """Write a patch of a case into ``out``, and ``fill`` where it reaches beyond the image.

    Args:
        array: (C, *S): a tensor, or an array on disk, of which no more than the patch is read.
        lower: corner of the patch, in voxels; may be negative.
        out: (C, *size).
    """
    shape, size = array.shape[1:], out.shape[1:]
    box = overlap(lower, size, shape)
    if any(b - a != n for a, b, n in zip(*box, size, strict=True)):
        out.fill_(fill)
    target = (slice(None), *(slice(a, b) for a, b in zip(*box, strict=True)))
    source = (slice(None), *(slice(start + a, start + b) for a, b, start in zip(*box, lower, strict=True)))
    out[target] = torch.as_tensor(array[source])


def overlap(lower: Sequence[int], size: Sequence[int], shape: Sequence[int]) -> tuple[list[int], list[int]]:
    """The part of a patch that lies inside the image: its first voxel and the one after its last, in the patch.

    Args:
        lower: corner of the patch, in voxels of the image.
        size: of the patch.
        shape: of the image.

    Example:
        >>> overlap([-2, 3], [6, 4], [5, 5])
        ([2, 0], [6, 2])
    """
    low = [min(max(-start, 0), length) for start, length in zip(lower, size, strict=True)]
    high = [max(min(n - start, length), a) for start, length, n, a in zip(lower, size, shape, low, strict=True)]
    return low, high
