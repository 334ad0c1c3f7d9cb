"""The soft Dice loss that methods use beside nnU-Net's own."""

from __future__ import annotations

import torch
from torch import Tensor

from .sums import Group, total

SMOOTH = 1e-5


def soft_dice_loss(
    probabilities: Tensor, targets: Tensor, counted: Tensor | None = None, group: Group = None, squared: bool = False
) -> Tensor:
    """``1 - mean_c (2 sum_v p y + s) / (sum_v p + sum_v y + s)``, sums over all samples and s = 1e-5.

    Args:
        probabilities: p, (L, K, *S), one channel per foreground class.
        targets: y, (L, K, *S), whether a voxel is in the class.
        counted: (L, *S) bool, False where nobody annotated and outside the image; None means all.
        group: the ranks that the batch is spread over; the result is the whole batch's, the same on all.
        squared: ``sum_v p^2`` in place of ``sum_v p``, as in V-Net's Dice.

    Example:
        >>> import torch
        >>> half, all_of_it = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[True, True]]])
        >>> round(soft_dice_loss(half, all_of_it).item(), 4)
        0.3333
    """
    if counted is not None:
        probabilities, targets = probabilities * counted.unsqueeze(1), targets * counted.unsqueeze(1)
    axes = (0, *range(2, targets.ndim))
    sizes = (probabilities.square() if squared else probabilities) + targets
    overlap, size = total(torch.stack([(probabilities * targets).sum(dim=axes), sizes.sum(dim=axes)]), group)
    return 1 - ((2 * overlap + SMOOTH) / (size + SMOOTH)).mean()
