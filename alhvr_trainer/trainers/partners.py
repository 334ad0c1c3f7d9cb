"""The networks of a training beside nnU-Net's own: copies that start alike, moving averages, and the step of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from alhvr_trainer.trainers.parallel import sum_gradients

GRADIENT_NORM_LIMIT = 12  # nnU-Net's
SEGMENTATION_LAYERS = ".seg_layers."
"""In the names of the parameters that nnU-Net leaves out of pretrained weights."""


def unwrapped(network: nn.Module) -> nn.Module:
    """The network itself, without nnU-Net's wrappers for several ranks and for ``torch.compile``."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    return network._orig_mod if isinstance(network, OptimizedModule) else network


def follow_loaded_weights(network: nn.Module, partner: nn.Module, except_for: str | None = None) -> None:
    """Whenever weights are loaded into ``network``, load them into ``partner`` as well.

    nnU-Net loads pretrained weights, except for segmentation layers, into the one network that it knows. Two networks
    that start out identical would agree on every voxel and learn nothing from each other; random segmentation layers
    of their own, and perturbations from then on, make them differ.

    Args:
        network: nnU-Net's.
        partner: of the same architecture.
        except_for: the partner keeps its own parameters whose names contain this.
    """

    def load(source: nn.Module, _incompatible: Any) -> None:
        kept = {key: v for key, v in partner.state_dict().items() if except_for is not None and except_for in key}
        partner.load_state_dict({**source.state_dict(), **kept})

    network.register_load_state_dict_post_hook(load)


@torch.no_grad()
def move_average(average: nn.Module, network: nn.Module, decay: float | Tensor) -> None:
    """``average <- decay * average + (1 - decay) * network``, parameter by parameter.

    Buffers (of batch norm) stay the average's own: it sees samples itself.

    Args:
        average: of the same architecture as ``network``.
        network: the one that is trained.
        decay: from 0, a copy, to 1, no change; a number or a scalar on the device.
    """
    means, parameters = ([p.data for p in unwrapped(x).parameters()] for x in (average, network))
    if not isinstance(decay, Tensor):
        decay = float(np.float32(decay))  # rounded as on the device: both ways give the same bits
    torch._foreach_mul_(means, decay)
    torch._foreach_add_(means, torch._foreach_mul(parameters, 1 - decay))


def take_steps(
    optimizers: Mapping[str, Optimizer],
    scaler: Any,
    group: dist.ProcessGroup | None,
    check: Callable[[dict[str, Tensor]], None],
) -> None:
    """nnU-Net's optimizer step for each network: unscale, clip, step; one gradient scaler for all.

    The scaler skips the step of a network whose scaled gradients overflow, and lowers the scale once for all.

    Args:
        optimizers: by the name of the network.
        scaler: nnU-Net's ``grad_scaler``; None: gradients are not scaled.
        group: the ranks whose gradients are added up.
        check: gets the gradient norms before any network takes its step, unless there is a scaler; may raise an error
            to prevent it.
    """
    norms: dict[str, Tensor] = {}
    scaled: list[str] = []
    for name, optimizer in optimizers.items():
        parameters = [parameter for group_ in optimizer.param_groups for parameter in group_["params"]]
        sum_gradients(parameters, group)
        if scaler is not None and any(parameter.grad is not None for parameter in parameters):
            scaler.unscale_(optimizer)
            scaled.append(name)
        norms[f"gradient_{name}"] = nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM_LIMIT)
    if scaler is None:
        check(norms)
    for name, optimizer in optimizers.items():
        if scaler is None:
            optimizer.step()
        elif name in scaled:  # a scaler refuses what it did not see
            scaler.step(optimizer)
    if scaler is not None:
        scaler.update()
