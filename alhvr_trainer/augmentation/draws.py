"""Random numbers of a batch: drawn on its device, one per sample or channel, from a generator of their own."""

from __future__ import annotations

from typing import Any

import torch
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast
from torch import Tensor

from alhvr_trainer.errors import InputError

Shape = tuple[int, ...]


def uniform(shape: Shape, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Numbers between ``low`` and ``high``, on the generator's device."""
    return low + (high - low) * torch.rand(shape, generator=generator, device=generator.device)


def happens(shape: Shape, probability: float, generator: torch.Generator) -> Tensor:
    """Coins: True with the given probability."""
    return torch.rand(shape, generator=generator, device=generator.device) < probability


def scalars(kind: Any, shape: Shape, generator: torch.Generator) -> Tensor:
    """Numbers as batchgeneratorsv2's ``sample_scalar`` draws them.

    Args:
        kind: a number; a range (low, high); or ``BGContrast``, which is below and above 1 equally often.
        shape: of the result.
        generator: on the device of the result.

    Raises:
        InputError: any other function: nobody knows how to draw from it on the device.
    """
    if isinstance(kind, BGContrast):
        low, high = kind.contrast_range
        return _contrast(low, high, shape, generator)
    if isinstance(kind, (int, float)):
        return torch.full(shape, float(kind), device=generator.device)
    if isinstance(kind, (tuple, list)):
        return uniform(shape, kind[0], kind[1], generator)
    raise InputError(f'"alhvr.augmentation" "device" cannot draw from {kind!r}; set it to "stock"')


def _contrast(low: float, high: float, shape: Shape, generator: torch.Generator) -> Tensor:
    below = happens(shape, 0.5 if low < 1 else 0.0, generator)
    place = torch.rand(shape, generator=generator, device=generator.device)
    return torch.where(below, low + (1 - low) * place, max(low, 1) + (high - max(low, 1)) * place)


def largest(kind: Any) -> float:
    """The largest number that :func:`scalars` can give."""
    return float(max(kind)) if isinstance(kind, (tuple, list)) else float(kind)
