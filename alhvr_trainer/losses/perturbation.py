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
    return x * _noise_factor(x, generator, bound)


def feature_dropout(x: Tensor, ratio: float | Tensor) -> Tensor:
    """Drop the most active region of each sample, all channels alike.

    ``A = mean over channels of x``; only voxels with ``A < ratio * max(A)`` are kept.

    Args:
        x: feature map, (U, K, *s).
        ratio: share of the sample's greatest attention above which voxels are dropped.
    """
    return x * _kept(x, ratio)


def _noise_factor(x: Tensor, generator: torch.Generator | None, bound: float) -> Tensor:
    """``1 + n``, (K, *s)."""
    return torch.empty(x.shape[1:], dtype=x.dtype, device=x.device).uniform_(1 - bound, 1 + bound, generator=generator)


@torch.no_grad()
def _kept(x: Tensor, ratio: float | Tensor) -> Tensor:
    """(U, 1, *s) bool."""
    attention = x.mean(dim=1, keepdim=True)
    threshold = ratio * attention.flatten(1).amax(dim=1).view(-1, *[1] * (x.ndim - 1))
    return attention < threshold


class FeaturePerturbation:
    """Perturbs all encoder outputs of one network: a coin per forward pass chooses noise or dropout.

    The draws come from a generator of its own on the device, so that they depend on the seed alone and not on what else
    draws random numbers there. The coin stays on the device, too: both factors are made, and the one that lost is 1.

    Args:
        seed: two networks, or two ranks, take different seeds.
        device: where the feature maps are.

    Example:
        >>> perturb = FeaturePerturbation(seed=0)
        >>> [x.shape for x in perturb([torch.rand(2, 8, 16, 16), torch.rand(2, 16, 8, 8)])]
        [torch.Size([2, 8, 16, 16]), torch.Size([2, 16, 8, 8])]
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.generator = torch.Generator(device=device).manual_seed(seed)

    def __call__(self, features: list[Tensor]) -> list[Tensor]:
        """Perturbed copies of the encoder outputs, skips and bottleneck, each (U, K_i, *s_i)."""
        drawn = torch.rand(1 + len(features), generator=self.generator, device=self.generator.device)
        drops, ratios = drawn[0] < 0.5, _between(*DROPOUT_RANGE, drawn[1:])
        return [self._perturbed(x, drops, ratio) for x, ratio in zip(features, ratios, strict=True)]

    def _perturbed(self, x: Tensor, drops: Tensor, ratio: Tensor) -> Tensor:
        noise = torch.where(drops, 1.0, _noise_factor(x, self.generator, NOISE_BOUND))
        return x * (_kept(x, ratio.to(x.dtype)) | ~drops) * noise

    def state_dict(self) -> dict[str, Tensor]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where :meth:`state_dict` was taken, if that was on a device of the same kind.

        Generators of CPUs and GPUs cannot continue each other, nor those of versions up to 0.1.0, which drew in another
        order: then the draws go on from the seed.
        """
        saved = state.get("generator")
        if saved is not None and saved.numel() == self.generator.get_state().numel():
            self.generator.set_state(saved.cpu())


def _between(low: float, high: float, x: Tensor) -> Tensor:
    return low + (high - low) * x
