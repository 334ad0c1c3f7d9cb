"""CutMix: a box of each patch shows another patch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

EDGES = (0.25, 0.75)
"""Shortest and longest edge of a box, as a share of the patch."""


def boxes(samples: int, shape: Sequence[int], probability: float | Tensor, generator: torch.Generator) -> Tensor:
    """One box in each patch, all of it within, every edge uniform in :data:`EDGES` of the patch and every place alike.

    Args:
        samples: B.
        shape: *S.
        probability: with which a patch has a box; a number or a scalar on the device.
        generator: on the device of the result.

    Returns:
        (B, *S) bool.

    Source: Yun et al., ICCV 2019, draw the area of the box uniformly and keep the aspect of the image; French et al.,
    BMVC 2020, draw the aspect, with half of the area. Here both vary.

    Example:
        >>> inside = boxes(4, (40, 40), 1.0, torch.Generator().manual_seed(0))
        >>> inside.shape, bool((inside.flatten(1).sum(dim=1) >= 10 * 10).all())
        (torch.Size([4, 40, 40]), True)
    """
    device = generator.device
    chosen = torch.rand(samples, *[1] * len(shape), generator=generator, device=device) < probability
    lows, edges = [], []
    for size in shape:
        share, place = torch.rand(2, samples, generator=generator, device=device)
        edge = (size * (EDGES[0] + (EDGES[1] - EDGES[0]) * share)).round()
        lows.append((place * (size - edge + 1)).floor().clamp_max(size - edge))
        edges.append(edge)
    return within(lows, edges, shape) & chosen


def within(lows: Sequence[Tensor], edges: Sequence[Tensor | int], shape: Sequence[int]) -> Tensor:
    """The voxels of boxes, (B, *S) bool; what lies beyond the border is cut off.

    Args:
        lows: of each axis, where the boxes begin, (B,).
        edges: of each axis, how long they are, (B,) or one number for all.
        shape: *S.
    """
    inside = torch.ones((), dtype=torch.bool, device=lows[0].device)
    for axis, (low, edge, size) in enumerate(zip(lows, edges, shape, strict=True)):
        along = torch.arange(size, device=low.device)
        low, high = low.unsqueeze(1), (low + edge).unsqueeze(1)
        of_axis = (along >= low) & (along < high)
        inside = inside & of_axis.view(len(low), *[size if axis == other else 1 for other in range(len(shape))])
    return inside


def mixed(patches: Tensor, others: Tensor, inside: Tensor) -> Tensor:
    """The other patches in the boxes, the patches themselves around them.

    Args:
        patches, others: (B, C, *S), or (B, *S) as labels and masks are.
        inside: of :func:`boxes`.
    """
    return torch.where(inside if patches.ndim == inside.ndim else inside.unsqueeze(1), others, patches)
