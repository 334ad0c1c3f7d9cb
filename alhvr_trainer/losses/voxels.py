"""Counts and means over the voxels of a batch: inside the image alone, and over all ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from .sums import Group, total


def masked_mean(values: Tensor, valid: Tensor | None = None, group: Group = None) -> Tensor:
    """This rank's share of the mean over the voxels inside the image; the shares of all ranks add up to the mean.

    Args:
        values: one per voxel, (U, *S).
        valid: (U, *S) bool, False outside the image; None means all.
        group: the ranks that the batch is spread over.

    Example:
        >>> import torch
        >>> masked_mean(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[True, True, False]]))
        tensor(1.5000)
    """
    voxels = valid_voxels(values, valid, group)
    return (values if valid is None else values * valid).sum() / voxels


def class_targets(labels: Tensor, classes: int) -> Tensor:
    """One-hot labels, (B, *S) integers to (B, C, *S) bool; torch's own function looks at the labels first."""
    numbers = torch.arange(classes, device=labels.device).view(-1, *[1] * (labels.ndim - 1))
    return labels.unsqueeze(1) == numbers


def count_classes(labels: Tensor, classes: int, valid: Tensor | None = None) -> Tensor:
    """Voxels of the classes 0 … ``classes`` - 1 in integer labels of any shape, (classes,); other labels do not count.

    Not ``bincount``, for which a GPU would have to tell the CPU the largest label first.
    """
    numbers = torch.arange(classes, device=labels.device, dtype=labels.dtype)
    found = labels.flatten() == numbers[:, None]
    return (found if valid is None else found & valid.flatten()).sum(dim=1)


def valid_voxels(mask: Tensor, valid: Tensor | None, group: Group = None) -> Tensor | int:
    """Number of voxels inside the image, at least 1, over all ranks.

    Args:
        mask: (U, *S), any mask of the samples; voxels of (U, R, *S) count once per channel.
        valid: (U, *S) bool; None means all.
    """
    if valid is None and group is None:
        return mask.numel()
    if valid is None:
        here = torch.full((), mask.numel(), device=mask.device)
    else:
        here = valid.sum() * (mask.numel() // valid.numel())
    return total(here, group).clamp_min(1)
