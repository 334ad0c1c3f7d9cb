"""AAU: a mean teacher, trusted where an autoencoder of label maps finds nothing to repair in its prediction.

Adiga, Dolz, and Lombaert, "Anatomically-aware uncertainty for semi-supervised image segmentation", Medical Image
Analysis 2024.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from alhvr_trainer.config.methods import method
from alhvr_trainer.config.settings import Positive
from alhvr_trainer.losses.aau import anatomical_uncertainty, anatomical_weight, weighted_consistency_term
from alhvr_trainer.losses.precision import at_least_float32
from alhvr_trainer.trainers.mean_teacher import MeanTeacherTrainer, NoisyTeacherSettings
from alhvr_trainer.trainers.parallel import broadcast, get_rank, rank_0_first
from alhvr_trainer.trainers.samples import Forward, Predictions, Samples, as_classes, full_resolution
from alhvr_trainer.trainers.shape_autoencoder import LabelCoding, ShapeAutoencoder
from alhvr_trainer.trainers.shape_training import new_autoencoder, trained_weights


class AAUSettings(NoisyTeacherSettings):
    """AAU (Adiga et al., Medical Image Analysis 2024)."""

    uncertainty_decay: float = Field(1.0, ge=0.0)
    """How fast the weight of a voxel falls with its uncertainty [gamma]."""
    code_noise: float = Field(0.01, ge=0.0)
    """Standard deviation of the Gaussian noise on the shape autoencoder's code, while it repairs predictions."""
    code_noise_bound: Annotated[float, Field(ge=0.0)] | None = 0.02
    """That noise is clamped to plus or minus this."""
    shape_iterations: Positive | None = None
    """Iterations of the shape autoencoder's training; default: a tenth of all iterations, at most 50000."""
    shape_batch_size: Positive = 4
    """Label maps in a batch of that training."""
    shape_learning_rate: float = Field(0.1, gt=0.0)
    """Its first learning rate."""


@method(
    "AAU",
    "anatomically aware uncertainty",
    summary="First an autoencoder learns from the labels to repair corrupted label maps. Then, as in Mean Teacher, the "
    "network learns to agree with the moving average of its own weights, the less so the more the autoencoder changes "
    "in that teacher's prediction.",
    reference="Adiga S., Dolz J., Lombaert H. Anatomically-aware uncertainty for semi-supervised image segmentation. "
    "Medical Image Analysis 2024.",
)
class AAUTrainer(MeanTeacherTrainer):
    """AAU inside nnU-Net: ``nnUNetv2_train D C F -tr AAUTrainer``.

    Before the first step, the shape autoencoder is trained on the labels of the fold's labeled cases, or taken from
    where an earlier training kept it (:func:`~alhvr_trainer.trainers.shape_training.trained_weights`). It stays frozen:
    ``loss = L_sup(student) + w(t) L_c``, where L_c takes in labeled and unlabeled samples, weighted voxel by voxel. The
    student is what nnU-Net validates, saves and predicts with, as in the authors' code.

    Source: Adiga et al., Medical Image Analysis 2024; ``docs/methods.md`` lists the differences from the authors' code.
    """

    settings_class = AAUSettings
    settings: AAUSettings
    observed = ("uncertainty",)
    compares_labeled = True
    predicts_with = "a"

    def build_partners(self) -> dict[str, nn.Module]:
        return {**super().build_partners(), "shape": new_autoencoder(self)}

    @property
    def autoencoder(self) -> ShapeAutoencoder:
        found = self.partners["shape"]
        assert isinstance(found, ShapeAutoencoder)
        return found

    def on_train_start(self) -> None:
        super().on_train_start()
        if bool(self.autoencoder.trained):  # a training that continues has it from its checkpoint
            return
        with rank_0_first():
            weights = trained_weights(self) if get_rank() == 0 else None
        self.autoencoder.load_state_dict(broadcast(weights))  # the machines of the ranks need not share a disk
        if self.display is not None:
            self.display.restart()

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.autoencoder.eval()  # batch norm as it was trained

    def forward(self, samples: Samples) -> Forward:
        """The student on all samples, the teacher on the same under noise, and its predictions repaired."""
        student = self.run("a", samples.data)
        with torch.no_grad():
            teacher = full_resolution(self.run("teacher", self.perturbed(samples.data)))
            maps = LabelCoding.of(self.label_manager).of_logits(teacher, samples.valid).to(samples.data.dtype)
            repaired = self.autoencoder(maps, self.settings.code_noise, self.settings.code_noise_bound)
        forward = self.sorted_outputs({"a": student}, samples)
        return replace(forward, logits={**forward.logits, "teacher": teacher}, maps={"repaired": repaired})

    def unsupervised(self, predictions: Predictions, samples: Samples) -> dict[str, Tensor]:
        student, teacher = predictions.logits["a"], predictions.logits["teacher"]
        repaired = self.repaired_probabilities(predictions.maps["repaired"])
        uncertainty = anatomical_uncertainty(repaired, torch.softmax(teacher, dim=1))
        weight = anatomical_weight(uncertainty, self.settings.uncertainty_decay)
        return {
            "consistency": weighted_consistency_term(student, teacher, weight, predictions.valid, predictions.group),
            "uncertainty": predictions.mean(uncertainty.mean(dim=1)),
        }

    def repaired_probabilities(self, logits: Tensor) -> Tensor:
        """d, (B, C, *S): each class by itself, as the autoencoder was trained; with regions "out" and "in"."""
        if self.label_manager.has_regions:
            return torch.softmax(as_classes(logits, regions=True), dim=1)
        return torch.sigmoid(at_least_float32(logits))
