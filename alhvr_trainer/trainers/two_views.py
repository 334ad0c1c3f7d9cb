"""What trainers with two views of every patch share: the views, and a network's average that predicts."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from alhvr_trainer.config.settings import Settings, Share
from alhvr_trainer.losses.schedules import average_decay
from alhvr_trainer.trainers.partners import move_average, unwrapped
from alhvr_trainer.trainers.semi_supervised import SemiSupervisedTrainer
from alhvr_trainer.trainers.views import INSIDE_UNLABELED, two_view_pipeline


class TwoViewSettings(Settings):
    """Of the strong view and of the average."""

    ema_decay: Share = 0.999
    """Decay of the moving average of the weights that predicts."""
    strong_transforms: int = Field(2, ge=0)
    """How many of nnU-Net's intensity transforms RandAugment draws for the strong view."""
    cutout: Share = 0.5
    """Edge of the box that the strong view lacks, as a share of the patch; 0: none."""


class TwoViewTrainer(SemiSupervisedTrainer):
    """Each patch comes as two views, cut out of nnU-Net's own augmentation; a moving average of the weights predicts.

    The views: :func:`alhvr_trainer.trainers.views.two_view_pipeline`. Labeled patches are augmented as nnU-Net does.
    """

    settings_class = TwoViewSettings
    settings: TwoViewSettings
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

    def after_step(self) -> None:
        average, network = unwrapped(self.partners["average"]), unwrapped(self.network)
        decay = self.number("decay", lambda: average_decay(self.step, self.settings.ema_decay))
        move_average(average, network, decay)
        for mine, its in zip(average.buffers(), network.buffers(), strict=True):
            mine.copy_(its)  # batch norm's statistics: the average sees no sample in training
