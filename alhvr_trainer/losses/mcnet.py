"""MC-Net: one encoder, two slightly different decoders, each of which learns from the other's sharpened prediction.

Wu et al., "Semi-supervised Left Atrium Segmentation with Mutual Consistency Training", MICCAI 2021 (arXiv 2103.02911).
"""

from __future__ import annotations

from torch import Tensor, nn

from .sums import Group
from .teaching import sharpen
from .voxels import masked_mean


def mutual_consistency(
    logits: Tensor,
    other_logits: Tensor,
    temperature: float = 0.1,
    detach: bool = False,
    valid: Tensor | None = None,
    group: Group = None,
) -> Tensor:
    """Mean squared error, over voxels and classes, of one decoder against the other's soft pseudo-label.

    ``L_c = mean (P - sPL)^2``, ``sPL = Q^(1/T) / (Q^(1/T) + (1 - Q)^(1/T))`` with P and Q the two softmaxes: the cycled
    pseudo-label, sharpened class by class and not renormalized. The method's loss is the sum of both directions.

    Args:
        logits: of the decoder that learns, (U, C, *S).
        other_logits: of the decoder that gives the pseudo-label, (U, C, *S).
        temperature: T, between 0.02 and 1.
        detach: stop the gradient through the pseudo-label. The paper does not say; the authors' code lets it through,
            which is the default here.
        valid: (U, *S) bool, False outside the image (padding); None means all.
        group: the ranks that the batch is spread over; the sum of their results is the batch's term.

    Example:
        >>> import torch
        >>> even = torch.zeros(1, 2, 1)  # one voxel, two classes: 1/2 each, and so is the pseudo-label
        >>> float(mutual_consistency(even, even))
        0.0

    Source: Eq. 1 (sharpening) and the loss L_c of section 2.
    """
    pseudo_label = sharpen(other_logits.softmax(dim=1), temperature)
    error = (logits.softmax(dim=1) - (pseudo_label.detach() if detach else pseudo_label)) ** 2
    return masked_mean(error.mean(dim=1), valid, group)


class MCNetLoss(nn.Module):
    """:func:`mutual_consistency` in both directions as a loss in MONAI's form: ``MCNetLoss()(logits, other_logits)``.

    Args:
        temperature, detach: of :func:`mutual_consistency`.
    """

    def __init__(self, temperature: float = 0.1, detach: bool = False) -> None:
        super().__init__()
        self.options = temperature, detach

    def forward(self, logits: Tensor, other_logits: Tensor, valid: Tensor | None = None) -> Tensor:
        return mutual_consistency(logits, other_logits, *self.options, valid) + mutual_consistency(
            other_logits, logits, *self.options, valid
        )
