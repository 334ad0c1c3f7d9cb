"""FixMatch: what a network is sure of on a weakly augmented image, it learns on the strongly augmented one.

Sohn et al., *FixMatch: simplifying semi-supervised learning with consistency and confidence*, NeurIPS 2020.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from alhvr_trainer.config.methods import method
from alhvr_trainer.config.settings import Settings, Share
from alhvr_trainer.losses.fixmatch import confident_labels, pseudo_label_term
from alhvr_trainer.losses.schedules import average_decay
from alhvr_trainer.trainers.partners import move_average, unwrapped
from alhvr_trainer.trainers.samples import Forward, Predictions, Samples, first, full_resolution
from alhvr_trainer.trainers.semi_supervised import SemiSupervisedTrainer
from alhvr_trainer.trainers.views import INSIDE_UNLABELED, two_view_pipeline


class FixMatchSettings(Settings):
    """FixMatch (Sohn et al., NeurIPS 2020)."""

    consistency_weight: float = Field(1.0, ge=0.0)
    """Weight of the unsupervised term [lambda_u]."""
    # the share of confident voxels is the ramp-up
    ramp_fraction: Share = 0.0
    """Share of all training iterations over which the weight ramps up."""
    confidence_threshold: Share = 0.95
    """Confidence on the weak view from which on a voxel's pseudo-label counts [tau]."""
    ema_decay: Share = 0.999
    """Decay of the moving average of the weights that predicts."""
    strong_transforms: int = Field(2, ge=0)
    """How many of nnU-Net's intensity transforms RandAugment draws for the strong view."""
    cutout: Share = 0.5
    """Edge of the box that the strong view lacks, as a share of the patch; 0: none."""


@method(
    "FixMatch",
    "consistency and confidence",
    summary="What the network is sure of on a weakly augmented unlabeled image, it learns on the strongly augmented "
    "one. The moving average of its weights predicts.",
    reference="Sohn K. et al. FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence. NeurIPS "
    "2020.",
)
class FixMatchTrainer(SemiSupervisedTrainer):
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
    predicts_with = "average"

    def build_partners(self) -> dict[str, nn.Module]:
        return {"average": self.averaged_network()}

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> Any:
        pipeline = super().get_training_transforms(*args, **kwargs)
        channels = len(self.configuration_manager.use_mask_for_norm)
        return two_view_pipeline(pipeline, channels, self.settings.strong_transforms, self.settings.cutout)

    def get_tr_and_val_datasets(self):
        both, validation = super().get_tr_and_val_datasets()
        both.inside_unlabeled = INSIDE_UNLABELED
        return both, validation

    def views(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """Weak and second view, each (L+U, channels, *S), out of a batch (L+U, 2 x image channels + others, *S).

        In a cascade the others are the previous stage's segmentation, which both views share.
        """
        images = data.shape[1] - self.num_input_channels
        shared = data[:, 2 * images :]
        return torch.cat((data[:, :images], shared), dim=1), torch.cat((data[:, images : 2 * images], shared), dim=1)

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

    def after_step(self) -> None:
        average, network = unwrapped(self.partners["average"]), unwrapped(self.network)
        decay = self.number("decay", lambda: average_decay(self.step, self.settings.ema_decay))
        move_average(average, network, decay)
        for mine, its in zip(average.buffers(), network.buffers(), strict=True):
            mine.copy_(its)  # batch norm's statistics: the average sees no sample in training
