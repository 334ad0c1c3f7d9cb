"""BaseTrainer: nnU-Net's trainer, set by the plans' ``alhvr`` block, on any number of ranks."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainer_module
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from alhvr_trainer.compatibility import replaced, require_nnunet_folders
from alhvr_trainer.config.plans import check_plans
from alhvr_trainer.config.settings import Settings, set_training_length, settings_from_plans, split_batch
from alhvr_trainer.data.batches import Draws, forced_foreground
from alhvr_trainer.data.dataset import Dataset, named_dataset
from alhvr_trainer.data.device_loader import OnDevice
from alhvr_trainer.data.loader import loaders_in_order
from alhvr_trainer.data.splits import NO_VALIDATION, write_split_for_few_cases
from alhvr_trainer.data.stream import labeled_fold
from alhvr_trainer.trainers.checks import (
    check_batch_fits_ranks,
    check_plans_fit_dataset,
    check_split,
    hidden_intensities,
    preprocessed_cases,
)
from alhvr_trainer.trainers.display import Display
from alhvr_trainer.trainers.parallel import (
    broadcast,
    get_rank,
    get_world_size,
    global_batch_loss,
    local_device,
    rank_0_first,
    share,
)
from alhvr_trainer.trainers.state import seed_everything


class BaseTrainer(nnUNetTrainer):
    """nnU-Net's trainer with the settings of the ``alhvr`` block: training length, seed, precision, samples per step.

    Every batch depends on the seed and its number alone: it is the same with any number of workers and in a resumed
    training. The ranks are GPUs (nccl) or CPUs (gloo) of one or several machines. Rank 0 writes logs, checkpoints and
    plots; each rank writes its predictions of validation cases, so all machines need the same ``nnUNet_results``.

    Raises:
        InputError: the plans or the dataset do not allow training (before it starts).
    """

    settings_class: type[Settings] = Settings
    """The keys of the ``alhvr`` block that the method knows."""
    settings: Settings
    dataset: Dataset
    is_ddp: bool
    batch_size: int
    labeled_batch_size: int
    unlabeled_batch_size: int
    oversample_foreground_percent: float
    probabilistic_oversampling: bool
    output_folder_base: str
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
        if get_rank() > 0:
            os.environ.update(nnUNet_wandb_enabled="0")  # or each rank would start its own run
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.is_ddp:
            self.device = local_device(device)
            if self.device.type != "cuda":
                self.grad_scaler = None
        self.settings = settings_from_plans(self.configuration_manager.configuration, self.settings_class)
        set_training_length(self, self.settings)
        self.dataset = named_dataset(self.plans_manager.dataset_name, dataset_json)
        check_plans_fit_dataset(self)
        drawn = int.from_bytes(os.urandom(4), "big") if self.settings.seed is None else self.settings.seed
        self.seed = broadcast(drawn)

    def initialize(self) -> None:
        if self.device.type == "cuda":
            torch.set_autocast_dtype("cuda", getattr(torch, self.settings.mixed_precision))
            if self.settings.mixed_precision == "bfloat16":
                self.grad_scaler = None  # as wide a range of exponents as float32
        seed_everything(self.seed)
        with replaced(trainer_module, DDP=self.distributed):
            super().initialize()
        self.print_to_log_file(
            f"ALHVR: {self.labeled_batch_size} labeled + {self.unlabeled_batch_size} unlabeled samples per step, "
            f"seed {self.seed}, settings {self.settings.as_dict()}"
        )

    def configure_optimizers(self):
        optimizer, schedule = super().configure_optimizers()
        constant = round((1 - self.settings.decay_fraction) * self.num_epochs)
        return optimizer, LatePolynomial(
            optimizer, self.initial_lr, self.num_epochs, constant
        ) if constant else schedule

    # --- ranks ------------------------------------------------------------------------------------------------------

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The ranks that share each batch; None in one process."""
        return dist.group.WORLD if self.is_ddp else None

    def distributed(self, network: nn.Module, device_ids: Any = None) -> nn.Module:
        """The network as nnU-Net expects it on several ranks; all start from rank 0's weights."""
        return DistributedDataParallel(network, device_ids=[self.device] if self.device.type == "cuda" else None)

    def _build_loss(self) -> nn.Module:
        loss = super()._build_loss()
        return global_batch_loss(loss, self.label_manager.ignore_label) if self.is_ddp else loss

    @contextmanager
    def _model_files_by_rank_0(self) -> Iterator[None]:
        """Otherwise all ranks would write plans.json and other files into one folder at the same time."""
        if get_rank() == 0:
            yield
            return
        folder = self.output_folder_base
        with tempfile.TemporaryDirectory() as self.output_folder_base:
            yield
        self.output_folder_base = folder

    # --- batches ----------------------------------------------------------------------------------------------------

    def samples_per_step(self) -> tuple[int, int]:
        """Labeled and unlabeled samples of a step, on all ranks together."""
        return self._split_batch()

    def _set_batch_size_and_oversample(self) -> None:
        """Divide the labeled and the unlabeled samples over the ranks; the plans' batch holds both."""
        distributed, self.is_ddp = self.is_ddp, False  # nnU-Net would divide the batch as if it had one kind of sample
        super()._set_batch_size_and_oversample()
        self.is_ddp = distributed
        check_batch_fits_ranks(*self._split_batch(), get_world_size())
        labeled, unlabeled = self.samples_per_step()
        self.labeled_batch_size = len(self._mine(labeled))
        self.unlabeled_batch_size = len(self._mine(unlabeled))
        self.batch_size = self.labeled_batch_size + self.unlabeled_batch_size

    def _mine(self, samples: int) -> range:
        return share(samples, get_rank(), get_world_size())

    def _split_batch(self) -> tuple[int, int]:
        return split_batch(self.configuration_manager.batch_size, self.settings.unlabeled_batch_size)

    def do_split(self):
        if self.fold != "all":
            write_split_for_few_cases(self.dataset.preprocessed, preprocessed_cases(self))
        fold = labeled_fold(self.dataset, self.fold, *super().do_split(), self.print_to_log_file)
        if self.fold != "all" and set(fold.validation) <= set(fold.train):
            self.print_to_log_file(f"ALHVR: fold {self.fold} trains on its validation cases, {NO_VALIDATION}")
        return list(fold.train), list(fold.validation)

    def get_tr_and_val_datasets(self):
        with rank_0_first():  # a missing split is made once
            check_split(self.dataset, self.fold, preprocessed_cases(self))
            training, validation = super().get_tr_and_val_datasets()
        warning = hidden_intensities(self.dataset, self.plans_manager.plans)
        if warning:
            self.print_to_log_file(f"ALHVR: WARNING: {warning}")
        aimed = [self.settings.unlabeled_foreground] * self.unlabeled_batch_size
        forced = (*self._forced(self.samples_per_step()[0]), *aimed)
        if self.settings.augmentation == "device":
            processes = int(os.environ.get("LOCAL_WORLD_SIZE", get_world_size()))
            training.on_device = OnDevice(self.device, self.settings.cache, processes, self.print_to_log_file)
        elif self.settings.cache is not None:
            self.print_to_log_file('ALHVR: "cache" does nothing, for it goes with "augmentation": "device"')
        training.draws = Draws((self.seed, get_rank(), 0), self.current_epoch * self.num_iterations_per_epoch, forced)
        # validate on the whole batch size of the plans, as nnU-Net does, however few samples are labeled in training
        forced = self._forced(sum(self._split_batch()))
        first = self.current_epoch * self.num_val_iterations_per_epoch
        validation.draws = Draws((self.seed, get_rank(), 1), first, forced)
        return training, validation

    def _forced(self, samples: int) -> tuple[float, ...]:
        """For each of this rank's part of the samples, the probability that its patch is laid around foreground."""
        mine = self._mine(samples)
        if self.probabilistic_oversampling:
            return (self.oversample_foreground_percent,) * len(mine)
        forced = forced_foreground(samples, sum(self._split_batch()), self.oversample_foreground_percent)
        return forced[mine.start : mine.stop]

    def get_dataloaders(self):
        if self.is_ddp:
            seed_everything(self.seed + get_rank())  # so far the ranks drew alike
        with loaders_in_order():
            return super().get_dataloaders()

    # --- the screen -------------------------------------------------------------------------------------------------

    def print_to_log_file(self, *args, also_print_to_console=True, add_timestamp=True):
        """During an epoch, write to the file only: the screen gets one line per epoch."""
        shown = also_print_to_console and not self._in_epoch
        super().print_to_log_file(*args, also_print_to_console=shown, add_timestamp=add_timestamp)

    def on_train_start(self) -> None:
        with self._model_files_by_rank_0():
            super().on_train_start()
        if self.local_rank == 0:
            self.display = Display(self.num_epochs, self.num_iterations_per_epoch, self.current_epoch)

    def on_epoch_start(self) -> None:
        super().on_epoch_start()
        self._in_epoch = True

    def show_step(self) -> None:
        """Tell the screen that a training step is done."""
        if self.display is not None:
            self.display.step()

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        self._in_epoch = False
        if self.display is not None:
            self.display.epoch(", ".join(self.epoch_in_words()))

    def epoch_in_words(self) -> list[str]:
        """The last epoch's line on the screen."""
        loss, dice = (self.logger.get_value(key, step=-1) for key in ("train_losses", "mean_fg_dice"))
        return [f"loss {loss:.4f}", f"Dice {dice:.4f}"]

    def on_train_end(self) -> None:
        if self.display is not None:
            self.display.close()
        super().on_train_end()


class LatePolynomial(PolyLRScheduler):
    """A constant learning rate, and in the last epochs nnU-Net's polynomial.

    Args:
        optimizer, initial_lr: as for nnU-Net's schedule.
        epochs: of the whole training.
        constant: how many of them come before the rate falls.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, initial_lr: float, epochs: int, constant: int) -> None:
        self.constant = constant
        super().__init__(optimizer, initial_lr, max(epochs - constant, 1))

    def step(self, current_step: int | None = None) -> None:
        """nnU-Net calls it with the number of the epoch; torch, once when it is made, without."""
        super().step(0 if current_step is None else max(current_step - self.constant, 0))


def respect_thread_limit(device: torch.device) -> None:
    """Train on the CPU with ``OMP_NUM_THREADS`` threads, if that is set: nnU-Net takes one per core regardless.

    With small networks one thread is often the quickest, as the data loader's processes keep the other cores busy.
    """
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if device.type == "cpu" and limit.isdigit() and int(limit) > 0:
        torch.set_num_threads(int(limit))
