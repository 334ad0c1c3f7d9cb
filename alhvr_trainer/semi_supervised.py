"""SemiSupervisedTrainer: nnU-Net's trainer with a stream of unlabelled cases; what any such method needs around it."""

from __future__ import annotations

import io
import os
from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.collate_outputs import collate_outputs
from torch import Tensor

from alhvr_trainer.cascade import check_previous_stage, previous_stage_folder, save_next_stage
from alhvr_trainer.checkpoints import (
    load_without_code,
    random_states,
    read_checkpoint,
    restore_random_states,
    seed_everything,
    write_atomically,
)
from alhvr_trainer.errors import InputError, one_line
from alhvr_trainer.plans_check import check_plans
from alhvr_trainer.progress import History, plot_history, summary_line
from alhvr_trainer.settings import SETTINGS_KEY, set_training_length, settings_from_plans, split_batch
from alhvr_trainer.threads import respect_thread_limit
from alhvr_trainer.trainer_checks import check_environment, check_plans_fit_dataset, check_split, check_supported
from alhvr_trainer.unlabeled.loader import LabeledAndUnlabeled, semi_supervised_loaders
from alhvr_trainer.unlabeled.stream import unlabeled_dataset


class SemiSupervisedTrainer(nnUNetTrainer):
    """L labelled and U unlabelled samples per step; settings, history, checkpoints and exact resumption.

    A method is a subclass: it names what it logs (:attr:`history_keys`, :attr:`panels`), trains on a batch
    (:meth:`train_step`), and says what its checkpoints hold besides nnU-Net's (:meth:`method_state`,
    :meth:`load_method_state`). ``self.network`` is what nnU-Net validates, saves and predicts with.

    Raises:
        InputError: the plans, the dataset or the unlabelled cases do not allow training (before it starts).
    """

    history_keys: tuple[str, ...]
    """Names of the values that :meth:`train_step` returns, besides ``loss``."""
    panels: tuple[tuple[str, tuple[str, ...]], ...]
    """Titles of the plots, and the values that each shows."""
    batch_size: int
    labeled_batch_size: int
    unlabeled_batch_size: int

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
        check_supported(self)
        check_plans_fit_dataset(self)
        self.seed = int.from_bytes(os.urandom(4), "big") if self.settings.seed is None else self.settings.seed
        self.history: History = {key: [] for key in self.history_keys}
        self._step = 0
        self._states_to_restore: dict[str, Any] | None = None

    @abstractmethod
    def method_state(self) -> dict[str, Any]:
        """What a checkpoint must hold of the method: further networks, optimisers, generators."""

    @abstractmethod
    def load_method_state(self, state: dict[str, Any]) -> None:
        """Take up :meth:`method_state`; networks and optimisers exist already."""

    # --- set-up ---------------------------------------------------------------------------------------------------

    def initialize(self) -> None:
        seed_everything(self.seed)
        super().initialize()
        self.print_to_log_file(
            f"ALHVR: {self.labeled_batch_size} labelled + {self.unlabeled_batch_size} unlabelled samples per step, "
            f"seed {self.seed}, settings {self.settings.as_dict()}"
        )

    def _do_i_compile(self) -> bool:
        return False  # torch.compile of the two passes is not supported yet

    def _set_batch_size_and_oversample(self) -> None:
        super()._set_batch_size_and_oversample()
        self.labeled_batch_size, self.unlabeled_batch_size = split_batch(
            self.batch_size, self.settings.unlabeled_batch_size
        )
        self.batch_size = self.labeled_batch_size + self.unlabeled_batch_size

    def get_tr_and_val_datasets(self):
        check_split(self)
        labeled, validation = super().get_tr_and_val_datasets()
        unlabeled = unlabeled_dataset(self, labeled.identifiers, validation.identifiers, previous_stage_folder(self))
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
        if bad:
            raise InputError(
                f"epoch {self.current_epoch}, iteration {self._step}: {', '.join(bad)} not finite, with cases "
                f"{', '.join(map(str, cases))}; look at these images, or lower the learning rate"
            )

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        super().on_train_epoch_end(train_outputs)
        collated = collate_outputs(train_outputs)
        for key, values in self.history.items():
            values.append(float(np.mean(collated[key])))
            for remote in self.logger.loggers:  # e.g. Weights & Biases, if nnU-Net has it switched on
                remote.log(f"{SETTINGS_KEY}/{key}", values[-1], self.current_epoch)
        self.print_to_log_file(f"ALHVR: {summary_line(self.history)}")

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        if self.local_rank == 0:
            plot_history(self.history, self.output_folder, self.panels)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        super().perform_actual_validation(save_probabilities)
        save_next_stage(self)

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint, which stock nnU-Net reads, all else under the key ``alhvr``; written atomically."""
        stock = io.BytesIO()
        super().save_checkpoint(stock)  # torch.save takes a buffer as well as a path
        if stock.tell() == 0:  # checkpointing is disabled
            return
        stock.seek(0)
        # our own data a moment ago; but what could not be read again is better noticed now than when training resumes
        checkpoint = load_without_code(stock)
        checkpoint[SETTINGS_KEY] = {
            **self.method_state(),
            "settings": self.settings.as_dict(),
            "seed": self.seed,
            "history": self.history,
            "random_states": random_states(),
        }
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
            ours = content[SETTINGS_KEY]
            self.load_method_state(ours)
            self.seed, self.history = ours["seed"], {key: list(ours["history"][key]) for key in self.history_keys}
            self._states_to_restore = ours["random_states"]
        # a part of the content is missing, or of another kind or shape than these networks and optimisers have
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise InputError(
                f"the checkpoint in {self.output_folder} does not fit this training ({one_line(error)}): the plans "
                "have changed since, or it is damaged; start a new training"
            ) from error
