"""Feature perturbation of the auxiliary pass: the same decoder runs a second time, on disturbed encoder features."""

from __future__ import annotations

import torch
from torch import Tensor

NOISE_BOUND = 0.3
DROPOUT_RANGE = (0.7, 0.9)


def feature_noise(x: Tensor, generator: torch.Generator | None = None, bound: float = NOISE_BOUND) -> Tensor:
    """``x + x * n`` with ``n ~ Uniform(-bound, bound)``, one draw shared by the samples of the batch.

    Args:
        x: feature map, (U, K, *s).
        generator: on the device of ``x``.
    """
    noise = torch.empty(x.shape[1:], dtype=x.dtype, device=x.device).uniform_(-bound, bound, generator=generator)
    return x + x * noise


def feature_dropout(x: Tensor, ratio: float) -> Tensor:
    """Drop the most active region of each sample, all channels alike.

    ``A = mean over channels of x``; only voxels with ``A < ratio * max(A)`` are kept.

    Args:
        x: feature map, (U, K, *s).
        ratio: share of the sample's greatest attention above which voxels are dropped.
    """
    attention = x.mean(dim=1, keepdim=True)
    threshold = ratio * attention.flatten(1).amax(dim=1).view(-1, *[1] * (x.ndim - 1))
    return x * (attention < threshold)


class FeaturePerturbation:
    """Perturbs all encoder outputs of one network: a coin per forward pass chooses noise or dropout.

    The draws come from two generators of its own, so that they depend on the seed alone and not on what else in
    the process draws random numbers. The coin and the dropout ratios are drawn on the CPU, so that no step waits
    for the GPU.

    Args:
        seed: two networks, or two ranks, take different seeds.
        device: where the feature maps are.

    Example:
        >>> perturb = FeaturePerturbation(seed=0)
        >>> [x.shape for x in perturb([torch.rand(2, 8, 16, 16), torch.rand(2, 16, 8, 8)])]
        [torch.Size([2, 8, 16, 16]), torch.Size([2, 16, 8, 8])]
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self._choices = torch.Generator().manual_seed(seed)
        self._noise = torch.Generator(device=device).manual_seed(seed)

    def __call__(self, features: list[Tensor]) -> list[Tensor]:
        """Perturbed copies of the encoder outputs, skips and bottleneck, each (U, K_i, *s_i)."""
        if self._uniform(0.0, 1.0) < 0.5:
            return [feature_dropout(x, self._uniform(*DROPOUT_RANGE)) for x in features]
        return [feature_noise(x, self._noise) for x in features]

    def _uniform(self, low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=self._choices).item()

    def state_dict(self) -> dict[str, Tensor]:
        return {"choices": self._choices.get_state(), "noise": self._noise.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._choices.set_state(state["choices"].cpu())
        self._noise.set_state(state["noise"].cpu())
