"""Mean Teacher: a student learns to agree with the moving average of its own weights.

Tarvainen & Valpola, *Mean teachers are better role models*, NeurIPS 2017.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from alhvr_trainer.config.methods import method
from alhvr_trainer.config.settings import Settings, Share
from alhvr_trainer.losses.mean_teacher import consistency_term, noisy
from alhvr_trainer.losses.schedules import average_decay
from alhvr_trainer.trainers.dropout import add_dropout
from alhvr_trainer.trainers.partners import move_average, unwrapped
from alhvr_trainer.trainers.samples import Forward, Predictions, Samples, first, full_resolution
from alhvr_trainer.trainers.semi_supervised import SemiSupervisedTrainer


class MeanTeacherSettings(Settings):
    """Mean Teacher (Tarvainen & Valpola, NeurIPS 2017): 0.1 is the authors' weight on SVHN, see ``docs/methods.md``."""

    # the authors: 40 000 of 180 000 steps (SVHN) or of 150 000 (CIFAR-10)
    ramp_fraction: Share = 0.25
    """Share of all training iterations over which the weight ramps up."""
    ema_decay: Share = 0.999
    """Decay of the teacher's moving average after the ramp-up [alpha]."""
    ramp_ema_decay: Share | None = 0.99
    """The same during the ramp-up; null: no other."""
    input_noise: float = Field(0.15, ge=0.0)
    """Standard deviation of the Gaussian noise on the input, in normalized intensities."""
    input_noise_bound: Annotated[float, Field(ge=0.0)] | None = None
    """The noise is clamped to plus or minus this; default: not at all."""
    dropout: float = Field(0.0, ge=0.0, le=0.99)
    """Share of the channels dropped after the deepest encoder stage and after the last decoder stage."""


class NoisyTeacherSettings(MeanTeacherSettings):
    """Mean Teacher as the code of UA-MT sets it, and that of the methods after it."""

    ramp_fraction: Share = 1.0
    """Share of all training iterations over which the weight ramps up."""
    ema_decay: Share = 0.99
    """Decay of the teacher's moving average [alpha]."""
    ramp_ema_decay: Share | None = None
    """The same during the ramp-up; null: no other."""
    input_noise: float = Field(0.1, ge=0.0)
    """Standard deviation of the Gaussian noise on the teacher's input, in normalized intensities."""
    input_noise_bound: Annotated[float, Field(ge=0.0)] | None = 0.2
    """The noise is clamped to plus or minus this."""


@method(
    "Mean Teacher",
    "averaged weights as targets",
    summary="On unlabeled images the network learns to agree, under noise on the input, with a teacher: the moving "
    "average of its own weights, which is also what predicts.",
    reference="Tarvainen A., Valpola H. Mean teachers are better role models: Weight-averaged consistency targets "
    "improve semi-supervised deep learning results. NeurIPS 2017.",
)
class MeanTeacherTrainer(SemiSupervisedTrainer):
    """Mean Teacher inside nnU-Net: ``nnUNetv2_train D C F -tr MeanTeacherTrainer``.

    ``loss = L_sup(student) + w(t) J``; after each step the teacher's weights move towards the student's (Eq. 1). On
    unlabeled samples both see the same patch, each under Gaussian noise of its own. The teacher is what nnU-Net
    validates, saves and predicts with: the paper finds it the better of the two.

    Source: Tarvainen & Valpola, NeurIPS 2017; ``docs/methods.md`` lists the differences from the paper.
    """

    settings_class: type[MeanTeacherSettings] = MeanTeacherSettings
    settings: MeanTeacherSettings
    terms: tuple[str, ...] = ("consistency",)
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
        move_average(self.partners["teacher"], self.network, self.number("decay", self._decay))

    def _decay(self) -> float:
        """Of the teacher; alpha is smaller during the ramp-up, when the student improves quickly."""
        ramp_end = self.settings.warm_up_fraction + self.settings.ramp_fraction
        alpha, in_ramp_up = self.settings.ema_decay, self.progress < ramp_end
        if in_ramp_up and self.settings.ramp_ema_decay is not None:
            alpha = self.settings.ramp_ema_decay
        return average_decay(self.step, alpha)
