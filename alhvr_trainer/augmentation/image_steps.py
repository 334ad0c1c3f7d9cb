"""nnU-Net's intensity transforms as steps of a batch: what each draws, and which channels it acts on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from torch import Tensor

from alhvr_trainer.augmentation.draws import happens, largest, scalars
from alhvr_trainer.augmentation.intensity import (
    add_noise,
    blur,
    change_contrast,
    change_gamma,
    lower_resolution,
    multiply,
)
from alhvr_trainer.augmentation.patches import change_rows
from alhvr_trainer.errors import InputError

ImageStep: TypeAlias = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""Images (B, C, *S), the samples to act on (B,) bool, and a generator; gives the images."""


def image_step(transform: BasicTransform) -> ImageStep | None:
    """The batched form of an intensity transform, with its probabilities and ranges; None: there is none."""
    make = _STEPS.get(type(transform))
    return None if make is None else make(transform)


def required_image_step(transform: BasicTransform) -> ImageStep:
    """As :func:`image_step`.

    Raises:
        InputError: there is none.
    """
    step = image_step(transform)
    if step is None:
        raise InputError(f'"alhvr.augmentation" "device" has no {type(transform).__name__}; set it to "stock"')
    return step


def act_on(images: Tensor, chosen: Tensor, function: Callable[..., Tensor], *numbers: Tensor) -> Tensor:
    """A function of planes on the chosen channels of a batch; see :func:`change_rows`.

    Args:
        images: (B, C, *S).
        chosen: (B, C) bool.
        function: of planes (n, *S) and their numbers (n, ...).
        numbers: (B, C, ...).
    """
    flat = [each.flatten(0, 1) for each in numbers]
    return change_rows(images.flatten(0, 1), chosen.flatten(), function, *flat).view_as(images)


def _channels(images: Tensor, samples: Tensor, transform: Any, generator: torch.Generator) -> Tensor:
    """(B, C) bool: the transform's coin for each channel of the samples."""
    return samples[:, None] & happens(tuple(images.shape[:2]), transform.p_per_channel, generator)


def _numbers(kind: Any, images: Tensor, together: bool, generator: torch.Generator, axes: int = 0) -> Tensor:
    """(B, C), or (B, C, axes); all channels of a sample alike if they go together."""
    batch, channels = images.shape[:2]
    tail = (axes,) if axes else ()
    drawn = scalars(kind, (batch, 1 if together else channels, *tail), generator)
    return drawn.expand(batch, channels, *tail)


def _noise(t: GaussianNoiseTransform) -> ImageStep:
    def step(images: Tensor, samples: Tensor, generator: torch.Generator) -> Tensor:
        def noisy(planes: Tensor, deviation: Tensor) -> Tensor:
            noise = torch.randn(planes.shape, generator=generator, device=planes.device, dtype=planes.dtype)
            return add_noise(planes, deviation, noise)

        chosen = _channels(images, samples, t, generator)
        deviation = _numbers(t.noise_variance, images, t.synchronize_channels, generator)  # so it is called there
        return act_on(images, chosen, noisy, deviation)

    return step


def _blur(t: GaussianBlurTransform) -> ImageStep:
    widest = largest(t.blur_sigma)

    def step(images: Tensor, samples: Tensor, generator: torch.Generator) -> Tensor:
        chosen, axes = _channels(images, samples, t, generator), images.ndim - 2
        sigma = _numbers(t.blur_sigma, images, t.synchronize_channels, generator, 1 if t.synchronize_axes else axes)
        sigma = sigma.expand(*sigma.shape[:2], axes)
        return act_on(images, chosen, lambda planes, width: blur(planes, width, widest), sigma)

    return step


def _brightness(t: MultiplicativeBrightnessTransform) -> ImageStep:
    def step(images: Tensor, samples: Tensor, generator: torch.Generator) -> Tensor:
        chosen = _channels(images, samples, t, generator)
        return act_on(images, chosen, multiply, _numbers(t.multiplier_range, images, t.synchronize_channels, generator))

    return step


def _contrast(t: ContrastTransform) -> ImageStep:
    def step(images: Tensor, samples: Tensor, generator: torch.Generator) -> Tensor:
        chosen = _channels(images, samples, t, generator)
        factor = _numbers(t.contrast_range, images, t.synchronize_channels, generator)
        return act_on(images, chosen, lambda planes, by: change_contrast(planes, by, t.preserve_range), factor)

    return step


def _low_resolution(t: SimulateLowResolutionTransform) -> ImageStep:
    def step(images: Tensor, samples: Tensor, generator: torch.Generator) -> Tensor:
        chosen, axes = _channels(images, samples, t, generator), images.ndim - 2
        if t.allowed_channels is not None:
            allowed = [channel in t.allowed_channels for channel in range(images.shape[1])]
            chosen = chosen & torch.tensor(allowed, device=chosen.device)
        scale = _numbers(t.scale, images, t.synchronize_channels, generator, 1 if t.synchronize_axes else axes)
        scale = scale.expand(*scale.shape[:2], axes).clone()
        if t.ignore_axes is not None:
            scale[..., list(t.ignore_axes)] = 1.0
        return act_on(images, chosen, lower_resolution, scale)

    return step


def _gamma(t: GammaTransform) -> ImageStep:
    def step(images: Tensor, samples: Tensor, generator: torch.Generator) -> Tensor:
        shape = (images.shape[0], images.shape[1])
        chosen = _channels(images, samples, t, generator)
        exponent = _numbers(t.gamma, images, t.synchronize_channels, generator)
        invert, retain = (happens(shape, p, generator) for p in (t.p_invert_image, t.p_retain_stats))
        return act_on(images, chosen, change_gamma, exponent, invert, retain)

    return step


_STEPS: dict[type, Callable[[Any], ImageStep]] = {
    GaussianNoiseTransform: _noise,
    GaussianBlurTransform: _blur,
    MultiplicativeBrightnessTransform: _brightness,
    ContrastTransform: _contrast,
    SimulateLowResolutionTransform: _low_resolution,
    GammaTransform: _gamma,
}
