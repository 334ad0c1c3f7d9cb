"""SeveralNetworksTrainer: partners of nnU-Net's network, with optimisers, checkpoints and validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from alhvr_trainer.trainers.distributed import unwrapped
from alhvr_trainer.trainers.global_batch import sum_gradients
from alhvr_trainer.trainers.two_streams import TwoStreamTrainer

GRADIENT_NORM_LIMIT = 12  # nnU-Net's
SEGMENTATION_LAYERS = ".seg_layers."
"""In the names of the parameters that nnU-Net leaves out of pretrained weights."""


class SeveralNetworksTrainer(TwoStreamTrainer):
    """``self.network``, called "a", is nnU-Net's; a method may have partners beside it.

    A partner whose parameters require gradients is trained, by an optimiser and a learning rate schedule of its own,
    as nnU-Net sets them up. All partners are saved, and taken up again.
    """

    predicts_with: str = "a"
    """The network that nnU-Net validates, saves as ``network_weights`` and predicts with."""
    trained_with_a: tuple[str, ...] = ()
    """Partners that are parts of one model with network a: one optimiser, one norm of the gradients."""
    network: nn.Module
    partners: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]
    """Of "a" and of the partners that are trained on their own."""

    # --- what a method may override -------------------------------------------------------------------------------

    def build_partners(self) -> dict[str, nn.Module]:
        """Modules that the method needs beside ``self.network``, by name, on ``self.device``.

        Called once ``self.network`` is built; :meth:`another_network` and :meth:`averaged_network` make the usual ones.
        """
        return {}

    # --- set-up ---------------------------------------------------------------------------------------------------

    def initialize(self) -> None:
        super().initialize()
        self.partners = self.build_partners()
        self.optimizers = {"a": self.optimizer}
        self._schedulers: dict[str, Any] = {}
        for name, partner in self.partners.items():
            if name in self.trained_with_a:
                self.optimizer.add_param_group({"params": list(partner.parameters())})
            elif any(parameter.requires_grad for parameter in partner.parameters()):
                with self.acting_on(name):
                    self.optimizers[name], self._schedulers[name] = self.configure_optimizers()

    def another_network(self) -> nn.Module:
        """A second network of the plans, with random weights of its own; see :func:`keep_in_step_with`."""
        network = self._build_network()
        keep_in_step_with(unwrapped(self.network), unwrapped(network), but=SEGMENTATION_LAYERS)
        return network

    def averaged_network(self) -> nn.Module:
        """A copy of network a without gradients, for :func:`move_average`."""
        network = self._build_network()
        unwrapped(network).load_state_dict(unwrapped(self.network).state_dict())
        keep_in_step_with(unwrapped(self.network), unwrapped(network))
        return network.requires_grad_(False)

    def _build_network(self) -> nn.Module:
        """As nnU-Net built network a."""
        network = self.build_network_architecture(
            self.plans_manager,
            self.configuration_manager,
            self.num_input_channels,
            self.label_manager.num_segmentation_heads,
            self.enable_deep_supervision,
        ).to(self.device)
        if self._do_i_compile():
            network = torch.compile(network)
        return self.distributed(nn.SyncBatchNorm.convert_sync_batchnorm(network)) if self.is_ddp else network

    def networks(self) -> dict[str, nn.Module]:
        """All of them, by name."""
        return {"a": self.network, **self.partners}

    def run(self, name: str, data: Tensor) -> Any:
        """A network's outputs, in the course of training.

        Not through ``DistributedDataParallel``: gradients are added up over the ranks after the backward pass.
        """
        network = self.networks()[name]
        return (network.module if isinstance(network, DistributedDataParallel) else network)(data)

    @contextmanager
    def acting_on(self, name: str) -> Iterator[None]:
        """nnU-Net's hooks act on ``self.network``; while the context is open, that is the named one."""
        if name == "a":
            yield
            return
        own, self.network = self.network, self.partners[name]
        try:
            yield
        finally:
            self.network = own

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Of all networks; nnU-Net knows its own."""
        super().set_deep_supervision_enabled(enabled)
        for partner in self.partners.values():
            decoder: Any = getattr(unwrapped(partner), "decoder", None)
            if decoder is not None:
                decoder.deep_supervision = enabled

    # --- training -------------------------------------------------------------------------------------------------

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        for partner in self.partners.values():
            partner.train()
        for scheduler in self._schedulers.values():
            scheduler.step(self.current_epoch)

    def zero_gradients(self) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)

    def optimizer_step(self, check: Callable[[dict[str, float]], None]) -> None:
        """nnU-Net's step for each network: unscale, clip, step; one scaler for all.

        The scaler skips the step of a network whose scaled gradients overflow, and lowers the scale once for all.

        Args:
            check: gets the norms of the gradients before any network takes the step, unless there is a scaler; raises
                an error to prevent it.
        """
        norms: dict[str, Tensor] = {}
        scaled: list[str] = []
        for name, optimizer in self.optimizers.items():
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            sum_gradients(parameters, self.group)
            if self.grad_scaler is not None and any(parameter.grad is not None for parameter in parameters):
                self.grad_scaler.unscale_(optimizer)
                scaled.append(name)
            norms[f"gradient_{name}"] = nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM_LIMIT)
        if self.grad_scaler is None:
            check({name: float(norm) for name, norm in norms.items()})
        for name, optimizer in self.optimizers.items():
            if self.grad_scaler is None:
                optimizer.step()
            elif name in scaled:  # a scaler refuses what it did not see
                self.grad_scaler.step(optimizer)
        if self.grad_scaler is not None:
            self.grad_scaler.update()

    def look_for_foreground(self) -> None:
        with self.acting_on(self.predicts_with):
            super().look_for_foreground()

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

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def networks_state(self) -> dict[str, Any]:
        """What nnU-Net's checkpoint lacks: ``network_NAME_weights``, ``optimizer_NAME_state``."""
        others = {name: network for name, network in self.networks().items() if name != self.predicts_with}
        state = {f"network_{name}_weights": unwrapped(network).state_dict() for name, network in others.items()}
        trained = {name: optimizer for name, optimizer in self.optimizers.items() if name != "a"}
        return state | {f"optimizer_{name}_state": optimizer.state_dict() for name, optimizer in trained.items()}

    def load_networks_state(self, state: dict[str, Any], network_weights: dict[str, Tensor]) -> None:
        """Take up :meth:`networks_state`.

        Args:
            state: see there.
            network_weights: of nnU-Net's checkpoint, those of the network that predicts.
        """
        for name, network in self.networks().items():  # a first: its partners follow it, see keep_in_step_with
            predicts = name == self.predicts_with
            unwrapped(network).load_state_dict(network_weights if predicts else state[f"network_{name}_weights"])
        for name, optimizer in self.optimizers.items():
            if name != "a":
                optimizer.load_state_dict(state[f"optimizer_{name}_state"])


