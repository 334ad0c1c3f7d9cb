"""A batch on its way through the augmentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import torch
from torch import Tensor

from alhvr_trainer.losses.host import host_may_look


@dataclass(frozen=True)
class Patches:
    """B samples, the labeled ones first."""

    images: Tensor
    """(B, C, *S) float32."""
    segmentation: Tensor
    """(B, K, *S) int16: nnU-Net's label, -1 outside; in a cascade the previous stage's; for a semi-supervised method,
    last, 1 inside the image and -1 outside. After the conversion to regions bool."""
    labeled: int
    """Samples with a label. For the others the first channel says at most what nnU-Net masked."""

    @property
    def samples(self) -> Tensor:
        """All samples, (B,) bool."""
        return torch.ones(len(self.images), dtype=torch.bool, device=self.images.device)


def change_rows(x: Tensor, chosen: Tensor, function: Callable[..., Tensor], *numbers: Tensor) -> Tensor:
    """A function of the chosen rows of a tensor; the other rows stay.

    On the CPU they alone are computed, in place. On a GPU all are: or the CPU would have to wait for the choice.

    Args:
        x: (n, ...).
        chosen: (n,) bool.
        function: of rows (m, ...) and their numbers (m, ...).
        numbers: (n, ...) each.
    """
    if not host_may_look(x):
        return torch.where(chosen.view(-1, *[1] * (x.ndim - 1)), function(x, *numbers), x)
    # not x[index], which takes several times as long
    index = chosen.nonzero().flatten()
    if len(index):
        x.index_copy_(0, index, function(x.index_select(0, index), *[each.index_select(0, index) for each in numbers]))
    return x


@lru_cache(maxsize=64)
def constant(values: tuple[float, ...], device: torch.device, kind: torch.dtype) -> Tensor:
    """Numbers on a device, sent there once: sending makes the CPU wait for the GPU."""
    return torch.tensor(values, device=device, dtype=kind)


Step: TypeAlias = Callable[[Patches, torch.Generator], Patches]
