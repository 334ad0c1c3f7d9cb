"""SemiSupervisedTrainer: nnU-Net's trainer with a stream of unlabelled cases; what any such method needs around it."""

from __future__ import annotations

import io
import os
from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.collate_outputs import collate_outputs
from torch import Tensor

from alhvr_trainer.errors import InputError, one_line
from alhvr_trainer.files.checkpoints import (
    load_without_code,
    random_states,
    read_checkpoint,
    refuse_bad_numbers,
    restore_random_states,
    seed_everything,
    write_atomically,
)
from alhvr_trainer.files.plans_check import check_plans
from alhvr_trainer.settings import SETTINGS_KEY, set_training_length, settings_from_plans, split_batch
from alhvr_trainer.training.cascade import check_previous_stage, previous_stage_folder, save_next_stage
from alhvr_trainer.training.checks import (
    check_batch_fits_ranks,
    check_environment,
    check_plans_fit_dataset,
    check_split,
)
from alhvr_trainer.training.collapse import collapse_warnings, grace_epochs
from alhvr_trainer.training.distributed.ranks import from_rank_0, of_all_ranks, rank, rank_0_first, ranks, share
from alhvr_trainer.training.distributed.trainer import DistributedTrainer
from alhvr_trainer.training.progress import History, class_keys, foreground_names, plot_history, summary_line
from alhvr_trainer.training.threads import respect_thread_limit
from alhvr_trainer.unlabeled.loader import LabeledAndUnlabeled, semi_supervised_loaders
from alhvr_trainer.unlabeled.stream import labeled_cases, unlabeled_dataset


