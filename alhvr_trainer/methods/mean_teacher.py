"""Mean Teacher: a student learns to agree with the moving average of its own weights.

Tarvainen & Valpola, *Mean teachers are better role models*, NeurIPS 2017.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from alhvr_trainer.methods.dropout import add_dropout
from alhvr_trainer.settings import MeanTeacherSettings
from alhvr_trainer.training.distributed.sums import Group
from alhvr_trainer.training.distributed.trainer import unwrapped
from alhvr_trainer.training.networks import move_average
from alhvr_trainer.training.samples import Forward, Predictions, Samples, first, full_resolution
from alhvr_trainer.training.schedule import average_decay
from alhvr_trainer.training.semi_supervised import SemiSupervisedTrainer
from alhvr_trainer.training.voxels import masked_mean


def noisy(images: Tensor, deviation: float, bound: float | None = None) -> Tensor:
    """``x + n`` with ``n ~ Normal(0, deviation^2)``, drawn anew for every voxel: eta and eta' of the paper.

    Args:
        images: x, in nnU-Net's normalised intensities, whose standard deviation is about 1.
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
        >>> certain, torn = torch.tensor([[20.0], [-20.0]])[None], torch.zeros(1, 2, 1)
        >>> round(consistency_term(torn, certain).item(), 4)
        0.5
    """
    return masked_mean(squared_distance(student, teacher), valid, group)


class MeanTeacherTrainer(SemiSupervisedTrainer):
    """Mean Teacher inside nnU-Net: ``nnUNetv2_train D C F -tr MeanTeacherTrainer``.

    ``loss = L_sup(student) + w(t) J``; after each step the teacher's weights move towards the student's (Eq. 1). On
    unlabelled samples both see the same patch, each under Gaussian noise of its own. The teacher is what nnU-Net
    validates, saves and predicts with: the paper finds it the better of the two.

    Source: Tarvainen & Valpola, NeurIPS 2017; what differs from the paper stands in ``docs/methods.md``.
    """

    settings_class = MeanTeacherSettings
    settings: MeanTeacherSettings
    terms = ("consistency",)
    predicts_with = "teacher"

    def build_partners(self) -> dict[str, nn.Module]:
        teacher = self.averaged_network()
        for network in (self.network, teacher):
            add_dropout(unwrapped(network), self.settings.dropout)
        return {"teacher": teacher}

    def perturbed(self, data: Tensor) -> Tensor:
        """Noise on the image channels; in a cascade the previous stage's segmentation follows these."""
        images = len(self.configuration_manager.use_mask_for_norm)
        noised = noisy(data[:, :images], self.settings.input_noise, self.settings.input_noise_bound)
        return torch.cat((noised, data[:, images:]), dim=1)

    def forward(self, samples: Samples) -> Forward:
        labeled, unlabeled = samples.data[: samples.labeled], samples.data[samples.labeled :]
        student = self.run("a", torch.cat((labeled, self.perturbed(unlabeled))))
        with torch.no_grad():
            teacher = self.run("teacher", self.perturbed(unlabeled))
        return Forward(
            labeled={"a": first(student, samples.labeled)},
            logits={"a": full_resolution(student)[samples.labeled :], "teacher": full_resolution(teacher)},
        )

    def unsupervised(self, predictions: Predictions, samples: Samples) -> dict[str, Tensor]:
        student, teacher = predictions.logits["a"], predictions.logits["teacher"]
        return {"consistency": consistency_term(student, teacher, predictions.valid, predictions.group)}

    def after_step(self) -> None:
        """Move the teacher; alpha is smaller during the ramp-up, when the student improves quickly."""
        decay, in_ramp_up = self.settings.ema_decay, self.progress < self.settings.ramp_fraction
        if in_ramp_up and self.settings.ramp_ema_decay is not None:
            decay = self.settings.ramp_ema_decay
        move_average(self.partners["teacher"], self.network, average_decay(self.step, decay))
