"""AC-MT: Mean Teacher that learns only where the networks are unsure; UA-MT's selection turned around.

Xu et al., *Ambiguity-selective consistency regularization for mean-teacher semi-supervised medical image segmentation*,
Medical Image Analysis 2023.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .mean_teacher import squared_distance
from .precision import in_float32
from .schedules import ramp_up
from .sums import Group, total
from .uamt import predictive_entropy


def ambiguity_threshold(progress: float, start: float, end: float, classes: int) -> float:
    """``H = (start + (end - start) exp(-5 (1 - t / t_max)^2)) log C``: from which entropy on a voxel is ambiguous.

    Args:
        progress: t / t_max, the share of the training that is done, from 0 to 1.
        start, end: shares of log C, the greatest possible entropy; ``end`` is reached at the end of the training.
        classes: C.

    Source: with the student's entropy the paper goes from 0.75 down to 0.6, ever more voxels; the authors' code, which
    has this as a comment, from 0.75 up to 0.95, ever fewer. With the entropy of dropout passes it goes from 0.75 up to
    0.9, of log 2.

    Example:
        >>> round(ambiguity_threshold(0.0, 0.75, 0.6, 2) / math.log(2), 3), ambiguity_threshold(1.0, 0.75, 1.0, 2)
        (0.749, 0.6931471805599453)
    """
    return (start + (end - start) * ramp_up(progress)) * math.log(classes)


def ambiguous_voxels(entropy: Tensor, threshold: float | Tensor, valid: Tensor | None = None) -> Tensor:
    """``I(u >= H)`` inside the image, (U, *S) bool.

    Args:
        entropy: u, (U, *S), in nats: of the student's prediction, or of the mean of its dropout passes.
        threshold: H of :func:`ambiguity_threshold`.
        valid: (U, *S) bool, False outside the image; None means all.

    Example:
        >>> import torch
        >>> ambiguous_voxels(torch.tensor([[0.1, 0.6, 0.69]]), 0.6)
        tensor([[False,  True,  True]])
    """
    ambiguous = entropy >= threshold
    return ambiguous if valid is None else ambiguous & valid


@in_float32
def ambiguous_consistency_term(student: Tensor, teacher: Tensor, ambiguous: Tensor, group: Group = None) -> Tensor:
    """``L_c = sum_v I(u_v >= H) |p_s,v - p_t,v|^2 / (C sum_v I(u_v >= H))``; 0 where no voxel is ambiguous.

    The mean over the ambiguous voxels and the classes.

    Args:
        student: logits of the student, (U, C, *S).
        teacher: logits of the teacher, (U, C, *S); no gradient reaches them.
        ambiguous: mask of :func:`ambiguous_voxels`, (U, *S).
        group: the ranks that the batch is spread over; the sum of their results is the batch's term.

    Source: the authors' code divides by voxels times classes where the mask comes from the student's entropy, as here,
    and by voxels alone where it comes from dropout passes: a consistency weight of 0.1 C here is their 0.1 then.

    Example:
        >>> import torch
        >>> undecided, sure = torch.zeros(1, 2, 1), torch.tensor([[[20.0], [-20.0]]])
        >>> round(ambiguous_consistency_term(undecided, sure, torch.tensor([[True]])).item(), 4)
        0.25
    """
    distance = squared_distance(student, teacher)
    return (distance * ambiguous).sum() / (student.shape[1] * total(ambiguous.sum(), group).clamp_min(1))


class ACMTLoss(nn.Module):
    """AC-MT's consistency where a prediction is ambiguous, as a loss in MONAI's form.

    Args:
        start, end: of :func:`ambiguity_threshold`; the default is the paper's, for the student's entropy.

    Example:
        >>> student, teacher = torch.randn(2, 2, 4, 32, 32)
        >>> ACMTLoss()(student, teacher, progress=0.5).shape
        torch.Size([])
    """

    def __init__(self, start: float = 0.75, end: float = 0.6) -> None:
        super().__init__()
        self.thresholds = start, end

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        progress: float,
        valid: Tensor | None = None,
        mean_probabilities: Tensor | None = None,
    ) -> Tensor:
        """Scalar.

        Args:
            student, teacher: logits, (U, C, *S).
            progress: share of the training that is done, from 0 to 1.
            valid: (U, *S) bool, False outside the image; None means all.
            mean_probabilities: of the student's dropout passes, (U, C, *S); None: the entropy is that of ``student``.
        """
        judged = torch.softmax(student.detach(), dim=1) if mean_probabilities is None else mean_probabilities
        threshold = ambiguity_threshold(progress, *self.thresholds, student.shape[1])
        ambiguous = ambiguous_voxels(predictive_entropy(judged), threshold, valid)
        return ambiguous_consistency_term(student, teacher, ambiguous)
