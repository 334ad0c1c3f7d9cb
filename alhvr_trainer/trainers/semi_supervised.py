"""SemiSupervisedTrainer: the base of all methods, and what a training step is."""

from __future__ import annotations

import io
import os
import shutil
from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alhvr_trainer.config.names import SETTINGS_KEY
from alhvr_trainer.data.foreground import FOLDER
from alhvr_trainer.data.loader import LabeledAndUnlabeled
from alhvr_trainer.data.stream import unlabeled_dataset
from alhvr_trainer.errors import InputError, one_line
from alhvr_trainer.losses.schedules import consistency_weight
from alhvr_trainer.trainers.cascade import check_previous_stage, previous_stage_folder, save_next_stage
from alhvr_trainer.trainers.checkpoints import read_checkpoint
from alhvr_trainer.trainers.history import step_values
from alhvr_trainer.trainers.history_plot import Panels
from alhvr_trainer.trainers.monitor import Monitor
from alhvr_trainer.trainers.parallel import get_rank, get_world_size, rank_0_first
from alhvr_trainer.trainers.partners import take_steps
from alhvr_trainer.trainers.prediction import predicted_foreground, update_foreground
from alhvr_trainer.trainers.samples import (
    Forward,
    Outputs,
    Predictions,
    Samples,
    first,
    full_resolution,
    predictions,
    take_apart,
)
from alhvr_trainer.trainers.state import restore_random_states, restore_training_state, save_with_state
from alhvr_trainer.trainers.static_step import StaticStep, static_step_of
from alhvr_trainer.trainers.step_record import StepRecord, read
from alhvr_trainer.trainers.with_partners import TrainerWithPartners