def keep_in_step_with(network: nn.Module, partner: nn.Module, but: str | None = None) -> None:
    """Whenever weights are loaded into ``network``, ``partner`` takes them over.

    nnU-Net loads pretrained weights into the network that it knows, without segmentation layers. Two networks that
    start alike would agree on every voxel and teach each other nothing: their own random segmentation layers, and what
    perturbs them from then on, make them different.

    Args:
        network: nnU-Net's.
        partner: of the same architecture.
        but: in the names of parameters that the partner keeps; None: it keeps none.
    """

    def take_over(source: nn.Module, _incompatible: Any) -> None:
        own = {key: value for key, value in partner.state_dict().items() if but is not None and but in key}
        partner.load_state_dict({**source.state_dict(), **own})

    network.register_load_state_dict_post_hook(take_over)


@torch.no_grad()
def move_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """``average <- decay * average + (1 - decay) * network``, parameter by parameter.

    Buffers (of batch norm) stay the average's own: it sees samples itself.

    Args:
        average: of the same architecture as ``network``.
        network: the one that is trained.
        decay: from 0, a copy, to 1, no change.
    """
    for mean, parameter in zip(unwrapped(average).parameters(), unwrapped(network).parameters(), strict=True):
        mean.lerp_(parameter, 1 - decay)
