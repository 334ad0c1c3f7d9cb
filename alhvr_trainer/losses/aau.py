"""AAU, anatomically aware uncertainty: a mean teacher that is trusted where its prediction looks like an anatomy.

Adiga, Dolz, and Lombaert, "Anatomically-aware uncertainty for semi-supervised image segmentation", Medical Image
Analysis 2024. An autoencoder that has learned to repair corrupted label maps repairs the teacher's prediction; what it
changes is uncertain.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .dice import soft_dice_loss
from .precision import in_float32
from .sums import Group, total
from .voxels import masked_mean

_EPS_SUM = 1e-16


def anatomical_uncertainty(restored: Tensor, teacher: Tensor) -> Tensor:
    """``U = (d - p_t)^2`` of each class: from 0, where the autoencoder finds nothing to repair, to 1.

    Args:
        restored: d, the probabilities that the autoencoder gives for the teacher's label map, (B, C, *S).
        teacher: p_t, the teacher's probabilities, (B, C, *S).
    """
    return (restored - teacher) ** 2


def anatomical_weight(uncertainty: Tensor, decay: float = 1.0) -> Tensor:
    """``q = exp(-gamma U)``, from exp(-gamma) to 1.

    Args:
        uncertainty: U of :func:`anatomical_uncertainty`.
        decay: gamma.

    Example:
        >>> anatomical_weight(torch.tensor([0.0, 1.0]))
        tensor([1.0000, 0.3679])
    """
    return torch.exp(-decay * uncertainty)


@in_float32
def weighted_consistency_term(
    student: Tensor, teacher: Tensor, weight: Tensor, valid: Tensor | None = None, group: Group = None
) -> Tensor:
    """``L_c = sum q (p_s - p_t)^2 / (2 sum q)``, both sums over voxels and classes; 0 where no voxel counts.

    Args:
        student: logits of the student, (B, C, *S).
        teacher: logits of the teacher, (B, C, *S); no gradient reaches them.
        weight: q of :func:`anatomical_weight`, (B, C, *S); a constant.
        valid: (B, *S) bool, False outside the image (padding); None means all.
        group: the ranks that the batch is spread over; the sum of their results is the batch's term.

    Source: the authors' code, followed to the letter: its factor 2 comes from the code of UA-MT, where it is the number
    of classes. Here q has all classes, so that without uncertainty L_c is half of the mean squared difference.

    Example:
        >>> certain, undecided = torch.tensor([[20.0], [-20.0]])[None], torch.zeros(1, 2, 1)
        >>> round(weighted_consistency_term(undecided, certain, torch.ones(1, 2, 1)).item(), 4)
        0.125
    """
    difference = torch.softmax(student, dim=1) - torch.softmax(teacher.detach(), dim=1)
    counted = weight.detach() if valid is None else weight.detach() * valid.unsqueeze(1)
    return (counted * difference**2).sum() / (2 * total(counted.sum(), group)).clamp_min(_EPS_SUM)


def shape_loss(logits: Tensor, shapes: Tensor, background: bool, valid: Tensor | None = None) -> Tensor:
    """``(mean (d - y)^2 + Dice) / 2`` with ``d = sigmoid(z)``: what the autoencoder of label maps is trained with.

    ``Dice = 1 - mean_c (2 sum d_c y_c + s) / (sum d_c^2 + sum y_c^2 + s)`` over the foreground, sums over the batch,
    ``s = 1e-5``.

    Args:
        logits: z, (B, C, *S).
        shapes: y, the label map before its corruption, one channel per class or region, (B, C, *S), 0 or 1.
        background: whether the first channel is the background's, which is left out of Dice.
        valid: (B, *S) bool, False where there is no label; None means all.

    Source: the authors' stage 1. How its Dice is normalized, and that sums go over the batch, is as in UA-MT's code.
    """
    restored, first = torch.sigmoid(logits), int(background)
    error = masked_mean(((restored - shapes) ** 2).mean(dim=1), valid)
    return (error + soft_dice_loss(restored[:, first:], shapes[:, first:], valid, squared=True)) / 2


class AAULoss(nn.Module):
    """AAU's consistency, weighted by the anatomical uncertainty, as a loss in MONAI's form.

    Args:
        decay: gamma of :func:`anatomical_weight`.

    Example:
        >>> student, teacher, restored = torch.randn(3, 2, 4, 32, 32)
        >>> AAULoss()(student, teacher, torch.sigmoid(restored)).shape
        torch.Size([])
    """

    def __init__(self, decay: float = 1.0) -> None:
        super().__init__()
        self.decay = decay

    def forward(self, student: Tensor, teacher: Tensor, restored: Tensor, valid: Tensor | None = None) -> Tensor:
        """Scalar.

        Args:
            student, teacher: logits, (B, C, *S).
            restored: d of :func:`anatomical_uncertainty`, (B, C, *S).
            valid: (B, *S) bool, False outside the image; None means all.
        """
        uncertainty = anatomical_uncertainty(restored, torch.softmax(teacher, dim=1))
        return weighted_consistency_term(student, teacher, anatomical_weight(uncertainty, self.decay), valid)
