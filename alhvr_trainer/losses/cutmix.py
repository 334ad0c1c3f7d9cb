"""Pseudo-labels at full weight: the two halves of nnU-Net's own loss, on labels that a teacher gave."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .dice import soft_dice_loss
from .sums import Group, share
from .voxels import class_targets, masked_mean


def pseudo_label_loss(logits: Tensor, labels: Tensor, valid: Tensor | None = None, group: Group = None) -> Tensor:
    """``mean_v CE(z_v, y_v) + soft Dice loss of the foreground``, whatever the teacher's confidence was.

    Without a threshold, for thresholds leave out the borders and, while a network is poor, all of a rare class.

    Args:
        logits: z, (U, C, *S).
        labels: y, (U, *S) integer.
        valid: (U, *S) bool, False outside the image; None means all.
        group: the ranks that the batch is spread over; the sum of their results is the batch's term.

    Example:
        >>> import torch
        >>> sure = torch.tensor([[[9.0, -9.0], [-9.0, 9.0]]])
        >>> right, wrong = torch.tensor([[0, 1]]), torch.tensor([[1, 0]])
        >>> round(pseudo_label_loss(sure, right).item(), 3), round(pseudo_label_loss(sure, wrong).item(), 3)
        (0.0, 19.0)
    """
    probabilities, targets = torch.softmax(logits, dim=1), class_targets(labels, logits.shape[1])
    dice = soft_dice_loss(probabilities[:, 1:], targets[:, 1:], valid, group)
    return masked_mean(cross_entropy(logits, labels, reduction="none"), valid, group) + share(dice, group)


class CutMixLoss(nn.Module):
    """:func:`pseudo_label_loss` as a loss in MONAI's form: ``CutMixLoss()(strong, labels)``, both mixed alike."""

    def forward(self, strong: Tensor, labels: Tensor, valid: Tensor | None = None) -> Tensor:
        return pseudo_label_loss(strong, labels, valid)
