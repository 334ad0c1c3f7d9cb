"""ALHVRTrainer: nnU-Net's trainer with two co-trained networks and a stream of unlabelled cases."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.collate_outputs import collate_outputs
from torch import Tensor, nn

from alhvr_trainer.checkpoints import (
    random_states,
    read_checkpoint,
    restore_random_states,
    seed_everything,
    write_atomically,
)
from alhvr_trainer.errors import InputError
from alhvr_trainer.method import ALHVRTerms, FeaturePerturbation, alhvr_terms, consistency_weight
from alhvr_trainer.networks import TwoPassOutput, check_network, two_pass
from alhvr_trainer.progress import empty_history, plot_history, step_values, summary_line
from alhvr_trainer.settings import (
    SETTINGS_KEY,
    set_training_length,
    settings_from_plans,
    split_batch,
    threshold_proportion,
)
from alhvr_trainer.threads import respect_thread_limit
from alhvr_trainer.trainer_checks import check_environment, check_plans_fit_dataset, check_supported
from alhvr_trainer.unlabeled.loader import LabeledAndUnlabeled, semi_supervised_loaders
from alhvr_trainer.unlabeled.stream import unlabeled_dataset

GRADIENT_NORM_LIMIT = 12  # nnU-Net's


class ALHVRTrainer(nnUNetTrainer):
    """Semi-supervised nnU-Net: ``nnUNetv2_train D C F -tr ALHVRTrainer``.

    Two networks of the plans' architecture, ``self.network`` (a) and ``self.network_b`` (b), start from different
    weights and train together on L labelled and U unlabelled samples per step:

    ``loss = sum over networks n of  L_sup_n + w(t) * (L_dtct_n + L_cgcpcl_n)``

    with nnU-Net's own loss as L_sup. Network a is what nnU-Net validates, saves and predicts with. Settings come from
    the ``alhvr`` block of the plans (:class:`alhvr_trainer.settings.ALHVRSettings`).

    Source: Lei et al., ICCV 2025. The authors train with SGD, momentum 0.9 and a constant rate; here nnU-Net's
    optimiser and polynomial schedule hold, for each network separately.

    Raises:
        InputError: the plans, the dataset or the unlabelled cases do not allow training (before it starts).
    """

    network_b: nn.Module
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
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.settings = settings_from_plans(self.configuration_manager.configuration)
        set_training_length(self, self.settings)
        check_supported(self)
        check_plans_fit_dataset(self)
        self.threshold_proportion = threshold_proportion(self.settings, len(self.configuration_manager.patch_size))
        self.seed = int.from_bytes(os.urandom(4), "big") if self.settings.seed is None else self.settings.seed
        self.history = empty_history()
        self._step = 0
        self._states_to_restore: dict[str, Any] | None = None

    # --- set-up ---------------------------------------------------------------------------------------------------

    def initialize(self) -> None:
        seed_everything(self.seed)
        super().initialize()
        check_network(self.network, self.settings.feature_stage)
        self.network_b = self.build_network_architecture(
            self.plans_manager,
            self.configuration_manager,
            self.num_input_channels,
            self.label_manager.num_segmentation_heads,
            self.enable_deep_supervision,
        ).to(self.device)
        with self._acting_on_b():
            self.optimizer_b, self.lr_scheduler_b = self.configure_optimizers()
        self.perturb_a = FeaturePerturbation(self.seed, self.device)
        self.perturb_b = FeaturePerturbation(self.seed + 1, self.device)
        self.print_to_log_file(
            f"ALHVR: {self.labeled_batch_size} labelled + {self.unlabeled_batch_size} unlabelled samples per step, "
            f"seed {self.seed}, settings {self.settings.as_dict()}"
        )

    @contextmanager
    def _acting_on_b(self) -> Iterator[None]:
        """nnU-Net's hooks act on ``self.network``; while the context is open, that is network b."""
        self.network, self.network_b = self.network_b, self.network
        try:
            yield
        finally:
            self.network, self.network_b = self.network_b, self.network

    def _do_i_compile(self) -> bool:
        return False  # torch.compile of the two passes is not supported yet

    def _set_batch_size_and_oversample(self) -> None:
        super()._set_batch_size_and_oversample()
        self.labeled_batch_size, self.unlabeled_batch_size = split_batch(
            self.batch_size, self.settings.unlabeled_batch_size
        )
        self.batch_size = self.labeled_batch_size + self.unlabeled_batch_size

    def get_tr_and_val_datasets(self):
        labeled, validation = super().get_tr_and_val_datasets()
        unlabeled = unlabeled_dataset(self, labeled.identifiers, validation.identifiers)
        both = LabeledAndUnlabeled(labeled, unlabeled, self.labeled_batch_size, self.unlabeled_batch_size)
        return both, validation

    def get_dataloaders(self):
        with semi_supervised_loaders():
            return super().get_dataloaders()

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        super().set_deep_supervision_enabled(enabled)
        with self._acting_on_b():
            super().set_deep_supervision_enabled(enabled)

    # --- training -------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        super().on_train_start()
        if self._states_to_restore is not None:  # after nnU-Net has drawn the first batches
            restore_random_states(self._states_to_restore)
            self._states_to_restore = None

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.network_b.train()
        self.lr_scheduler_b.step(self.current_epoch)
        self._step = self.current_epoch * self.num_iterations_per_epoch

    def train_step(self, batch: dict) -> dict:
        """One step of both networks on L labelled and U unlabelled samples.

        Args:
            batch: ``data`` (L+U, channels, *S); ``target`` (L+U, 2, *S), label and validity mask, with deep
                supervision a list, full resolution first; ``keys``, the cases.

        Returns:
            Floats: the history's values, and ``loss``, the supervised loss of network a (so that nnU-Net's plot
            compares it with the validation loss).
        """
        labeled = self.labeled_batch_size
        data = batch["data"].to(self.device, non_blocking=True)
        target, valid = self._split_target(batch["target"])
        weight = consistency_weight(
            self._step,
            self.settings.ramp_fraction * self.num_epochs * self.num_iterations_per_epoch,
            self.settings.consistency_weight,
        )
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_b.zero_grad(set_to_none=True)
        # nnU-Net runs autocast on CUDA only
        with torch.autocast("cuda") if self.device.type == "cuda" else nullcontext():
            a = two_pass(self.network, data, labeled, self.perturb_a, self.settings.feature_stage)
            b = two_pass(self.network_b, data, labeled, self.perturb_b, self.settings.feature_stage)
            supervised_a = self.loss(a.labeled_outputs(labeled), target)
            supervised_b = self.loss(b.labeled_outputs(labeled), target)
        terms = self._unsupervised_terms(a, b, valid)
        (self._scaled(supervised_a + supervised_b + weight * terms.total)).backward()
        values = step_values(supervised_a, supervised_b, terms, valid) | {"weight": weight}
        self._stop_on_bad_numbers(values, batch["keys"])
        self._optimizer_step()
        self._step += 1
        return {"loss": values["supervised_a"], **values}

    def _split_target(self, target: Tensor | list[Tensor]) -> tuple[Tensor | list[Tensor], Tensor | None]:
        """Labels of the labelled samples for nnU-Net's loss, and the validity mask of the others (None: all inside)."""
        labeled = self.labeled_batch_size
        scales = target if isinstance(target, list) else [target]
        valid = scales[0][labeled:, 1] > 0
        labels = [scale[:labeled, :1].to(self.device, non_blocking=True) for scale in scales]
        # asked on the CPU, where the batch still lies
        mask = None if bool(valid.all()) else valid.to(self.device, non_blocking=True)
        return labels if isinstance(target, list) else labels[0], mask

    def _unsupervised_terms(self, a: TwoPassOutput, b: TwoPassOutput, valid: Tensor | None) -> ALHVRTerms:
        labeled, settings = self.labeled_batch_size, self.settings
        inputs = [
            tensor.float()  # float32 outside autocast: powers and logarithms underflow in half precision
            for out in (a, b)
            for tensor in (out.logits[labeled:], out.perturbed_logits, out.features, out.perturbed_features)
        ]
        return alhvr_terms(
            *inputs,
            threshold_proportion=self.threshold_proportion,
            temperature=settings.temperature,
            prototype_scale=settings.prototype_scale,
            detach_teacher=settings.detach_teacher,
            official_ce_broadcast=settings.official_ce_broadcast,
            valid=valid,
            dtct_regions=settings.dtct_regions,
            cgcpcl_regions=settings.cgcpcl_regions,
        )

    def _scaled(self, loss: Tensor) -> Tensor:
        return loss if self.grad_scaler is None else self.grad_scaler.scale(loss)

    def _optimizer_step(self) -> None:
        """nnU-Net's step for each network: unscale, clip, step; one scaler for both."""
        for network, optimizer in ((self.network, self.optimizer), (self.network_b, self.optimizer_b)):
            if self.grad_scaler is not None:
                self.grad_scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM_LIMIT)
            if self.grad_scaler is None:
                optimizer.step()
            else:
                self.grad_scaler.step(optimizer)
        if self.grad_scaler is not None:
            self.grad_scaler.update()

    def _stop_on_bad_numbers(self, values: dict[str, float], cases: list[str]) -> None:
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
            plot_history(self.history, self.output_folder)

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint, which stock nnU-Net reads, all else under the key ``alhvr``; written atomically."""
        stock = io.BytesIO()
        super().save_checkpoint(stock)  # torch.save takes a buffer as well as a path
        if stock.tell() == 0:  # checkpointing is disabled
            return
        stock.seek(0)
        checkpoint = torch.load(stock, map_location="cpu", weights_only=False)
        checkpoint[SETTINGS_KEY] = {
            "network_b_weights": self.network_b.state_dict(),
            "optimizer_b_state": self.optimizer_b.state_dict(),
            "settings": self.settings.as_dict(),
            "seed": self.seed,
            "history": self.history,
            "perturbation": [self.perturb_a.state_dict(), self.perturb_b.state_dict()],
            "random_states": random_states(),
        }
        write_atomically(checkpoint, filename)

    def load_checkpoint(self, checkpoint: dict | str) -> None:
        """Continue exactly where :meth:`save_checkpoint` left off.

        Raises:
            InputError: the file is damaged, or another trainer wrote it.
        """
        content = read_checkpoint(checkpoint, self.device) if isinstance(checkpoint, str) else checkpoint
        if SETTINGS_KEY not in content:
            raise InputError(
                f"the checkpoint in {self.output_folder} was written by {content.get('trainer_name')}, which has no "
                f"second network; start a new training, or pass it with -pretrained_weights"
            )
        super().load_checkpoint(checkpoint)  # nnU-Net 2.8.1 fails on a dict, so it reads the file once more
        ours = content[SETTINGS_KEY]
        self.network_b.load_state_dict(ours["network_b_weights"])
        self.optimizer_b.load_state_dict(ours["optimizer_b_state"])
        self.seed, self.history = ours["seed"], ours["history"]
        for perturb, state in zip((self.perturb_a, self.perturb_b), ours["perturbation"], strict=True):
            perturb.load_state_dict(state)
        self._states_to_restore = ours["random_states"]
