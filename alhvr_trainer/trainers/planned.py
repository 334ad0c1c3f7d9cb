"""PlannedTrainer: nnU-Net's trainer, set by the plans' ``alhvr`` block, with or without unlabelled cases."""

from __future__ import annotations

import os

import torch

from alhvr_trainer.compatibility import require_nnunet_folders
from alhvr_trainer.config.plans import check_plans
from alhvr_trainer.config.settings import Settings, set_training_length, settings_from_plans, split_batch
from alhvr_trainer.data.batches import Draws, forced_foreground
from alhvr_trainer.data.loader import loaders_in_order
from alhvr_trainer.data.splits import NO_VALIDATION, write_split_for_few_cases
from alhvr_trainer.data.stream import labeled_cases
from alhvr_trainer.trainers.checkpoints import seed_everything
from alhvr_trainer.trainers.checks import (
    check_batch_fits_ranks,
    check_plans_fit_dataset,
    check_split,
    hidden_intensities,
    preprocessed_cases,
)
from alhvr_trainer.trainers.display import Display
from alhvr_trainer.trainers.distributed import DistributedTrainer
from alhvr_trainer.trainers.ranks import from_rank_0, rank, rank_0_first, ranks, share
from alhvr_trainer.trainers.threads import respect_thread_limit


class PlannedTrainer(DistributedTrainer):
    """Settings of the ``alhvr`` block: lengths, seed, precision, samples per step. One line per epoch on the screen.

    Every batch depends on the seed and its number alone: it is the same with any number of workers, and in a training
    that is continued.

    Raises:
        InputError: the plans or the dataset do not allow training (before it starts).
    """

    settings_class: type[Settings] = Settings
    """The keys of the ``alhvr`` block that the method knows."""
    settings: Settings
    batch_size: int
    labeled_batch_size: int
    unlabeled_batch_size: int
    seed: int
    display: Display | None = None
    _in_epoch: bool = False

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

    # --- batches ----------------------------------------------------------------------------------------------------

    def samples_per_step(self) -> tuple[int, int]:
        """Labelled and unlabelled ones, of all ranks together."""
        return self._split_batch()

    def _set_batch_size_and_oversample(self) -> None:
        """Labelled and unlabelled samples are each divided over the ranks; the plans' batch is both."""
        super()._set_batch_size_and_oversample()
        check_batch_fits_ranks(*self._split_batch(), ranks())
        labeled, unlabeled = self.samples_per_step()
        self.labeled_batch_size = len(share(labeled, rank(), ranks()))
        self.unlabeled_batch_size = len(share(unlabeled, rank(), ranks()))
        self.batch_size = self.labeled_batch_size + self.unlabeled_batch_size

    def _split_batch(self) -> tuple[int, int]:
        return split_batch(self.configuration_manager.batch_size, self.settings.unlabeled_batch_size)

    def do_split(self):
        if self.fold != "all":
            write_split_for_few_cases(self.preprocessed_dataset_folder_base, preprocessed_cases(self))
        training, validation = labeled_cases(self, *super().do_split())
        if self.fold != "all" and set(validation) <= set(training):
            self.print_to_log_file(f"ALHVR: fold {self.fold} trains on its validation cases, {NO_VALIDATION}")
        return training, validation

    def get_tr_and_val_datasets(self):
        with rank_0_first():  # a missing split is made once
            check_split(self)
            training, validation = super().get_tr_and_val_datasets()
        warning = hidden_intensities(self)
        if warning:
            self.print_to_log_file(f"ALHVR: WARNING: {warning}")
        aimed = [self.settings.unlabeled_foreground] * self.unlabeled_batch_size
        forced = (*self._forced(self.samples_per_step()[0]), *aimed)
        training.draws = Draws((self.seed, rank(), 0), self.current_epoch * self.num_iterations_per_epoch, forced)
        # on as many patches as nnU-Net with these plans, however few of them training sees labelled
        forced = self._forced(sum(self._split_batch()))
        validation.draws = Draws((self.seed, rank(), 1), self.current_epoch * self.num_val_iterations_per_epoch, forced)
        return training, validation

    def _forced(self, samples: int) -> tuple[float, ...]:
        """Of this rank's part of so many samples, the probabilities of being laid around foreground."""
        mine = share(samples, rank(), ranks())
        if self.probabilistic_oversampling:
            return (self.oversample_foreground_percent,) * len(mine)
        forced = forced_foreground(samples, sum(self._split_batch()), self.oversample_foreground_percent)
        return forced[mine.start : mine.stop]

    def get_dataloaders(self):
        with loaders_in_order():
            return super().get_dataloaders()

    # --- the screen -------------------------------------------------------------------------------------------------

    def print_to_log_file(self, *args, also_print_to_console=True, add_timestamp=True):
        """nnU-Net's; during an epoch into the file alone, as the screen gets one line for all."""
        shown = also_print_to_console and not self._in_epoch
        super().print_to_log_file(*args, also_print_to_console=shown, add_timestamp=add_timestamp)

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.local_rank == 0:
            self.display = Display(self.num_epochs, self.num_iterations_per_epoch, self.current_epoch)

    def on_epoch_start(self) -> None:
        super().on_epoch_start()
        self._in_epoch = True

    def show_step(self) -> None:
        """A training step is done."""
        if self.display is not None:
            self.display.step()

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        self._in_epoch = False
        if self.display is not None:
            self.display.epoch(", ".join(self.epoch_in_words()))

    def epoch_in_words(self) -> list[str]:
        """What the screen says of the last epoch."""
        loss, dice = (self.logger.get_value(key, step=-1) for key in ("train_losses", "mean_fg_dice"))
        return [f"loss {loss:.4f}", f"Dice {dice:.4f}"]

    def on_train_end(self) -> None:
        if self.display is not None:
            self.display.close()
        super().on_train_end()
