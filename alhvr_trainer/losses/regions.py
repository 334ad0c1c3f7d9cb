"""Three regions by confidence (Eq. 11-14)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .host import host_may_look
from .sums import Group, gathered

Region = Literal["omega1", "omega2", "omega3"]
REGIONS: tuple[Region, ...] = get_args(Region)


def paper_proportion(dimensions: int) -> float:
    """beta as the paper has it: 0.8 in 2D (ACDC), 0.7 in 3D (BraTS2019)."""
    return 0.8 if dimensions == 2 else 0.7


@dataclass(frozen=True)
class Regions:
    """gamma (scalar) and the masks, each (U, *S) bool; padding is in none of them."""

    gamma: Tensor
    omega1: Tensor
    omega2a: Tensor
    omega2b: Tensor
    omega3: Tensor

    def mask_for(self, network: str, names: tuple[str, ...]) -> Tensor:
        """Union of the named regions for network "a" or "b": its Omega2 is the one where it is the poor one."""
        masks = {"omega1": self.omega1, "omega2": getattr(self, f"omega2{network}"), "omega3": self.omega3}
        union = torch.zeros_like(self.omega1)
        for name in names:
            union = union | masks[name]
        return union


@torch.no_grad()
def confidence_threshold(
    confidence: Tensor, proportion: float, valid: Tensor | None = None, group: Group = None
) -> Tensor:
    """``gamma = mean of the K smallest values of con, K = floor(beta * N)``, at least one value.

    Args:
        confidence: con, any shape.
        proportion: beta.
        valid: bool mask of the same shape; None means all.
        group: the ranks that the batch is spread over; N counts the values of all.

    Returns:
        Scalar tensor; never above the largest of the K values, so that equal confidences leave none below it.
    """
    if valid is not None and group is None and not host_may_look(confidence):
        return _threshold_on_device(confidence, proportion, valid)
    values = gathered(confidence.flatten() if valid is None else confidence[valid], group)
    count = max(1, math.floor(proportion * values.numel()))
    if values.numel() == 0:
        return confidence.new_zeros(())
    smallest = torch.topk(values, count, largest=False, sorted=False).values
    return torch.minimum(smallest.mean(), smallest.max())


def _threshold_on_device(confidence: Tensor, proportion: float, valid: Tensor) -> Tensor:
    """The same by sorting: how many values count, and so K, is known on the device alone."""
    values = torch.where(valid, confidence, torch.inf).flatten().sort().values
    inside = valid.sum()
    count = (proportion * inside.double()).floor().long().clamp_min(1)
    counted = torch.arange(len(values), device=values.device) < count
    mean = torch.where(counted, values, 0.0).sum() / count
    threshold = torch.minimum(mean, values.gather(0, (count - 1).unsqueeze(0)).squeeze(0))
    return torch.where(inside > 0, threshold, 0.0)


@torch.no_grad()
def split_regions(
    perturbed_probabilities_a: Tensor,
    perturbed_probabilities_b: Tensor,
    proportion: float,
    valid: Tensor | None = None,
    group: Group = None,
) -> Regions:
    """Regions of the unlabeled samples from the perturbed predictions of both networks.

    Args:
        perturbed_probabilities_a: p_a2, (U, C, *S).
        perturbed_probabilities_b: p_b2, (U, C, *S).
        proportion: beta, the share of the least confident voxels whose mean is gamma.
        valid: (U, *S) bool, False outside the image (padding); None means all.
        group: the ranks that the batch is spread over; gamma is that of the whole batch.
    """
    con_a = perturbed_probabilities_a.amax(dim=1)
    con_b = perturbed_probabilities_b.amax(dim=1)
    gamma = confidence_threshold((con_a + con_b) / 2, proportion, valid, group)
    omega1 = (con_a >= gamma) & (con_b >= gamma)  # Eq. 11, stable-reliable
    omega2a = (con_a <= gamma) & (con_b > gamma)  # Eq. 12, reliable-unstable: b teaches a
    omega2b = (con_b <= gamma) & (con_a > gamma)  # Eq. 13, reliable-unstable: a teaches b
    omega3 = (con_a < gamma) & (con_b < gamma)  # Eq. 14, unreliable-stable
    if valid is None:
        return Regions(gamma, omega1, omega2a, omega2b, omega3)
    return Regions(gamma, omega1 & valid, omega2a & valid, omega2b & valid, omega3 & valid)
