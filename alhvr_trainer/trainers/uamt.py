"""UA-MT: Mean Teacher that learns only where its teacher is sure.

Yu et al., *Uncertainty-aware self-ensembling model for semi-supervised 3D left atrium segmentation*, MICCAI 2019.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from alhvr_trainer.config.methods import method
from alhvr_trainer.losses.uamt import certain_consistency_term, certain_voxels, entropy_threshold, predictive_entropy
from alhvr_trainer.trainers.mean_teacher import MeanTeacherTrainer, NoisyTeacherSettings
from alhvr_trainer.trainers.samples import Forward, Predictions, Samples, as_classes, first, full_resolution


class UAMTSettings(NoisyTeacherSettings):
    """UA-MT (Yu et al., MICCAI 2019)."""

    dropout: float = Field(0.5, ge=0.0, le=0.99)
    """Share of the channels dropped after the deepest encoder stage and after the last decoder stage."""
    uncertainty_passes: int = Field(8, ge=1)
    """Passes of the teacher whose mean prediction says where it is certain [T]."""


@method(
    "UA-MT",
    "uncertainty-aware mean teacher",
    summary="On unlabeled images the network learns to agree with a teacher, the moving average of its own weights, "
    "where several passes of that teacher under noise and dropout show that it is certain.",
    reference="Yu L. et al. Uncertainty-Aware Self-ensembling Model for Semi-supervised 3D Left Atrium Segmentation. "
    "MICCAI 2019.",
)
class UAMTTrainer(MeanTeacherTrainer):
    """UA-MT inside nnU-Net: ``nnUNetv2_train D C F -tr UAMTTrainer``.

    ``loss = L_sup(student) + w(t) L_c`` (Eq. 1). Dropout acts in student and teacher, input noise on the teacher alone;
    T further passes of the teacher tell where it is certain. The student is what nnU-Net validates, saves and predicts
    with, without dropout, as in the authors' code.

    Source: Yu et al., MICCAI 2019; ``docs/methods.md`` lists the differences from the paper.
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
            maps = self.judgment(unlabeled)
        return Forward(
            labeled={"a": first(student, samples.labeled)},
            logits={"a": full_resolution(student)[samples.labeled :], "teacher": full_resolution(teacher)},
            maps=maps,
        )

    def judgment(self, data: Tensor) -> dict[str, Tensor]:
        """The maps that tell which of the unlabeled voxels count."""
        return {"mean": self.mean_prediction(data)}

    def mean_prediction(self, data: Tensor, name: str = "teacher") -> Tensor:
        """mu of Eq. 2: a network's probabilities, mean of T passes, each with noise and dropout of its own.

        One pass after the other, so that T costs no memory; the authors run two at a time, which draws alike.
        """
        passes = self.settings.uncertainty_passes
        mean = torch.zeros((), device=data.device)
        for _ in range(passes):
            logits = full_resolution(self.run(name, self.perturbed(data)))
            mean = mean + torch.softmax(as_classes(logits, self.label_manager.has_regions), dim=1) / passes
        return mean

    def unsupervised(self, predictions: Predictions, samples: Samples) -> dict[str, Tensor]:
        student, teacher = predictions.logits["a"], predictions.logits["teacher"]
        mean = predictions.maps["mean"]
        classes = mean.shape[1]  # the function is kept, the maps must not be
        threshold = self.number("threshold", lambda: entropy_threshold(self.progress, classes))
        certain = certain_voxels(predictive_entropy(mean), threshold, predictions.valid)
        return {
            "consistency": certain_consistency_term(student, teacher, certain, predictions.group),
            "certain": predictions.mean(certain),
        }
