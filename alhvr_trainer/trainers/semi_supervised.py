"""SemiSupervisedTrainer: the base of all methods, and what a training step is."""

from __future__ import annotations

import io
from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.collate_outputs import collate_outputs
from torch import Tensor

from alhvr_trainer.config.names import SETTINGS_KEY
from alhvr_trainer.errors import InputError, one_line
from alhvr_trainer.losses.schedules import consistency_weight
from alhvr_trainer.trainers.cascade import save_next_stage
from alhvr_trainer.trainers.checkpoints import (
    load_without_code,
    random_states,
    read_checkpoint,
    refuse_bad_numbers,
    restore_random_states,
    write_atomically,
)
from alhvr_trainer.trainers.collapse import collapse_warnings, grace_epochs
from alhvr_trainer.trainers.history import History, HistoryKeys, foreground_names, step_values, summary_line
from alhvr_trainer.trainers.networks import SeveralNetworksTrainer
from alhvr_trainer.trainers.plots import Panels, all_panels, plot_history
from alhvr_trainer.trainers.ranks import of_all_ranks, rank, ranks
from alhvr_trainer.trainers.samples import (
    Forward,
    Outputs,
    Predictions,
    Samples,
    first,
    full_resolution,
    predictions,
)


class SemiSupervisedTrainer(SeveralNetworksTrainer):
    """A semi-supervised method inside nnU-Net's training: ``nnUNetv2_train D C F -tr ...``.

    ``loss = sum of the supervised losses + w(t) * sum of the unsupervised terms``

    A method is a subclass. It names its settings, losses and terms (the class attributes below), says which networks it
    needs beside nnU-Net's (:meth:`build_partners`), how they see a batch (:meth:`forward`), and what its terms are
    (:meth:`unsupervised`); ``docs/new_method.md`` shows one. All else is done here and in the classes below
    this one: the stream of unlabelled cases, several ranks, mixed precision, logs and plots, warnings, checkpoints and
    exact resumption.
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
    """Whether the terms take in the labelled samples; :attr:`Forward.logits` are then those of all samples."""
    panels: Panels = ()
    """Plots of the terms and the observed values: title, names; empty: one of the terms, one per observed value."""

    # --- what a method overrides ----------------------------------------------------------------------------------

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
        """Once the optimisers have taken their steps: averages of weights, for instance."""

    def method_state(self) -> dict[str, Any]:
        """What a checkpoint must hold of the method besides its networks and optimisers."""
        return {}

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Take up :meth:`method_state`."""

    def rank_state(self) -> dict[str, Any]:
        """What a checkpoint must hold of the method for each rank: random generators of its own."""
        return {}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Take up :meth:`rank_state`."""

    # --- set-up ---------------------------------------------------------------------------------------------------

    step: int = 0
    """Iterations done so far."""
    history: History
    _states_to_restore: dict[str, Any] | None = None

    def initialize(self) -> None:
        super().initialize()
        self.history = {key: [] for key in self.history_keys.all()}

    @cached_property
    def class_names(self) -> dict[int, str]:
        """Of the foreground, by number: :func:`foreground_names`."""
        return foreground_names(self.dataset_json["labels"], self.label_manager.has_regions)

    @cached_property
    def history_keys(self) -> HistoryKeys:
        """Of :attr:`history`, and of the logs."""
        return HistoryKeys(self.supervised, self.terms, self.observed, self.co_trained, tuple(self.class_names))

    # --- training -------------------------------------------------------------------------------------------------

    @property
    def progress(self) -> float:
        """Share of the training that is done, from 0 to 1."""
        return self.step / (self.num_epochs * self.num_iterations_per_epoch)

    def weight(self) -> float:
        """w(t) of the unsupervised terms."""
        steps = self.settings.ramp_fraction * self.num_epochs * self.num_iterations_per_epoch
        return consistency_weight(self.step, steps, self.settings.consistency_weight)

    def train_step(self, batch: dict) -> dict:
        """One step on L labelled and U unlabelled samples.

        Args:
            batch: ``data`` (L+U, channels, *S); ``target``, see :meth:`samples`; ``keys``, the cases.

        Returns:
            Floats: the history's values, and ``loss``, the supervised loss of network a (so that nnU-Net's plot
            compares it with the validation loss).
        """
        samples, weight, regions = self.samples(batch), self.weight(), self.label_manager.has_regions
        self.zero_gradients()
        with self.autocast():
            forward = self.forward(samples)
            # nnU-Net's loss is a mean over the ranks; all else here are shares, whose sum is the whole batch's
            supervised = {name: loss / ranks() for name, loss in self.supervised_losses(forward, samples).items()}
        values = self.unsupervised(predictions(forward, samples, supervised, regions, self.group), samples)
        loss = sum(supervised.values()) + weight * sum(values[name] for name in self.terms)
        self._scaled(loss).backward()
        found = step_values(self.history_keys, supervised, values, forward, samples, self.label_manager, self.group)
        found["weight"] = weight
        self.stop_on_bad_numbers(found, samples.cases)
        self.optimizer_step(lambda norms: self.stop_on_bad_numbers(norms, samples.cases))
        self.after_step()
        self.step += 1
        self.show_step()
        return {"loss": found[f"supervised_{self.supervised[0]}"], **found}

    def autocast(self) -> AbstractContextManager[Any]:
        """For the networks and nnU-Net's loss, on CUDA alone, as in nnU-Net."""
        return torch.autocast("cuda") if self.device.type == "cuda" else nullcontext()

    def _scaled(self, loss: Any) -> Tensor:
        return loss if self.grad_scaler is None else self.grad_scaler.scale(loss)

    def on_train_start(self) -> None:
        super().on_train_start()
        if self._states_to_restore is not None:  # after nnU-Net has drawn the first batches
            restore_random_states(self._states_to_restore)
            self._states_to_restore = None

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.step = self.current_epoch * self.num_iterations_per_epoch

    def stop_on_bad_numbers(self, values: dict[str, float], cases: list[str]) -> None:
        """A NaN or Inf stops training before the optimisers see it; the last checkpoint stays as it is."""
        bad = [key for key, value in values.items() if not np.isfinite(value)]
        if bad:  # on all ranks: the values are those of the whole batch
            cases = [case for of_rank in of_all_ranks(cases) for case in of_rank]
            raise InputError(
                f"epoch {self.current_epoch}, iteration {self.step}: {', '.join(bad)} not finite, with cases "
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
        warnings = collapse_warnings(self.history, self.class_names, self.history_keys, grace_epochs(self.num_epochs))
        for warning in warnings:
            self.print_to_log_file(f"ALHVR WARNING: {warning}")
        if self.local_rank == 0:
            panels = all_panels(self.history_keys, self.panels)
            plot_history(self.history, self.output_folder, panels, self.class_names, warnings)

    def epoch_in_words(self) -> list[str]:
        return [*super().epoch_in_words(), f"weight {self.history['weight'][-1]:.4f}", *self.observed_in_words()]

    def observed_in_words(self) -> list[str]:
        """What the screen says of :attr:`observed` in the last epoch."""
        return [f"{name} {self.history[name][-1]:.3f}" for name in self.observed]

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        super().perform_actual_validation(save_probabilities)
        with self.acting_on(self.predicts_with):
            save_next_stage(self)

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint, which stock nnU-Net reads, all else under the key ``alhvr``; written atomically."""
        stock = io.BytesIO()
        with self.acting_on(self.predicts_with):
            super().save_checkpoint(stock)  # torch.save takes a buffer as well as a path
        by_rank = of_all_ranks({"random_states": random_states(), **self.rank_state()})
        if stock.tell() == 0:  # not rank 0, or checkpointing is disabled
            return
        stock.seek(0)
        # our own data a moment ago; but what could not be read again is better noticed now than when training resumes
        checkpoint = load_without_code(stock)
        checkpoint[SETTINGS_KEY] = {
            **self.networks_state(),
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
                f"the checkpoint in {self.output_folder} was written by {content.get('trainer_name')}, which is no "
                f"semi-supervised trainer; start a new training, or pass it with -pretrained_weights"
            )
        if not self.was_initialized:
            self.initialize()
        try:
            # nnU-Net 2.8.1 fails on a dict, so it reads the file once more, and would run code in it: ours comes first
            with self.acting_on(self.predicts_with):
                super().load_checkpoint(checkpoint)
            self._take_up(content)
        # a part of the content is missing, or of another kind or shape than these networks and optimisers have
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise InputError(
                f"the checkpoint in {self.output_folder} does not fit this training ({one_line(error)}): the plans "
                "have changed since, or it is damaged; start a new training"
            ) from error

    def _take_up(self, checkpoint: dict[str, Any]) -> None:
        """What :meth:`save_checkpoint` added to nnU-Net's checkpoint."""
        ours = checkpoint[SETTINGS_KEY]
        self.load_networks_state(ours, checkpoint["network_weights"])
        self.load_method_state(ours)
        self.seed = ours["seed"]
        unknown = [float("nan")] * self.current_epoch  # in checkpoints of version 0.1.0, which logged fewer values
        self.history = {key: list(ours["history"].get(key, unknown)) for key in self.history_keys.all()}
        by_rank = ours.get("ranks", [ours])  # version 0.1.0 knew one process
        if rank() < len(by_rank):  # a rank that was not there before keeps its fresh draws
            mine = by_rank[rank()]
            self.load_rank_state(mine)
            self._states_to_restore = mine["random_states"]
