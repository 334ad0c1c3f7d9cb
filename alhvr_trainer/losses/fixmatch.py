"""FixMatch: confident predictions on weakly augmented images are the targets for strongly augmented ones.

Sohn et al., *FixMatch: simplifying semi-supervised learning with consistency and confidence*, NeurIPS 2020.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .sums import Group
from .voxels import masked_mean


def confident_labels(weak: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Pseudo-labels ``argmax(q)`` and where they count, ``max(q) >= tau``, with ``q = softmax(z)`` of the weak view.

    Args:
        weak: z, logits on the weakly augmented images, (U, C, *S); no gradient reaches them.
        threshold: tau.

    Returns:
        Labels (U, *S), integer, and mask (U, *S), bool.

    Example:
        >>> import torch
        >>> confident_labels(torch.tensor([[[0.0, 0.0], [1.0, 4.0]]]), 0.95)
        (tensor([[1, 1]]), tensor([[False,  True]]))
    """
    confidence, labels = torch.softmax(weak.detach(), dim=1).max(dim=1)
    return labels, confidence >= threshold


def pseudo_label_term(
    strong: Tensor, labels: Tensor, confident: Tensor, valid: Tensor | None = None, group: Group = None
) -> Tensor:
    """``l_u = 1/(mu B) sum_b 1(max(q_b) >= tau) H(argmax(q_b), p(y | A(u_b)))``: a mean over all voxels, sure or not.

    The share of confident voxels so acts as the ramp-up of the term.

    Args:
        strong: logits on the strongly augmented images, (U, C, *S).
        labels, confident: of :func:`confident_labels`, each (U, *S).
        valid: (U, *S) bool, False outside the image; None means all.
        group: the ranks that the batch is spread over; the sum of their results is the batch's term.

    Source: Eq. 4, a voxel in the place of an image; the authors' code agrees.
    """
    return masked_mean(cross_entropy(strong, labels, reduction="none") * confident, valid, group)


class FixMatchLoss(nn.Module):
    """:func:`pseudo_label_term` as a loss in MONAI's form: ``FixMatchLoss()(strong, weak)``, logits of both views.

    Args:
        threshold: tau of :func:`confident_labels`.
    """

    def __init__(self, threshold: float = 0.95) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, strong: Tensor, weak: Tensor, valid: Tensor | None = None) -> Tensor:
        return pseudo_label_term(strong, *confident_labels(weak, self.threshold), valid)
