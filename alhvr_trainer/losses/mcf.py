"""MCF: two networks of different architectures; the one that is better on the labeled samples teaches the other.

Wang et al., "MCF: Mutual Correction Framework for Semi-Supervised Medical Image Segmentation", CVPR 2023.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .dice import soft_dice_loss
from .precision import at_least_float32, in_float32
from .sums import Group, total
from .voxels import class_targets, masked_mean


@torch.no_grad()
def labeled_dice_loss(logits: Tensor, labels: Tensor, counts: Tensor | None = None, group: Group = None) -> Tensor:
    """``1 - mean over foreground classes of (2 sum p y + s) / (sum p^2 + sum y^2 + s)``, sums over the whole batch.

    It decides who teaches, and trains nothing.

    Args:
        logits: of the labeled samples, (L, C, *S).
        labels: (L, *S), integers from 0 to C - 1.
        counts: (L, *S) bool, False outside the image and where nobody annotated; None means all.
        group: the ranks that the batch is spread over.

    Returns:
        A scalar from 0 to 1, the same on all ranks.

    Source: the authors' code, for one foreground class; there it is part of the supervised loss, too.

    Example:
        >>> undecided, labels = torch.zeros(1, 2, 2), torch.tensor([[0, 1]])  # sums: p y 1/2, p^2 1/2, y^2 1
        >>> round(float(labeled_dice_loss(undecided, labels)), 3)
        0.333
    """
    probabilities, targets = at_least_float32(logits).softmax(dim=1), class_targets(labels, logits.shape[1])
    return soft_dice_loss(probabilities[:, 1:], targets[:, 1:], counts, group, squared=True)


def rectification_terms(
    logits_a: Tensor, logits_b: Tensor, labels: Tensor, counts: Tensor | None = None, group: Group = None
) -> tuple[Tensor, Tensor]:
    """``L_rect = sum_v M |p - y|^2 / (C sum_v M)`` of each network, M the voxels on which their classes differ.

    Args:
        logits_a, logits_b: of the labeled samples, (L, C, *S).
        labels: (L, *S), integers from 0 to C - 1.
        counts: (L, *S) bool, False outside the image and where nobody annotated; None means all.
        group: the ranks that the batch is spread over; the sum of their results is the batch's term.

    Returns:
        The terms of a and b; exactly 0 where the networks agree everywhere.

    Source: the authors' code, for two classes: ``(p_1 - y_1)^2``, which is the mean over both.

    Example:
        >>> a, b = torch.tensor([[[0.0], [1.0]]]), torch.tensor([[[1.0], [0.0]]])  # one voxel, different classes
        >>> [round(float(x), 4) for x in rectification_terms(a, b, torch.tensor([[1]]))]  # sigmoid(1), of both
        [0.0723, 0.5344]
    """
    differ = logits_a.detach().argmax(dim=1) != logits_b.detach().argmax(dim=1)
    mask = differ if counts is None else differ & counts
    targets, voxels = class_targets(labels, logits_a.shape[1]), total(mask.sum(), group).clamp_min(1)

    def term(logits: Tensor) -> Tensor:
        error = (at_least_float32(logits).softmax(dim=1) - targets.float()).square().mean(dim=1)
        return (error * mask).sum() / voxels

    return term(logits_a), term(logits_b)


@in_float32
def correction_term(
    logits_a: Tensor,
    logits_b: Tensor,
    a_wins: Tensor,
    temperature: float = 0.1,
    valid: Tensor | None = None,
    group: Group = None,
) -> Tensor:
    """``mean over voxels and classes of (p_loser - PL)^2``, ``PL = p_winner^(1/T) / sum_c p_winner^(1/T)``.

    No gradient reaches the winner: its own is exactly 0.

    Args:
        logits_a, logits_b: of the unlabeled samples, (U, C, *S).
        a_wins: bool scalar on the device: network a teaches, b learns.
        temperature: T of the sharpening.
        valid: (U, *S) bool, False outside the image (padding); None means all.
        group: the ranks that the batch is spread over; the sum of their results is the batch's term.

    Source: the authors' code. The powers of softmaxes, renormalized, are ``softmax(z / T)``, which cannot underflow.

    Example:
        >>> a, b = torch.tensor([[[9.0], [-9.0]]]), torch.zeros(1, 2, 1)  # b learns: (1/2 - 1)^2
        >>> round(float(correction_term(a, b, torch.tensor(True))), 3)
        0.25
    """
    learner, teacher = torch.where(a_wins, logits_b, logits_a), torch.where(a_wins, logits_a, logits_b).detach()
    pseudo_label = (teacher / temperature).softmax(dim=1)
    return masked_mean((learner.softmax(dim=1) - pseudo_label).square().mean(dim=1), valid, group)


class MCFLoss(nn.Module):
    """:func:`correction_term` as a loss in MONAI's form: ``MCFLoss()(a, b, labeled_a, labeled_b, labels)``.

    Args:
        temperature: of :func:`correction_term`.

    Example:
        >>> a, b, labeled_a, labeled_b = torch.randn(4, 2, 3, 8, 8)
        >>> MCFLoss()(a, b, labeled_a, labeled_b, torch.zeros(2, 8, 8, dtype=torch.long)).shape
        torch.Size([])
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(
        self, a: Tensor, b: Tensor, labeled_a: Tensor, labeled_b: Tensor, labels: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        """Scalar.

        Args:
            a, b: logits of the two networks for the unlabeled samples, (U, C, *S).
            labeled_a, labeled_b: the same for the labeled ones, (L, C, *S), whose Dice losses decide who teaches.
            labels: of these, (L, *S).
            valid: of the unlabeled samples, (U, *S) bool; None means all.
        """
        a_wins = labeled_dice_loss(labeled_a, labels) <= labeled_dice_loss(labeled_b, labels)
        return correction_term(a, b, a_wins, self.temperature, valid)
