"""The fair baseline: nnU-Net itself at the plans' length, with as many labelled samples per step as ALHVRTrainer."""

from __future__ import annotations

import torch

from alhvr_trainer.files.checkpoints import seed_everything
from alhvr_trainer.files.plans_check import check_plans
from alhvr_trainer.settings import Settings, set_training_length, settings_from_plans, split_batch
from alhvr_trainer.training.checks import check_batch_fits_ranks
from alhvr_trainer.training.distributed.ranks import ranks
from alhvr_trainer.training.distributed.trainer import DistributedTrainer
from alhvr_trainer.training.threads import respect_thread_limit
from alhvr_trainer.unlabeled.stream import labeled_cases


class SupervisedTrainer(DistributedTrainer):
    """nnU-Net's trainer, unchanged but for lengths, seed and the number L of samples, from the ``alhvr`` block.

    It sees the fold's labelled cases only. ``nnUNetv2_train D C F -tr SupervisedTrainer -p ALHVRPlans``.
    """

    batch_size: int

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's signature
    ):
        check_plans(plans, configuration, dataset_json, "the plans", Settings)
        super().__init__(plans, configuration, fold, dataset_json, device)
        respect_thread_limit(device)
        self.settings = settings_from_plans(self.configuration_manager.configuration, Settings)
        set_training_length(self, self.settings)
        self.seed = self.settings.seed

    def initialize(self) -> None:
        if self.seed is not None:
            seed_everything(self.seed)
        super().initialize()

    def do_split(self):
        return labeled_cases(self, *super().do_split())

    def _set_batch_size_and_oversample(self) -> None:
        super()._set_batch_size_and_oversample()
        labeled, unlabeled = split_batch(self.batch_size, self.settings.unlabeled_batch_size)
        check_batch_fits_ranks(labeled, unlabeled, ranks())
        self.batch_size = self.my_labeled(labeled)
