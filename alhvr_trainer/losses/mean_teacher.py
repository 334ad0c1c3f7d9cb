"""Mean Teacher: a student learns to agree with the moving average of its own weights.

Tarvainen & Valpola, *Mean teachers are better role models*, NeurIPS 2017.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .precision import in_float32
from .sums import Group
from .voxels import masked_mean


def noisy(images: Tensor, deviation: float, bound: float | None = None) -> Tensor:
    """``x + n`` with ``n ~ Normal(0, deviation^2)``, drawn anew for every voxel: eta and eta' of the paper.

    Args:
        images: x, in nnU-Net's normalized intensities, whose standard deviation is about 1.
        deviation: standard deviation of the noise, in the same unit; 0 returns ``x`` itself.
        bound: the noise is clamped to [-bound, bound]; None leaves it as drawn.

    Source: Mean Teacher draws without bound, deviation 0.15; UA-MT's code has deviation 0.1, bound 0.2.
    """
    if deviation == 0:
        return images
    noise = torch.randn_like(images).mul_(deviation)
    return images + (noise if bound is None else noise.clamp_(-bound, bound))


def squared_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """``||f(x, theta', eta') - f(x, theta, eta)||^2`` of each voxel: summed over the classes, after softmax.

    No gradient reaches the teacher.

    Args:
        student, teacher: logits, (U, C, *S).

    Returns:
        (U, *S).
    """
    return (torch.softmax(student, dim=1) - torch.softmax(teacher.detach(), dim=1)).square().sum(dim=1)


@in_float32
def consistency_term(student: Tensor, teacher: Tensor, valid: Tensor | None = None, group: Group = None) -> Tensor:
    """``J = E ||f(x, theta', eta') - f(x, theta, eta)||^2``, the mean over the voxels inside the image.

    Args:
        student: logits of the student, (U, C, *S).
        teacher: logits of the teacher, (U, C, *S); no gradient reaches them.
        valid: (U, *S) bool, False outside the image; None means all.
        group: the ranks that the batch is spread over; the sum of their results is the batch's term.

    Source: the consistency cost of section 2 (it has no number). The authors' code divides by C as well, and weights
    with 1.0 on SVHN (C = 10): with the paper's sum over the classes that is a weight of 0.1.

    Example:
        >>> import torch
        >>> certain, undecided = torch.tensor([[20.0], [-20.0]])[None], torch.zeros(1, 2, 1)
        >>> round(consistency_term(undecided, certain).item(), 4)
        0.5
    """
    return masked_mean(squared_distance(student, teacher), valid, group)


class MeanTeacherLoss(nn.Module):
    """:func:`consistency_term` as a loss in MONAI's form: ``MeanTeacherLoss()(student, teacher)``."""

    def forward(self, student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
        return consistency_term(student, teacher, valid)
