"""TrainerWithPartners: nnU-Net's trainer with more networks than one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from alhvr_trainer.trainers.base import BaseTrainer
from alhvr_trainer.trainers.partners import SEGMENTATION_LAYERS, follow_loaded_weights, unwrapped


class TrainerWithPartners(BaseTrainer):
    """nnU-Net's trainer with further networks, its partners.

    ``self.network``, called "a", is nnU-Net's. A partner whose parameters require gradients is trained, with an
    optimizer and a learning rate schedule of its own, as nnU-Net sets them up. Checkpoints hold all partners.
    """

    trained_with_a: tuple[str, ...] = ()
    """Partners that are parts of one model with network a: one optimizer, one gradient norm."""

    network: nn.Module
    partners: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]
    """Of "a" and of the partners that are trained on their own."""

    def build_partners(self) -> dict[str, nn.Module]:
        """Modules that the method needs in addition to ``self.network``, by name, on ``self.device``.

        Called once ``self.network`` is built; :meth:`another_network` and :meth:`averaged_network` make the usual ones.
        """
        return {}

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
        """A second network of the plans, with random weights of its own."""
        network = self.build_network()
        follow_loaded_weights(unwrapped(self.network), unwrapped(network), except_for=SEGMENTATION_LAYERS)
        return network

    def averaged_network(self) -> nn.Module:
        """A copy of network a without gradients, for ``move_average``."""
        network = self.build_network()
        unwrapped(network).load_state_dict(unwrapped(self.network).state_dict())
        follow_loaded_weights(unwrapped(self.network), unwrapped(network))
        return network.requires_grad_(False)

    def build_network(self, configuration: Any = None) -> nn.Module:
        """A network as nnU-Net built network a.

        Args:
            configuration: nnU-Net's manager of another configuration; default: that of the training.
        """
        network = self.build_network_architecture(
            self.plans_manager,
            configuration or self.configuration_manager,
            self.num_input_channels,
            self.label_manager.num_segmentation_heads,
            self.enable_deep_supervision,
        ).to(self.device)
        if self._do_i_compile():
            network = torch.compile(network)
        return self.distributed(nn.SyncBatchNorm.convert_sync_batchnorm(network)) if self.is_ddp else network

    def networks(self) -> dict[str, nn.Module]:
        """All networks, by name."""
        return {"a": self.network, **self.partners}

    def run(self, name: str, data: Tensor) -> Any:
        """A network's outputs in training.

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
        super().set_deep_supervision_enabled(enabled)
        for partner in self.partners.values():
            decoder: Any = getattr(unwrapped(partner), "decoder", None)
            if decoder is not None:
                decoder.deep_supervision = enabled
