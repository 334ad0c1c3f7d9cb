"""Exponential moving average of weights: the teacher of Mean Teacher and UA-MT, the network that FixMatch keeps."""

from __future__ import annotations

from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def average_decay(step: int, decay: float) -> float:
    """Decay of the moving average at a training step, ``min(1 - 1 / (t + 1), alpha)``.

    While the first part is the smaller one, the average is the plain mean of all weights since the first step: the
    random initial weights leave no trace.

    Args:
        step: optimiser steps done before this one, t.
        decay: alpha, reached at t = alpha / (1 - alpha).

    Source: not in the papers. The released code of Mean Teacher (PyTorch) and of UA-MT does so; the former counts from
    t = 1, so that half of the first average are the initial weights. FixMatch's code keeps alpha from the start.

    Example:
        >>> average_decay(0, 0.99), average_decay(1, 0.99), average_decay(1000, 0.99)
        (0.0, 0.5, 0.99)
    """
    return min(1.0 - 1.0 / (step + 1), decay)


def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """``theta'_t = alpha theta'_{t-1} + (1 - alpha) theta_t`` for every parameter, in place.

    Buffers (the running statistics of batch norm; nnU-Net's instance norm has none) are copied.

    Args:
        average: theta', of the same architecture as ``network``.
        network: theta, after its optimiser step.
        decay: alpha.

    Source: Tarvainen & Valpola, NeurIPS 2017, Eq. 1.
    """
    get_ema_multi_avg_fn(decay)(list(average.parameters()), list(network.parameters()), None)
    for mine, its in zip(average.buffers(), network.buffers(), strict=True):
        mine.copy_(its)
