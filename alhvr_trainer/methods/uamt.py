"""UA-MT: Mean Teacher that learns only where its teacher is sure.

Yu et al., *Uncertainty-aware self-ensembling model for semi-supervised 3D left atrium segmentation*, MICCAI 2019.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from alhvr_trainer.methods.mean_teacher import MeanTeacherTrainer, squared_distance
from alhvr_trainer.settings import UAMTSettings
from alhvr_trainer.training.distributed.sums import Group, total
from alhvr_trainer.training.samples import Forward, Predictions, Samples, as_classes, first, full_resolution


def predictive_entropy(mean_probabilities: Tensor) -> Tensor:
    """``u = -sum_c mu_c log mu_c``, from 0 to log C, with mu the mean of the teacher's T stochastic predictions.

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
    return (0.75 + 0.25 * math.exp(-5.0 * (1.0 - progress) ** 2)) * math.log(classes)


def certain_voxels(entropy: Tensor, threshold: float, valid: Tensor | None = None) -> Tensor:
    """``I(u < H)`` inside the image, (U, *S) bool.

    Args:
        entropy: u of :func:`predictive_entropy`, (U, *S).
        threshold: H.
        valid: (U, *S) bool, False outside the image; None means all.
    """
    certain = entropy < threshold
    return certain if valid is None else certain & valid


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


class UAMTTrainer(MeanTeacherTrainer):
    """UA-MT inside nnU-Net: ``nnUNetv2_train D C F -tr UAMTTrainer``.

    ``loss = L_sup(student) + w(t) L_c`` (Eq. 1). Dropout acts in student and teacher, input noise on the teacher alone;
    T further passes of the teacher tell where it is certain. The student is what nnU-Net validates, saves and predicts
    with, without dropout, as in the authors' code.

    Source: Yu et al., MICCAI 2019; what differs from the paper stands in ``docs/methods.md``.
    """

    settings_class = UAMTSettings
    settings: UAMTSettings
    observed = ("certain",)
    predicts_with = "a"

    def forward(self, samples: Samples) -> Forward:
        unlabeled = samples.data[samples.labeled :]
        student = self.run("a", samples.data)
        with torch.no_grad():
            teacher = self.run("teacher", self.perturbed(unlabeled))
            mean = self.mean_prediction(unlabeled)
        return Forward(
            labeled={"a": first(student, samples.labeled)},
            logits={"a": full_resolution(student)[samples.labeled :], "teacher": full_resolution(teacher)},
            extra=mean,
        )

    def mean_prediction(self, data: Tensor) -> Tensor:
        """mu of Eq. 2: the teacher's probabilities, mean of T passes, each with noise and dropout of its own.

        One pass after the other, so that T costs no memory; the authors run two at a time, which draws alike.
        """
        passes = self.settings.uncertainty_passes
        mean = torch.zeros((), device=data.device)
        for _ in range(passes):
            logits = full_resolution(self.run("teacher", self.perturbed(data)))
            mean = mean + torch.softmax(as_classes(logits, self.label_manager.has_regions), dim=1) / passes
        return mean

    def unsupervised(self, predictions: Predictions, samples: Samples) -> dict[str, Tensor]:
        student, teacher, mean = predictions.logits["a"], predictions.logits["teacher"], predictions.extra
        threshold = entropy_threshold(self.progress, classes=mean.shape[1])
        certain = certain_voxels(predictive_entropy(mean), threshold, predictions.valid)
        return {
            "consistency": certain_consistency_term(student, teacher, certain, predictions.group),
            "certain": predictions.mean(certain),
        }
