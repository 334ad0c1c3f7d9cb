"""TwoStreamTrainer: nnU-Net's trainer with a stream of unlabelled cases beside the labelled one."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from alhvr_trainer.compatibility import require_nnunet_folders
from alhvr_trainer.files.checkpoints import seed_everything
from alhvr_trainer.files.plans_check import check_plans
from alhvr_trainer.settings import Settings, set_training_length, settings_from_plans, split_batch
from alhvr_trainer.training.cascade import check_previous_stage, previous_stage_folder
from alhvr_trainer.training.checks import check_batch_fits_ranks, check_plans_fit_dataset, check_split
from alhvr_trainer.training.distributed.ranks import from_rank_0, rank, rank_0_first, ranks, share
from alhvr_trainer.training.distributed.trainer import DistributedTrainer
from alhvr_trainer.training.samples import Samples
from alhvr_trainer.training.threads import respect_thread_limit
from alhvr_trainer.unlabeled.loader import LabeledAndUnlabeled, semi_supervised_loaders
from alhvr_trainer.unlabeled.stream import labeled_cases, unlabeled_dataset


class TwoStreamTrainer(DistributedTrainer):
    """L labelled and U unlabelled samples per step; settings of the ``alhvr`` block in the plans; the seed.

    Raises:
        InputError: the plans, the dataset or the unlabelled cases do not allow training (before it starts).
    """

    settings_class: type[Settings] = Settings
    """The keys of the ``alhvr`` block that the method knows."""
    batch_size: int
    labeled_batch_size: int
    unlabeled_batch_size: int
    seed: int

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's signature
    ):
        require_nnunet_folders("nnUNet_preprocessed", "nnUNet_results")
        respect_thread_limit(device)
        check_plans(plans, configuration, dataset_json, "the plans", self.settings_class)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.settings = settings_from_plans(self.configuration_manager.configuration, self.settings_class)
        set_training_length(self, self.settings)
        check_plans_fit_dataset(self)
        drawn = int.from_bytes(os.urandom(4), "big") if self.settings.seed is None else self.settings.seed
        self.seed = from_rank_0(drawn)

    def initialize(self) -> None:
        if self.device.type == "cuda":
            torch.set_autocast_dtype("cuda", getattr(torch, self.settings.mixed_precision))
            if self.settings.mixed_precision == "bfloat16":
                self.grad_scaler = None  # as wide a range of exponents as float32
        seed_everything(self.seed)
        super().initialize()
        self.print_to_log_file(
            f"ALHVR: {self.labeled_batch_size} labelled + {self.unlabeled_batch_size} unlabelled samples per step, "
            f"seed {self.seed}, settings {self.settings.as_dict()}"
        )

    def _set_batch_size_and_oversample(self) -> None:
        """Of the plans' batch, labelled and unlabelled samples are each divided over the ranks."""
        super()._set_batch_size_and_oversample()
        labeled, unlabeled = split_batch(self.batch_size, self.settings.unlabeled_batch_size)
        check_batch_fits_ranks(labeled, unlabeled, ranks())
        self.labeled_batch_size = self.my_labeled(labeled)
        self.unlabeled_batch_size = len(share(unlabeled, rank(), ranks()))
        self.batch_size = self.labeled_batch_size + self.unlabeled_batch_size

    def do_split(self):
        return labeled_cases(self, *super().do_split())

    def get_tr_and_val_datasets(self):
        with rank_0_first():  # what is missing (splits, preprocessed cases) is made once
            check_split(self)
            labeled, validation = super().get_tr_and_val_datasets()
            previous = previous_stage_folder(self)
            unlabeled = unlabeled_dataset(self, labeled.identifiers, validation.identifiers, previous)
        check_previous_stage(self, [*labeled.identifiers, *validation.identifiers], unlabeled.identifiers)
        both = LabeledAndUnlabeled(labeled, unlabeled, self.labeled_batch_size, self.unlabeled_batch_size)
        return both, validation

    def get_dataloaders(self):
        with semi_supervised_loaders():
            return super().get_dataloaders()

    def samples(self, batch: dict) -> Samples:
        """A batch on the training's device, its target taken apart.

        Args:
            batch: ``data`` (L+U, channels, *S); ``target`` (L+U, 1 + 1, *S), label and validity mask; with regions one
                channel each, and the ignore label's, in place of the label; with deep supervision a list, full
                resolution first.
        """
        labeled = self.labeled_batch_size
        target = batch["target"]
        scales = target if isinstance(target, list) else [target]
        labels = [scale[:labeled, :-1].to(self.device, non_blocking=True) for scale in scales]
        inside = scales[0][:, -1] > 0  # on the CPU, where the batch still lies
        return Samples(
            data=batch["data"].to(self.device, non_blocking=True),
            labels=labels if isinstance(target, list) else labels[0],
            valid=self._mask(inside),
            unlabeled_valid=self._mask(inside[labeled:]),
            labeled=labeled,
            labeled_voxels=int(torch.count_nonzero(inside[:labeled])),
            cases=[str(case) for case in batch["keys"]],
        )

    def _mask(self, inside: Tensor) -> Tensor | None:
        return None if bool(inside.all()) else inside.to(self.device, non_blocking=True)
