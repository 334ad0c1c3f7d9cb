"""ALHVRTrainer: two co-trained networks inside nnU-Net's training loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from alhvr_trainer.methods.alhvr import (
    ALHVRTerms,
    FeaturePerturbation,
    alhvr_channel_terms,
    alhvr_terms,
    consistency_weight,
)
from alhvr_trainer.methods.alhvr.networks import TwoPass, TwoPassOutput, keep_in_step_with
from alhvr_trainer.settings import threshold_proportion
from alhvr_trainer.training.distributed.global_batch import sum_gradients
from alhvr_trainer.training.distributed.ranks import rank, ranks
from alhvr_trainer.training.distributed.trainer import unwrapped
from alhvr_trainer.training.progress import HISTORY_KEYS, PANELS, label_voxels, step_values
from alhvr_trainer.training.semi_supervised import SemiSupervisedTrainer

GRADIENT_NORM_LIMIT = 12  # nnU-Net's


class ALHVRTrainer(SemiSupervisedTrainer):
    """Semi-supervised nnU-Net: ``nnUNetv2_train D C F -tr ALHVRTrainer``.

    Two networks of the plans' architecture, ``self.network`` (a) and ``self.network_b`` (b), start from different
    weights and train together on L labelled and U unlabelled samples per step:

    ``loss = sum over networks n of  L_sup_n + w(t) * (L_dtct_n + L_cgcpcl_n)``

    with nnU-Net's own loss as L_sup. Network a is what nnU-Net validates, saves and predicts with. Settings come from
    the ``alhvr`` block of the plans (:class:`alhvr_trainer.settings.ALHVRSettings`). With ``-pretrained_weights`` both
    start from these, each with random segmentation layers of its own.

    Source: Lei et al., ICCV 2025. The authors train with SGD, momentum 0.9 and a constant rate; here nnU-Net's
    optimiser and polynomial schedule hold, for each network separately.

    Raises:
        InputError: the plans, the dataset or the unlabelled cases do not allow training (before it starts).
    """

    history_keys = HISTORY_KEYS
    panels = PANELS
    network_b: nn.Module

    # --- set-up ---------------------------------------------------------------------------------------------------

    def initialize(self) -> None:
        super().initialize()
        self.network_b = self._build_network_b()
        keep_in_step_with(unwrapped(self.network), unwrapped(self.network_b))
        with self._acting_on_b():
            self.optimizer_b, self.lr_scheduler_b = self.configure_optimizers()
        self.two_pass_a, self.two_pass_b = (
            TwoPass(unwrapped(network), self.settings.feature_stage, compiled=self._do_i_compile())
            for network in (self.network, self.network_b)
        )
        self.perturb_a = FeaturePerturbation(self.seed + 2 * rank(), self.device)
        self.perturb_b = FeaturePerturbation(self.seed + 2 * rank() + 1, self.device)
        self.threshold_proportion = threshold_proportion(self.settings, len(self.configuration_manager.patch_size))

    def _build_network_b(self) -> nn.Module:
        """As nnU-Net built network a."""
        network = self.build_network_architecture(
            self.plans_manager,
            self.configuration_manager,
            self.num_input_channels,
            self.label_manager.num_segmentation_heads,
            self.enable_deep_supervision,
        ).to(self.device)
        return self.distributed(nn.SyncBatchNorm.convert_sync_batchnorm(network)) if self.is_ddp else network

    @contextmanager
    def _acting_on_b(self) -> Iterator[None]:
        """nnU-Net's hooks act on ``self.network``; while the context is open, that is network b."""
        self.network, self.network_b = self.network_b, self.network
        try:
            yield
        finally:
            self.network, self.network_b = self.network_b, self.network

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        super().set_deep_supervision_enabled(enabled)
        with self._acting_on_b():
            super().set_deep_supervision_enabled(enabled)

    # --- training -------------------------------------------------------------------------------------------------

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.network_b.train()
        self.lr_scheduler_b.step(self.current_epoch)

    def train_step(self, batch: dict) -> dict:
        """One step of both networks on L labelled and U unlabelled samples.

        Args:
            batch: ``data`` (L+U, channels, *S); ``target``, see :meth:`split_target`; ``keys``, the cases.

        Returns:
            Floats: the history's values, and ``loss``, the supervised loss of network a (so that nnU-Net's plot
            compares it with the validation loss).
        """
        labeled = self.labeled_batch_size
        data = batch["data"].to(self.device, non_blocking=True)
        target, valid = self.split_target(batch["target"])
        weight = consistency_weight(
            self._step,
            self.settings.ramp_fraction * self.num_epochs * self.num_iterations_per_epoch,
            self.settings.consistency_weight,
        )
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_b.zero_grad(set_to_none=True)
        with self.autocast():
            a = self.two_pass_a(data, labeled, self.perturb_a)
            b = self.two_pass_b(data, labeled, self.perturb_b)
            # nnU-Net's loss is a mean over the ranks; all else here are shares, whose sum is the whole batch's
            supervised_a = self.loss(a.labeled_outputs(labeled), target) / ranks()
            supervised_b = self.loss(b.labeled_outputs(labeled), target) / ranks()
        terms = self._unsupervised_terms(a, b, valid)
        (self._scaled(supervised_a + supervised_b + weight * terms.total)).backward()
        values = step_values(
            (supervised_a, supervised_b),
            (a.logits[:labeled], b.logits[:labeled]),
            self._label_voxels(batch["target"], target),
            terms,
            valid,
            self.group,
        ) | {"weight": weight}
        self.stop_on_bad_numbers(values, batch["keys"])
        self._optimizer_step(batch["keys"])
        self._step += 1
        return {"loss": values["supervised_a"], **values}

    def _label_voxels(
        self, target: Tensor | list[Tensor], labels: Tensor | list[Tensor]
    ) -> tuple[Tensor, Tensor | int]:
        """Of a batch's target and of the labels in it (:meth:`split_target`), see :func:`label_voxels`."""
        full, labels = (scales[0] if isinstance(scales, list) else scales for scales in (target, labels))
        inside = int(torch.count_nonzero(full[: self.labeled_batch_size, -1]))  # on the CPU, like the batch
        manager = self.label_manager
        return label_voxels(labels, inside, len(self.class_names), manager.has_regions, manager.ignore_label)

    def autocast(self) -> AbstractContextManager[Any]:
        """For the networks and nnU-Net's loss, on CUDA alone, as in nnU-Net."""
        return torch.autocast("cuda") if self.device.type == "cuda" else nullcontext()

    def _unsupervised_terms(self, a: TwoPassOutput, b: TwoPassOutput, valid: Tensor | None) -> ALHVRTerms:
        labeled, settings = self.labeled_batch_size, self.settings
        inputs = [
            tensor.float()  # float32 outside autocast: powers and logarithms underflow in half precision
            for out in (a, b)
            for tensor in (out.logits[labeled:], out.perturbed_logits, out.features, out.perturbed_features)
        ]
        method = alhvr_channel_terms if self.label_manager.has_regions else alhvr_terms
        return method(
            *inputs,
            threshold_proportion=self.threshold_proportion,
            temperature=settings.temperature,
            prototype_scale=settings.prototype_scale,
            detach_teacher=settings.detach_teacher,
            official_ce_broadcast=settings.official_ce_broadcast,
            valid=valid,
            dtct_regions=settings.dtct_regions,
            cgcpcl_regions=settings.cgcpcl_regions,
            process_group=self.group,
        )

    def _scaled(self, loss: Tensor) -> Tensor:
        return loss if self.grad_scaler is None else self.grad_scaler.scale(loss)

    def _optimizer_step(self, cases: list[str]) -> None:
        """nnU-Net's step for each network: unscale, clip, step; one scaler for both.

        The scaler skips the step of a network whose scaled gradients overflow, and lowers the scale once for both.

        Raises:
            InputError: without a scaler, gradients are NaN or Inf; no network has taken the step.
        """
        pairs = {"a": (self.network, self.optimizer), "b": (self.network_b, self.optimizer_b)}
        norms = {}
        for name, (network, optimizer) in pairs.items():
            sum_gradients(network.parameters(), self.group)
            if self.grad_scaler is not None:
                self.grad_scaler.unscale_(optimizer)
            norms[f"gradient_{name}"] = nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM_LIMIT)
        if self.grad_scaler is None:
            self.stop_on_bad_numbers({name: float(norm) for name, norm in norms.items()}, cases)
        for _, optimizer in pairs.values():
            if self.grad_scaler is None:
                optimizer.step()
            else:
                self.grad_scaler.step(optimizer)
        if self.grad_scaler is not None:
            self.grad_scaler.update()

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def method_state(self) -> dict[str, Any]:
        return {
            "network_b_weights": unwrapped(self.network_b).state_dict(),
            "optimizer_b_state": self.optimizer_b.state_dict(),
        }

    def load_method_state(self, state: dict[str, Any]) -> None:
        unwrapped(self.network_b).load_state_dict(state["network_b_weights"])
        self.optimizer_b.load_state_dict(state["optimizer_b_state"])

    def rank_state(self) -> dict[str, Any]:
        return {"perturbation": [self.perturb_a.state_dict(), self.perturb_b.state_dict()]}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        for perturb, generators in zip((self.perturb_a, self.perturb_b), state["perturbation"], strict=True):
            perturb.load_state_dict(generators)
