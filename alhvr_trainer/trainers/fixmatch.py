"""FixMatch: what a network is sure of on a weakly augmented image, it learns on the strongly augmented one.

Sohn et al., *FixMatch: simplifying semi-supervised learning with consistency and confidence*, NeurIPS 2020.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from alhvr_trainer.config.methods import method
from alhvr_trainer.config.settings import Share
from alhvr_trainer.losses.fixmatch import confident_labels, pseudo_label_term
from alhvr_trainer.trainers.samples import Forward, Predictions, Samples, first, full_resolution
from alhvr_trainer.trainers.two_views import TwoViewSettings, TwoViewTrainer


class FixMatchSettings(TwoViewSettings):
    """FixMatch (Sohn et al., NeurIPS 2020)."""

    consistency_weight: float = Field(1.0, ge=0.0)
    """Weight of the unsupervised term [lambda_u]."""
    # the share of confident voxels is the ramp-up
    ramp_fraction: Share = 0.0
    """Share of all training iterations over which the weight ramps up."""
    confidence_threshold: Share = 0.95
    """Confidence on the weak view from which on a voxel's pseudo-label counts [tau]."""


@method(
    "FixMatch",
    "consistency and confidence",
    summary="What the network is sure of on a weakly augmented unlabeled image, it learns on the strongly augmented "
    "one. The moving average of its weights predicts.",
    reference="Sohn K. et al. FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence. NeurIPS "
    "2020.",
)
class FixMatchTrainer(TwoViewTrainer):
    """FixMatch inside nnU-Net: ``nnUNetv2_train D C F -tr FixMatchTrainer``.

    ``loss = L_sup + lambda_u l_u``. Each patch comes as two views, cut out of nnU-Net's own augmentation
    (:func:`alhvr_trainer.trainers.views.two_view_pipeline`); labeled patches are augmented as nnU-Net does. The moving
    average of the weights is what nnU-Net validates, saves and predicts with, as in the authors' code.

    Source: Sohn et al., NeurIPS 2020; ``docs/methods.md`` lists the differences from the paper.
    """

    settings_class = FixMatchSettings
    settings: FixMatchSettings
    terms = ("pseudo_label",)
    observed = ("confident",)

    def forward(self, samples: Samples) -> Forward:
        weak, second = self.views(samples.data)
        outputs = self.run("a", second)
        with torch.no_grad():
            targets = self.run("a", weak[samples.labeled :])
        return Forward(
            labeled={"a": first(outputs, samples.labeled)},
            logits={"weak": full_resolution(targets), "strong": full_resolution(outputs)[samples.labeled :]},
        )

    def unsupervised(self, predictions: Predictions, samples: Samples) -> dict[str, Tensor]:
        labels, confident = confident_labels(predictions.logits["weak"], self.settings.confidence_threshold)
        strong, valid, group = predictions.logits["strong"], predictions.valid, predictions.group
        return {
            "pseudo_label": pseudo_label_term(strong, labels, confident, valid, group),
            "confident": predictions.mean(confident),
        }
