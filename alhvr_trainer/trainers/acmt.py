"""AC-MT: Mean Teacher that learns only where its student is unsure.

Xu et al., *Ambiguity-selective consistency regularization for mean-teacher semi-supervised medical image segmentation*,
Medical Image Analysis 2023.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from alhvr_trainer.config.methods import method
from alhvr_trainer.config.settings import Share
from alhvr_trainer.losses.acmt import ambiguity_threshold, ambiguous_consistency_term, ambiguous_voxels
from alhvr_trainer.losses.uamt import predictive_entropy
from alhvr_trainer.trainers.samples import Predictions, Samples
from alhvr_trainer.trainers.uamt import UAMTSettings, UAMTTrainer

FINAL_THRESHOLDS = {"entropy": 0.6, "dropout": 0.9}


class ACMTSettings(UAMTSettings):
    """AC-MT (Xu et al., Medical Image Analysis 2023)."""

    # the authors: 6000 of 8000 iterations
    ramp_fraction: Share = 0.75
    """Share of all training iterations over which the weight ramps up."""
    uncertainty_passes: int = Field(8, ge=1)
    """With ambiguity "dropout", passes of the student whose mean prediction says where it is unsure."""
    ambiguity: Literal["entropy", "dropout"] = "entropy"
    """What says where the student is unsure: the entropy of its prediction, or of its mean under noise and dropout."""
    ambiguity_threshold: Share = 0.75
    """Entropy from which on a voxel is ambiguous, as a share of log C, when training starts."""
    final_ambiguity_threshold: Share | None = None
    """The same when training ends; default: 0.6 with ambiguity "entropy", 0.9 with "dropout"."""


@method(
    "AC-MT",
    "ambiguity-consensus mean teacher",
    summary="On unlabeled images the network learns to agree with a teacher, the moving average of its own weights, "
    "where its own prediction is ambiguous.",
    reference="Xu Z. et al. Ambiguity-selective consistency regularization for mean-teacher semi-supervised medical "
    "image segmentation. Medical Image Analysis 2023.",
)
class ACMTTrainer(UAMTTrainer):
    """AC-MT inside nnU-Net: ``nnUNetv2_train D C F -tr ACMTTrainer``.

    ``loss = L_sup(student) + w(t) L_c``. Networks, dropout and noise are those of UA-MT; the voxels that count are not
    the teacher's certain ones but the student's ambiguous ones. The student is what nnU-Net validates, saves and
    predicts with, without dropout.

    Source: Xu et al., Medical Image Analysis 2023; ``docs/methods.md`` lists the differences from paper and code.
    """

    settings_class = ACMTSettings
    settings: ACMTSettings
    observed = ("ambiguous",)

    def judgment(self, data: Tensor) -> dict[str, Tensor]:
        return {"mean": self.mean_prediction(data, "a")} if self.settings.ambiguity == "dropout" else {}

    def unsupervised(self, predictions: Predictions, samples: Samples) -> dict[str, Tensor]:
        student, teacher = predictions.logits["a"], predictions.logits["teacher"]
        classes = student.shape[1]
        judged = predictions.maps.get("mean")
        if judged is None:
            judged = torch.softmax(student.detach(), dim=1)
        threshold = self.number("threshold", lambda: self.threshold(classes))
        ambiguous = ambiguous_voxels(predictive_entropy(judged), threshold, predictions.valid)
        return {
            "consistency": ambiguous_consistency_term(student, teacher, ambiguous, predictions.group),
            "ambiguous": predictions.mean(ambiguous),
        }

    def threshold(self, classes: int) -> float:
        """Of this step, in nats."""
        settings = self.settings
        final = settings.final_ambiguity_threshold
        end = FINAL_THRESHOLDS[settings.ambiguity] if final is None else final
        return ambiguity_threshold(self.progress, settings.ambiguity_threshold, end, classes)
