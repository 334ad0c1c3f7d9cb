"""Dropout for nnU-Net's networks, which have none, without a change to their state dict."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import dropout2d, dropout3d


def add_dropout(network: Any, rate: float) -> None:
    """Drop whole channels after the deepest encoder stage and after the last decoder stage, in training mode alone.

    The draws come from torch's global generator. Call it before the network runs for the first time:
    ``torch.compile`` takes the hooks over then.

    Args:
        network: nnU-Net's ``PlainConvUNet`` or ``ResidualEncoderUNet``.
        rate: share of the channels that are dropped; 0 changes nothing.

    Source: Yu et al., MICCAI 2019, section 2.2: two layers of rate 0.5 in V-Net, after the left stage 5 and the right
    stage 1. Their code drops channels (``Dropout3d``), as here. With deep supervision the coarser outputs see the
    first of the two alone.
    """
    if rate == 0:
        return

    def drop(module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        drop_channels = dropout3d if output.ndim == 5 else dropout2d
        return drop_channels(output, rate, module.training)

    for stage in (network.encoder.stages[-1], network.decoder.stages[-1]):
        stage.register_forward_hook(drop)
