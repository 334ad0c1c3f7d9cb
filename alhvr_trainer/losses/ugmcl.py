"""UG-MCL: consistency with a teacher, and of segmentation with signed distances, where the teacher is certain.

Zhang et al., *Uncertainty-guided mutual consistency learning for semi-supervised medical image segmentation*,
Artificial Intelligence in Medicine 2023 (arXiv 2112.02508).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .precision import in_float32
from .sums import Group, total
from .uamt import certain_consistency_term, certain_voxels, entropy_threshold, predictive_entropy


def inside_probability(distance: Tensor, steepness: float = 1500.0) -> Tensor:
    """``sigmoid(-k d)``: 1 inside the object, where the signed distance d is negative, 0 outside.

    Args:
        distance: d, from -1 to 1, any shape.
        steepness: k. At 1500 the gradient vanishes but for ``|d|`` below about 0.003.

    Example:
        >>> import torch
        >>> inside_probability(torch.tensor([-0.01, 0.0, 0.01]))
        tensor([1.0000e+00, 5.0000e-01, 3.0590e-07])
    """
    return torch.sigmoid(-steepness * distance)


@in_float32
def intra_task_term(student: Tensor, teacher: Tensor, certain: Tensor, group: Group = None) -> Tensor:
    """``L_intra = 1/2 sum_v m_v |p_s,v - p_t,v|^2 / (C sum_v m_v)``; 0 where no voxel is certain.

    Args:
        student: logits of the student, (B, C, *S).
        teacher: logits of one stochastic pass of the teacher, (B, C, *S); no gradient reaches them.
        certain: m, (B, *S) bool, of :func:`~.uamt.certain_voxels`.
        group: the ranks that the batch is spread over; the sum of their results is the batch's term.

    Source: the authors' code, its factor 1/2 included; the C in the divisor is 2 there, for its two classes.
    """
    return certain_consistency_term(student, teacher, certain, group) / (2 * student.shape[1])


@in_float32
def cross_task_term(
    student: Tensor, distance: Tensor, certain: Tensor, steepness: float = 1500.0, group: Group = None
) -> Tensor:
    """``L_cross = sum_v m_v sum_c (sigmoid(-k d_c,v) - p_c,v)^2 / (K sum_v m_v)``; 0 where no voxel is certain.

    Gradients reach both tasks.

    Args:
        student: logits of the student, (B, 1 + K, *S), background first.
        distance: d, its signed distances to the K foreground classes, (B, K, *S), from -1 to 1.
        certain: m, (B, *S) bool, of :func:`~.uamt.certain_voxels`.
        steepness: k.
        group: the ranks that the batch is spread over; the sum of their results is the batch's term.

    Source: the paper, where the teacher's certainty guides this term as well. The authors' code has the mask as a
    comment, takes the mean over all voxels, and compares the background, too, whose distance nothing else trains.

    Example:
        >>> import torch
        >>> undecided, inside = torch.zeros(1, 2, 1), torch.full((1, 1, 1), -1.0)  # 1/2 against 1
        >>> cross_task_term(undecided, inside, torch.tensor([[True]]))
        tensor(0.2500)
    """
    foreground = torch.softmax(student, dim=1)[:, 1:]
    error = (inside_probability(distance, steepness) - foreground).square().mean(dim=1)
    return (error * certain).sum() / total(certain.sum(), group).clamp_min(1)


class UGMCLLoss(nn.Module):
    """UG-MCL's two consistency terms as a loss in MONAI's form.

    Args:
        steepness: k of :func:`inside_probability`.

    Example:
        >>> student, teacher = torch.randn(2, 2, 4, 32, 32)
        >>> distance = torch.tanh(torch.randn(2, 3, 32, 32))
        >>> UGMCLLoss()(student, distance, teacher, torch.softmax(teacher, dim=1), progress=0.5).shape
        torch.Size([])
    """

    def __init__(self, steepness: float = 1500.0) -> None:
        super().__init__()
        self.steepness = steepness

    def forward(
        self,
        student: Tensor,
        distance: Tensor,
        teacher: Tensor,
        mean_probabilities: Tensor,
        progress: float,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Scalar.

        Args:
            student, teacher: logits, (B, C, *S).
            distance: the student's signed distances to the foreground classes, (B, C - 1, *S).
            mean_probabilities: mean of the teacher's stochastic passes, (B, C, *S).
            progress: share of the training that is done, from 0 to 1.
            valid: (B, *S) bool, False outside the image; None means all.
        """
        threshold = entropy_threshold(progress, student.shape[1])
        certain = certain_voxels(predictive_entropy(mean_probabilities), threshold, valid)
        cross = cross_task_term(student, distance, certain, self.steepness)
        return intra_task_term(student, teacher, certain) + cross
