"""Each formula against the transform of batchgeneratorsv2 that it stands for, given the same drawn numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform

from alhvr_trainer.augmentation.intensity import (
    add_noise,
    blur,
    change_contrast,
    change_gamma,
    lower_resolution,
    multiply,
)

SHAPES = [(31, 24), (14, 20, 17)]
PLANES = 6


@pytest.fixture(params=SHAPES, ids=["2d", "3d"])
def planes(request: pytest.FixtureRequest) -> torch.Tensor:
    torch.manual_seed(0)
    np.random.seed(0)
    return torch.randn(PLANES, *request.param) * torch.rand(PLANES, *[1] * len(request.param)) * 3 + 1


def stock(transform: Any, planes: torch.Tensor, **parameters: Any) -> torch.Tensor:
    return transform._apply_to_image(planes.clone(), **parameters)


def assert_same(ours: torch.Tensor, expected: torch.Tensor, before: torch.Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, before, atol=1e-3)  # it did something


def test_noise(planes):
    """Noise is drawn inside the transform: the same generator gives the same."""
    sigma = torch.rand(PLANES)
    torch.manual_seed(1)
    transform, channels = GaussianNoiseTransform((0, 0.1)), torch.arange(PLANES)
    expected = stock(transform, planes, num_apply=PLANES, apply_idx=channels, sigmas=sigma.tolist())
    torch.manual_seed(1)
    noise = torch.empty_like(planes).normal_()
    assert_same(add_noise(planes, sigma, noise), expected, planes)


def test_brightness(planes):
    factor = torch.rand(PLANES) + 0.5
    transform = MultiplicativeBrightnessTransform((0.5, 1.5), False)
    expected = stock(transform, planes, apply_to_channel=torch.arange(PLANES), multipliers=factor)
    assert_same(multiply(planes, factor), expected, planes)


@pytest.mark.parametrize("preserve_range", [True, False])
def test_contrast(planes, preserve_range):
    factor = torch.rand(PLANES) + 0.5
    transform = ContrastTransform((0.5, 1.5), preserve_range, False)
    expected = stock(transform, planes, apply_to_channel=torch.arange(PLANES), multipliers=factor)
    assert_same(change_contrast(planes, factor, preserve_range), expected, planes)


def test_gamma(planes):
    numbers = {
        "gamma": torch.rand(PLANES) + 0.6,
        "invert_image": torch.arange(PLANES) % 2 == 0,
        "retain_stats": torch.arange(PLANES) % 3 > 0,
    }
    transform = GammaTransform(BGContrast((0.7, 1.5)), 0.5, False, 1, 0.5)
    expected = stock(transform, planes, apply_to_channel=torch.arange(PLANES), **numbers)
    ours = change_gamma(planes, numbers["gamma"], numbers["invert_image"], numbers["retain_stats"])
    assert_same(ours, expected, planes)


def test_gamma_of_a_constant_image():
    flat = torch.full((2, 5, 5), 3.0)
    yes = torch.ones(2, dtype=torch.bool)
    transform = GammaTransform((0.7, 1.5), 1, False, 1, 1)
    numbers = {"gamma": torch.tensor([0.7, 1.4]), "invert_image": yes, "retain_stats": yes}
    expected = stock(transform, flat, apply_to_channel=torch.arange(2), **numbers)
    torch.testing.assert_close(change_gamma(flat, numbers["gamma"], yes, yes), expected)


def test_blur(planes):
    dimensions = planes.ndim - 1
    sigmas = torch.rand(PLANES, dimensions) * 0.5 + 0.5
    sigmas[0], sigmas[1] = 0.5, 1.0
    transform = GaussianBlurTransform((0.5, 1.0), False, False, 1)
    everything = torch.ones(PLANES, dtype=torch.bool)
    expected = stock(transform, planes, apply_to_channel=everything, sigmas=sigmas.tolist())
    assert_same(blur(planes, sigmas, 1.0), expected, planes)


def test_low_resolution(planes):
    scales = torch.rand(PLANES, planes.ndim - 1) * 0.5 + 0.5
    scales[0], scales[1, 0] = 1.0, 0.5
    transform = SimulateLowResolutionTransform((0.5, 1), False, False, None)
    expected = stock(transform, planes, apply_to_channel=torch.arange(PLANES), scales=scales)
    assert_same(lower_resolution(planes, scales), expected, planes)


def test_every_size_of_a_lower_resolution():
    """Rounding decides which voxels are taken; every size from half to whole is met."""
    transform = SimulateLowResolutionTransform((0.5, 1), False, False, None)
    scales = torch.linspace(0.5, 1, 100)[:, None]
    for size in (20, 23, 24, 40):
        image = torch.rand(1, size).expand(100, size).contiguous()
        both = [(image[:1, None], torch.tensor([[1.0, scale]])) for scale in scales.flatten()]
        expected = torch.stack([stock(transform, x, apply_to_channel=[0], scales=s)[0, 0] for x, s in both])
        torch.testing.assert_close(lower_resolution(image, scales), expected, rtol=1e-5, atol=1e-5)