class SemiSupervisedTrainer(DistributedTrainer):
    """L labelled and U unlabelled samples per step; settings, history, checkpoints and exact resumption.

    A method is a subclass: it names what it logs (:attr:`history_keys`, :attr:`panels`), trains on a batch
    (:meth:`train_step`), and says what its checkpoints hold besides nnU-Net's (:meth:`method_state`,
    :meth:`load_method_state`) and what of it differs from rank to rank (:meth:`rank_state`,
    :meth:`load_rank_state`). ``self.network`` is what nnU-Net validates, saves and predicts with.

    Raises:
        InputError: the plans, the dataset or the unlabelled cases do not allow training (before it starts).
    """

    history_keys: tuple[str, ...]
    """Names of the values that :meth:`train_step` returns, besides ``loss`` and :func:`class_keys`."""
    panels: tuple[tuple[str, tuple[str, ...]], ...]
    """Titles of the plots, and the values that each shows."""
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
        check_environment()
        respect_thread_limit(device)
        check_plans(plans, configuration, dataset_json, "the plans")
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.settings = settings_from_plans(self.configuration_manager.configuration)
        set_training_length(self, self.settings)
        check_plans_fit_dataset(self)
        drawn = int.from_bytes(os.urandom(4), "big") if self.settings.seed is None else self.settings.seed
        self.seed = from_rank_0(drawn)
        self.class_names = foreground_names(dataset_json["labels"], self.label_manager.has_regions)
        self.history: History = {key: [] for key in self.all_history_keys()}
        self._step = 0
        self._states_to_restore: dict[str, Any] | None = None

    def all_history_keys(self) -> tuple[str, ...]:
        """Those of the method, and each class's share in the pseudo-labels and the labels."""
        return (*self.history_keys, *class_keys(list(self.class_names)))

    @abstractmethod
    def method_state(self) -> dict[str, Any]:
        """What a checkpoint must hold of the method: further networks, optimisers, generators."""

    @abstractmethod
    def load_method_state(self, state: dict[str, Any]) -> None:
        """Take up :meth:`method_state`; networks and optimisers exist already."""

    @abstractmethod
    def rank_state(self) -> dict[str, Any]:
        """What a checkpoint must hold of the method for each rank: generators."""

    @abstractmethod
    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Take up :meth:`rank_state`."""

    # --- set-up ---------------------------------------------------------------------------------------------------

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

    # --- training -------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        super().on_train_start()
        if self._states_to_restore is not None:  # after nnU-Net has drawn the first batches
            restore_random_states(self._states_to_restore)
            self._states_to_restore = None

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._step = self.current_epoch * self.num_iterations_per_epoch

    def split_target(self, target: Tensor | list[Tensor]) -> tuple[Tensor | list[Tensor], Tensor | None]:
        """Labels of the labelled samples for nnU-Net's loss, and the validity mask of the others (None: all inside).

        Args:
            target: (L+U, 1 + 1, *S), label and validity mask; with regions one channel each, and the ignore label's, in
                place of the label; with deep supervision a list, full resolution first.
        """
        labeled = self.labeled_batch_size
        scales = target if isinstance(target, list) else [target]
        valid = scales[0][labeled:, -1] > 0
        labels = [scale[:labeled, :-1].to(self.device, non_blocking=True) for scale in scales]
        # asked on the CPU, where the batch still lies
        mask = None if bool(valid.all()) else valid.to(self.device, non_blocking=True)
        return labels if isinstance(target, list) else labels[0], mask

    def stop_on_bad_numbers(self, values: dict[str, float], cases: list[str]) -> None:
        """A NaN or Inf stops training before the optimisers see it; the last checkpoint stays as it is."""
        bad = [key for key, value in values.items() if not np.isfinite(value)]
        if bad:  # on all ranks: the values are those of the whole batch
            cases = [str(case) for of_rank in of_all_ranks(list(cases)) for case in of_rank]
            raise InputError(
                f"epoch {self.current_epoch}, iteration {self._step}: {', '.join(bad)} not finite, with cases "
                f"{', '.join(cases)}; look at these images, or lower the learning rate"
            )

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        super().on_train_epoch_end(train_outputs)
        collated = collate_outputs(train_outputs)
        for key, values in self.history.items():
            values.append(float(np.mean(collated[key])))
            for remote in self.logger.loggers:  # e.g. Weights & Biases, if nnU-Net has it switched on
                remote.log(f"{SETTINGS_KEY}/{key}", values[-1], self.current_epoch)
        self.print_to_log_file(f"ALHVR: {summary_line(self.history, self.class_names)}")

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        warnings = collapse_warnings(self.history, self.class_names, grace_epochs(self.num_epochs))
        for warning in warnings:
            self.print_to_log_file(f"ALHVR WARNING: {warning}")
        if self.local_rank == 0:
            plot_history(self.history, self.output_folder, self.panels, self.class_names, warnings)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        super().perform_actual_validation(save_probabilities)
        save_next_stage(self)

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint, which stock nnU-Net reads, all else under the key ``alhvr``; written atomically."""
        stock = io.BytesIO()
        super().save_checkpoint(stock)  # torch.save takes a buffer as well as a path
        by_rank = of_all_ranks({"random_states": random_states(), **self.rank_state()})
        if stock.tell() == 0:  # not rank 0, or checkpointing is disabled
            return
        stock.seek(0)
        # our own data a moment ago; but what could not be read again is better noticed now than when training resumes
        checkpoint = load_without_code(stock)
        checkpoint[SETTINGS_KEY] = {
            **self.method_state(),
            "settings": self.settings.as_dict(),
            "seed": self.seed,
            "history": self.history,
            "ranks": by_rank,
        }
        refuse_bad_numbers(checkpoint, filename)
        write_atomically(checkpoint, filename)

    def load_checkpoint(self, checkpoint: dict | str) -> None:
        """Continue exactly where :meth:`save_checkpoint` left off.

        Raises:
            InputError: the file is damaged, or another trainer wrote it.
        """
        content = read_checkpoint(checkpoint, self.device) if isinstance(checkpoint, str) else checkpoint
        if not isinstance(content.get(SETTINGS_KEY), dict):
            raise InputError(
                f"the checkpoint in {self.output_folder} was written by {content.get('trainer_name')}, which has no "
                f"second network; start a new training, or pass it with -pretrained_weights"
            )
        try:
            # nnU-Net 2.8.1 fails on a dict, so it reads the file once more, and would run code in it: ours comes first
            super().load_checkpoint(checkpoint)
            self._take_up(content[SETTINGS_KEY])
        # a part of the content is missing, or of another kind or shape than these networks and optimisers have
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise InputError(
                f"the checkpoint in {self.output_folder} does not fit this training ({one_line(error)}): the plans "
                "have changed since, or it is damaged; start a new training"
            ) from error

    def _take_up(self, ours: dict[str, Any]) -> None:
        """What :meth:`save_checkpoint` added to nnU-Net's checkpoint."""
        self.load_method_state(ours)
        self.seed = ours["seed"]
        unknown = [float("nan")] * self.current_epoch  # in checkpoints of version 0.1.0, which logged fewer values
        self.history = {key: list(ours["history"].get(key, unknown)) for key in self.all_history_keys()}
        by_rank = ours.get("ranks", [ours])  # version 0.1.0 knew one process
        if rank() < len(by_rank):  # a rank that was not there before keeps its fresh draws
            mine = by_rank[rank()]
            self.load_rank_state(mine)
            self._states_to_restore = mine["random_states"]