class SemiSupervisedTrainer(TrainerWithPartners):
    """A semi-supervised method inside nnU-Net's training: ``nnUNetv2_train D C F -tr ...``.

    ``loss = sum of the supervised losses + w(t) * sum of the unsupervised terms``

    A method is a subclass. Its class attributes (below) name its settings, losses and terms; its methods build the
    networks that it needs in addition to nnU-Net's (:meth:`build_partners`), run them on a batch (:meth:`forward`) and
    compute the terms (:meth:`unsupervised`). ``docs/new_method.md`` shows an example. This class and
    its bases do the rest: the stream of unlabeled cases, several ranks, mixed precision, logs, plots, warnings,
    checkpoints and exact resumption.

    Raises:
        InputError: the plans, the dataset or the unlabeled cases do not allow training (before it starts).
    """

    supervised: tuple[str, ...] = ("a",)
    """Names of the supervised losses, each that of the network of this name."""
    terms: tuple[str, ...]
    """Names of the unsupervised terms, which enter the loss."""
    observed: tuple[str, ...] = ()
    """Names of further values that :meth:`unsupervised` returns for the log."""
    co_trained: bool = False
    """Whether the networks teach each other as equals: then they must not become identical."""
    compares_labeled: bool = False
    """Whether the terms take in the labeled samples; :attr:`Forward.logits` are then those of all samples."""
    predicts_with: str = "a"
    """The network that nnU-Net validates, saves as ``network_weights`` and predicts with."""
    panels: Panels = ()
    """Plots of the terms and the observed values: title, names; empty: one of the terms, one per observed value."""

    monitor: Monitor
    data: LabeledAndUnlabeled | None = None
    """Of training, once it has started."""
    step: int = 0
    """Iterations done so far."""
    static_step: StaticStep | None = None
    """The step as a CUDA graph, if the settings want it and it applies."""
    _random_states: dict[str, Any] | None = None

    # --- what a method overrides ------------------------------------------------------------------------------------

    def forward(self, samples: Samples) -> Forward:
        """Run the networks; under autocast on CUDA. Default: each network of :attr:`supervised` on all samples."""
        return self.sorted_outputs({name: self.run(name, samples.data) for name in self.supervised}, samples)

    def sorted_outputs(self, outputs: dict[str, Outputs], samples: Samples) -> Forward:
        """What networks give for all samples, as :meth:`forward` returns it."""
        start = 0 if self.compares_labeled else samples.labeled
        return Forward(
            labeled={name: first(output, samples.labeled) for name, output in outputs.items()},
            logits={name: full_resolution(output)[start:] for name, output in outputs.items()},
        )

    def supervised_losses(self, forward: Forward, samples: Samples) -> dict[str, Tensor]:
        """One loss for each name of :attr:`supervised`. Default: nnU-Net's own, of the plans' loss and trainer."""
        return {name: self.loss(forward.labeled[name], samples.labels) for name in self.supervised}

    @abstractmethod
    def unsupervised(self, predictions: Predictions, samples: Samples) -> dict[str, Tensor]:
        """A scalar for each name of :attr:`terms` and :attr:`observed`.

        With several ranks each returns its share, such that the sum over the ranks is that of the whole batch:
        :meth:`Predictions.mean` does so.
        """

    def after_step(self) -> None:
        """Called once the optimizers have taken their steps, to move averages of weights, for instance."""

    def generators(self) -> list[torch.Generator]:
        """Random generators of the method's own on the device, besides torch's."""
        return []

    def rank_state(self) -> dict[str, Any]:
        """What a checkpoint must hold of the method for each rank: random generators of its own."""
        return {}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Restore :meth:`rank_state`."""

    def initialize(self) -> None:
        super().initialize()
        self.monitor = Monitor(self)

    # --- the two streams --------------------------------------------------------------------------------------------

    def get_tr_and_val_datasets(self):
        labeled, validation = super().get_tr_and_val_datasets()
        previous = previous_stage_folder(self)
        with rank_0_first():  # missing preprocessed cases are made once
            fold = self.dataset.fold(self.fold, labeled.identifiers, validation.identifiers)
            unlabeled = unlabeled_dataset(
                fold,
                self.plans_manager,
                self.configuration_manager,
                self.preprocessed_dataset_folder,
                self.print_to_log_file,
                previous,
            )
        check_previous_stage(self, [*labeled.identifiers, *validation.identifiers], unlabeled.identifiers)
        sizes = self.labeled_batch_size, self.unlabeled_batch_size
        self.data = LabeledAndUnlabeled(labeled, unlabeled, *sizes, predicted_foreground(self, labeled.draws.first))
        update_foreground(self)
        return self.data, validation

    def on_epoch_start(self) -> None:
        super().on_epoch_start()
        update_foreground(self)

    def on_train_end(self) -> None:
        super().on_train_end()
        if get_rank() == 0:
            shutil.rmtree(Path(self.output_folder) / FOLDER, ignore_errors=True)

    # --- training ---------------------------------------------------------------------------------------------------

    @property
    def progress(self) -> float:
        """Share of the training that is done, from 0 to 1."""
        return self.step / (self.num_epochs * self.num_iterations_per_epoch)

    def weight(self) -> float:
        """w(t) of the unsupervised terms."""
        settings, steps = self.settings, self.num_epochs * self.num_iterations_per_epoch
        since_warm_up = self.step - settings.warm_up_fraction * steps
        if since_warm_up < 0:
            return 0.0
        return consistency_weight(since_warm_up, settings.ramp_fraction * steps, settings.consistency_weight)

    def train_step(self, batch: dict) -> dict:
        """One step on L labeled and U unlabeled samples.

        Args:
            batch: ``data`` (L+U, channels, *S); ``target``, see :func:`take_apart`; ``keys``, the cases.

        Returns:
            ``record``, with the history's values, see :class:`StepRecord`.
        """
        samples = take_apart(batch, self.labeled_batch_size, self.device, always_masked=self.static_step is not None)
        record = StepRecord(samples.cases, self.current_epoch, self.step, weight=self.weight())
        if self.static_step is None:
            self.optimize(samples, record.add)
        else:
            record.add(self.static_step(samples))
        self.step += 1
        self.show_step()
        return {"record": record}

    def optimize(self, samples: Samples, check: Callable[[dict[str, Tensor]], None]) -> None:
        """Networks, losses, gradients, optimizer steps, averages: all of a step that runs on the device.

        Args:
            samples: the batch.
            check: gets the values of the step before the optimizers see them, then the gradient norms; may raise an
                error to prevent the step.
        """
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            forward = self.forward(samples)
            # nnU-Net's loss is a mean over the ranks; all else here are shares, whose sum is the whole batch's
            losses = self.supervised_losses(forward, samples)
            supervised = {name: loss / get_world_size() for name, loss in losses.items()}
        regions = self.label_manager.has_regions
        values = self.unsupervised(predictions(forward, samples, supervised, regions, self.group), samples)
        weight, unsupervised = self.number("weight", self.weight), sum(values[name] for name in self.terms)
        loss: Any = sum(supervised.values()) + weight * unsupervised
        (loss if self.grad_scaler is None else self.grad_scaler.scale(loss)).backward()
        keys, manager = self.monitor.keys, self.label_manager
        check(step_values(keys, supervised, values, forward, samples, manager, self.group))
        take_steps(self.optimizers, self.grad_scaler, self.group, check)
        self.after_step()

    def number(self, name: str, current: Callable[[], float]) -> float | Tensor:
        """A number of the method that changes from step to step; in a captured step, a scalar on the device.

        Args:
            name: of the number, one of its own.
            current: gives it.
        """
        return current() if self.static_step is None else self.static_step.number(name, current)

    def autocast(self) -> AbstractContextManager[Any]:
        """For the networks and nnU-Net's loss, on CUDA alone, as in nnU-Net."""
        return torch.autocast("cuda") if self.device.type == "cuda" else nullcontext()

    def _do_i_compile(self) -> bool:
        """As nnU-Net decides, but unasked not beside a CUDA graph: both do not go together."""
        graph = self.settings.cuda_graph and not self.is_ddp
        return super()._do_i_compile() and not (graph and "nnUNet_compile" not in os.environ)

    def on_train_start(self) -> None:
        super().on_train_start()
        self.static_step = static_step_of(self) if self.settings.cuda_graph else None
        if self._random_states is not None:  # after nnU-Net has drawn the first batches
            restore_random_states(self._random_states)
            self._random_states = None

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        for partner in self.partners.values():
            partner.train()
        for scheduler in self._schedulers.values():
            scheduler.step(self.current_epoch)
        self.step = self.current_epoch * self.num_iterations_per_epoch

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        found = read([output["record"] for output in train_outputs])
        # nnU-Net's plot compares the supervised loss of network a with the validation loss
        super().on_train_epoch_end([{"loss": values[f"supervised_{self.supervised[0]}"]} for values in found])
        self.print_to_log_file(f"ALHVR: {self.monitor.record(found, self.current_epoch, self.logger.loggers)}")

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        warnings = self.monitor.warnings(self.num_epochs)
        for warning in warnings:
            self.print_to_log_file(f"ALHVR WARNING: {warning}")
        if self.local_rank == 0:
            self.monitor.plot(self.output_folder, warnings)

    def epoch_in_words(self) -> list[str]:
        weight = self.monitor.history["weight"][-1]
        return [*super().epoch_in_words(), f"weight {weight:.4f}", *self.observed_in_words()]

    def observed_in_words(self) -> list[str]:
        """The last epoch's values of :attr:`observed`, for the screen."""
        return [f"{name} {self.monitor.history[name][-1]:.3f}" for name in self.observed]

    # --- the network that predicts ----------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        with self.acting_on(self.predicts_with):
            super().on_validation_epoch_start()

    def validation_step(self, batch: dict) -> dict:
        with self.acting_on(self.predicts_with):
            return super().validation_step(batch)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        with self.acting_on(self.predicts_with):
            super().perform_actual_validation(save_probabilities)
            save_next_stage(self)

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def save_checkpoint(self, filename: str) -> None:
        """Write nnU-Net's checkpoint, which stock nnU-Net reads, with all else under the key ``alhvr``, atomically."""
        stock = io.BytesIO()
        with self.acting_on(self.predicts_with):
            super().save_checkpoint(stock)  # torch.save takes a buffer as well as a path
        save_with_state(self, stock, filename)

    def load_checkpoint(self, checkpoint: dict | str) -> None:
        """Continue exactly where :meth:`save_checkpoint` left off.

        Raises:
            InputError: the file is damaged, or another trainer wrote it.
        """
        content = read_checkpoint(checkpoint, self.device) if isinstance(checkpoint, str) else checkpoint
        if not isinstance(content.get(SETTINGS_KEY), dict):
            raise InputError(
                f"the checkpoint in {self.output_folder} was written by {content.get('trainer_name')}, which is not a "
                f"semi-supervised trainer; start a new training, or pass it with -pretrained_weights"
            )
        if not self.was_initialized:
            self.initialize()
        try:
            # nnU-Net 2.8.1 fails on a dict, so it reads the file once more, and would run code in it: ours comes first
            with self.acting_on(self.predicts_with):
                super().load_checkpoint(checkpoint)
            self._random_states = restore_training_state(self, content)
        # a part of the content is missing, or of another kind or shape than these networks and optimizers have
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise InputError(
                f"the checkpoint in {self.output_folder} does not fit this training ({one_line(error)}): the plans "
                "have changed since, or it is damaged; start a new training"
            ) from error
