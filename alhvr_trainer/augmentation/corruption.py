"""Corrupted label maps: jagged or misplaced boundaries, which AAU's shape autoencoder learns to repair.

Adiga, Dolz, and Lombaert, Medical Image Analysis 2024, as in the authors' code: slice by slice, with the probabilities
and sizes there. Which slices, and how, is drawn on the CPU; which pixels, on the maps' device.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

PROBABILITY = 0.2
"""Of either kind of corruption, for each slice."""
EXCHANGED = 0.1
"""Share of the boundary pixels that change places with others."""
DISTANCES = range(3, 9)
"""Between the pixels that change places, in pixels."""
DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0))
RADII = range(1, 5)
"""Of the disk that erodes, dilates, opens or closes, in pixels."""


def corrupted(labels: Tensor, random: np.random.Generator) -> Tensor:
    """Label maps with corrupted slices; maps of volumes are corrupted slice by slice along their first axis.

    Args:
        labels: (B, *S), integers in any type.
        random: draws the slices and what happens to each; pixels come from torch's global generator.

    Returns:
        Of the same shape, float32.
    """
    slices = labels.float().reshape(-1, *labels.shape[-2:])
    shifts = _drawn_shifts(len(slices), random)
    rows = [row for row, shift in enumerate(shifts) if shift is not None]
    if rows:
        moved = torch.tensor([shift for shift in shifts if shift is not None], device=labels.device)
        slices = _changed(slices, rows, lambda x: exchange_boundary(x, moved))
    for (operation, radius), rows in _drawn_operations(len(slices), random).items():
        slices = _changed(slices, rows, lambda x, f=operation, r=radius: f(x, r))  # type: ignore[misc]
    return slices.view(labels.shape)


def exchange_boundary(maps: Tensor, shifts: Tensor, share: float = EXCHANGED) -> Tensor:
    """Pixels at boundaries change places with the pixels at a distance.

    Args:
        maps: (n, H, W) float.
        shifts: for each map, how far, in pixels along both axes, (n, 2) integer.
        share: of the boundary pixels; those without a pixel at that distance inside the map stay.
    """
    chosen = boundary(maps) & (torch.rand(maps.shape, device=maps.device) < share)
    there, inside = _moved(maps, shifts)
    chosen = chosen & inside
    back, came_from = _moved(maps, -shifts)
    arrived, _ = _moved(chosen.float(), -shifts)
    return torch.where((arrived > 0) & came_from, back, torch.where(chosen, there, maps))


def boundary(maps: Tensor) -> Tensor:
    """Pixels with a neighbor of another label above, below, to the left, or to the right: (n, H, W) bool.

    Example:
        >>> boundary(torch.tensor([[[0.0, 0.0, 0.0, 1.0]]]))
        tensor([[[False, False,  True,  True]]])
    """
    return dilated(maps, 1) != eroded(maps, 1)


def dilated(maps: Tensor, radius: int) -> Tensor:
    """The largest label within a disk around each pixel: what has a larger label grows.

    Args:
        maps: (n, H, W) float.
        radius: of the disk, in pixels.
    """
    height = maps.shape[1]
    grown = maps
    for offset in range(-radius, radius + 1):
        half = math.isqrt(radius**2 - offset**2)
        row = max_pool2d(maps, (1, 2 * half + 1), stride=1, padding=(0, half))
        low, high = max(0, -offset), min(height, height - offset)
        if low < high:
            within = torch.maximum(grown[:, low:high], row[:, low + offset : high + offset])
            grown = torch.cat((grown[:, :low], within, grown[:, high:]), dim=1)
    return grown


def eroded(maps: Tensor, radius: int) -> Tensor:
    """The smallest label within a disk around each pixel; arguments as of :func:`dilated`."""
    return -dilated(-maps, radius)


def opened(maps: Tensor, radius: int) -> Tensor:
    """Erosion, then dilation: what is thinner than the disk is gone."""
    return dilated(eroded(maps, radius), radius)


def closed(maps: Tensor, radius: int) -> Tensor:
    """Dilation, then erosion: gaps that are thinner than the disk are filled."""
    return eroded(dilated(maps, radius), radius)


Operation = Callable[[Tensor, int], Tensor]
OPERATIONS: tuple[Operation, ...] = (eroded, dilated, opened, closed)


def _drawn_shifts(slices: int, random: np.random.Generator) -> list[tuple[int, int] | None]:
    """For each slice how far its boundary pixels go; None: they stay."""
    happens = random.random(slices) < PROBABILITY
    distances, directions = random.choice(DISTANCES, slices), random.integers(len(DIRECTIONS), size=slices)
    drawn = [tuple(int(d * axis) for axis in DIRECTIONS[way]) for d, way in zip(distances, directions, strict=True)]
    return [(shift[0], shift[1]) if yes else None for shift, yes in zip(drawn, happens, strict=True)]


def _drawn_operations(slices: int, random: np.random.Generator) -> dict[tuple[Operation, int], list[int]]:
    """Which slices each operation acts on, with which radius."""
    happens = random.random(slices) < PROBABILITY
    operations, radii = random.integers(len(OPERATIONS), size=slices), random.choice(RADII, slices)
    found: dict[tuple[Operation, int], list[int]] = {}
    for row in np.flatnonzero(happens):
        found.setdefault((OPERATIONS[operations[row]], int(radii[row])), []).append(int(row))
    return found


def _changed(slices: Tensor, rows: list[int], change: Callable[[Tensor], Tensor]) -> Tensor:
    index = torch.tensor(rows, device=slices.device)
    return slices.index_copy(0, index, change(slices.index_select(0, index)))


def _moved(maps: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
    """For each pixel the one at a distance, and whether there is one."""
    (height, width), device = maps.shape[1:], maps.device
    rows = torch.arange(height, device=device).view(1, -1, 1) + shifts[:, 0].view(-1, 1, 1)
    columns = torch.arange(width, device=device).view(1, 1, -1) + shifts[:, 1].view(-1, 1, 1)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    numbers = torch.arange(len(maps), device=device).view(-1, 1, 1)
    return maps[numbers, rows.clamp(0, height - 1), columns.clamp(0, width - 1)], inside
