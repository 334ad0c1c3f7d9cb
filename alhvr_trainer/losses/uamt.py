"""UA-MT: Mean Teacher that learns only where its teacher is sure.

Yu et al., *Uncertainty-aware self-ensembling model for semi-supervised 3D left atrium segmentation*, MICCAI 2019.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .mean_teacher import squared_distance
from .precision import in_float32
from .schedules import ramp_up
from .sums import Group, total


def predictive_entropy(mean_probabilities: Tensor) -> Tensor:
    """``u = -sum_c mu_c log mu_c``, from 0 to log C, of a prediction mu: in UA-MT, the mean of T passes of the teacher.

    Args:
        mean_probabilities: mu, (U, C, *S).

    Returns:
        u, (U, *S).

    Source: Eq. 2. The authors' code adds 1e-6 inside the logarithm; here ``0 log 0`` is 0, as the formula means it.

    Example:
        >>> import torch
        >>> predictive_entropy(torch.tensor([[[1.0, 0.5], [0.0, 0.5]]]))
        tensor([[0.0000, 0.6931]])
    """
    return torch.special.entr(mean_probabilities).sum(dim=1)


def entropy_threshold(progress: float, classes: int) -> float:
    """``H = (3/4 + 1/4 exp(-5 (1 - t / t_max)^2)) U_max``: ever more voxels count as certain.

    Args:
        progress: t / t_max, the share of the training that is done, from 0 to 1.
        classes: C; U_max = log C, the greatest possible entropy.

    Source: "from 3/4 U_max to U_max with the same Gaussian ramp-up" as the weight, section 3. The authors' code has
    U_max = log 2 for its two classes; SSL4MIS keeps log 2 for four.

    Example:
        >>> round(entropy_threshold(0.0, 2) / math.log(2), 3), entropy_threshold(1.0, 2) == math.log(2)
        (0.752, True)
    """
    return (0.75 + 0.25 * ramp_up(progress)) * math.log(classes)


def certain_voxels(entropy: Tensor, threshold: float | Tensor, valid: Tensor | None = None) -> Tensor:
    """``I(u < H)`` inside the image, (U, *S) bool.

    Args:
        entropy: u of :func:`predictive_entropy`, (U, *S).
        threshold: H.
        valid: (U, *S) bool, False outside the image; None means all.
    """
    certain = entropy < threshold
    return certain if valid is None else certain & valid


@in_float32
def certain_consistency_term(student: Tensor, teacher: Tensor, certain: Tensor, group: Group = None) -> Tensor:
    """``L_c = sum_v I(u_v < H) ||f'_v - f_v||^2 / sum_v I(u_v < H)``; 0 where no voxel is certain.

    Args:
        student: logits of the student, (U, C, *S).
        teacher: logits of one more stochastic pass of the teacher, (U, C, *S); no gradient reaches them.
        certain: mask of :func:`certain_voxels`, (U, *S).
        group: the ranks that the batch is spread over; the sum of their results is the batch's term.

    Source: Eq. 3. The authors' code divides by twice the number of voxels, i.e. by the two classes as well (SSL4MIS
    by two for any number of classes): a consistency weight of 0.05 here is their 0.1.
    """
    distance = squared_distance(student, teacher)
    return (distance * certain).sum() / total(certain.sum(), group).clamp_min(1)


class UAMTLoss(nn.Module):
    """UA-MT's consistency where the teacher is certain, as a loss in MONAI's form.

    Example:
        >>> student, teacher = torch.randn(2, 2, 4, 32, 32)
        >>> UAMTLoss()(student, teacher, torch.softmax(teacher, dim=1), progress=0.5).shape
        torch.Size([])
    """

    def forward(
        self, student: Tensor, teacher: Tensor, mean_probabilities: Tensor, progress: float, valid: Tensor | None = None
    ) -> Tensor:
        """Scalar.

        Args:
            student, teacher: logits, (U, C, *S).
            mean_probabilities: mu of :func:`predictive_entropy`, (U, C, *S).
            progress: share of the training that is done, from 0 to 1.
            valid: (U, *S) bool, False outside the image; None means all.
        """
        threshold = entropy_threshold(progress, student.shape[1])
        certain = certain_voxels(predictive_entropy(mean_probabilities), threshold, valid)
        return certain_consistency_term(student, teacher, certain)
