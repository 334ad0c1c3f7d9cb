"""nnU-Net's intensity transforms as formulas on many image channels at once.

``planes`` are image channels of any samples, (n, *S); every other argument has one number per plane, (n,), or per plane
and axis, (n, dimensions). Given the same numbers, each equals the transform of batchgeneratorsv2 that it names.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

_EPSILON = 1e-7
BLUR_TRUNCATE = 6


def per_plane(numbers: Tensor, planes: Tensor) -> Tensor:
    """(n,) as (n, 1, ...), for arithmetic with the planes."""
    return numbers.view(-1, *[1] * (planes.ndim - 1))


def add_noise(planes: Tensor, deviation: Tensor, noise: Tensor) -> Tensor:
    """``GaussianNoiseTransform``: ``x + deviation * noise``, with ``noise`` (n, *S) standard normal."""
    return planes + per_plane(deviation, planes) * noise


def multiply(planes: Tensor, factor: Tensor) -> Tensor:
    """``MultiplicativeBrightnessTransform``: ``x * factor``."""
    return planes * per_plane(factor, planes)


def change_contrast(planes: Tensor, factor: Tensor, preserve_range: bool = True) -> Tensor:
    """``ContrastTransform``: ``(x - mean) * factor + mean``, clipped to the range that x had."""
    flat = planes.flatten(1)
    mean = flat.mean(dim=1, keepdim=True)
    changed = (flat - mean).mul_(factor[:, None]).add_(mean)
    if preserve_range:
        low, high = _range_of(flat)
        changed = torch.minimum(torch.maximum(changed, low, out=changed), high, out=changed)
    return changed.view_as(planes)


def change_gamma(planes: Tensor, exponent: Tensor, invert: Tensor, retain: Tensor) -> Tensor:
    """``GammaTransform``: ``((x - min) / range) ^ exponent * range + min``.

    Args:
        planes: (n, *S).
        exponent: gamma, (n,).
        invert: (n,) bool; the transform acts on -x.
        retain: (n,) bool; mean and SD are set back to what they were.
    """
    sign = torch.where(invert, -1.0, 1.0)[:, None]
    flat = planes.flatten(1) * sign
    low, high = _range_of(flat)
    width = high - low
    changed = ((flat - low) / width.clamp_min(_EPSILON)).pow_(exponent[:, None]).mul_(width).add_(low)
    (mean, deviation), (mean_now, deviation_now) = _moments(flat), _moments(changed)
    factor = torch.where(retain[:, None], deviation / deviation_now.clamp_min(_EPSILON), 1.0)
    shift = torch.where(retain[:, None], mean - mean_now * factor, 0.0)
    return changed.mul_(factor).add_(shift).mul_(sign).view_as(planes)


def _range_of(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest of rows, (n, 1) each; torch.aminmax takes many times as long on the CPU."""
    return flat.amin(dim=1, keepdim=True), flat.amax(dim=1, keepdim=True)


def _moments(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and SD of rows, (n, 1) each; torch.std_mean takes several times as long on the CPU."""
    mean = flat.mean(dim=1, keepdim=True)
    return mean, torch.linalg.vector_norm(flat - mean, dim=1, keepdim=True) / (flat.shape[1] - 1) ** 0.5


def blur(planes: Tensor, sigma: Tensor, largest_sigma: float) -> Tensor:
    """``GaussianBlurTransform``: one axis after another, images mirrored at their borders.

    Args:
        planes: (n, *S).
        sigma: in voxels, (n, dimensions).
        largest_sigma: none is greater; it sets the width of the kernels, which are 0 from their own end on.
    """
    half = int(_kernel_size(torch.tensor(largest_sigma))) // 2
    for axis in range(1, planes.ndim):
        padding = [0] * (2 * (planes.ndim - 1))
        padding[2 * (planes.ndim - 1 - axis)] = padding[2 * (planes.ndim - 1 - axis) + 1] = half
        mirrored, kernels = functional.pad(planes, padding, mode="reflect"), _gaussian(sigma[:, axis - 1], half)
        # a sum of shifted images: a convolution with a kernel of its own for each takes longer, on CPUs most of all
        planes = multiply(mirrored.narrow(axis, half, planes.shape[axis]), kernels[:, half])
        for tap in range(half):
            both = mirrored.narrow(axis, tap, planes.shape[axis])
            both = both + mirrored.narrow(axis, 2 * half - tap, planes.shape[axis])
            planes.addcmul_(both, per_plane(kernels[:, tap], planes))
    return planes


def _gaussian(sigma: Tensor, half: int) -> Tensor:
    """Kernels of the sizes that batchgeneratorsv2 takes, in the middle of (n, 2 * half + 1)."""
    place = torch.arange(-half, half + 1, device=sigma.device)
    weights = torch.exp(-0.5 * (place / sigma[:, None]) ** 2)
    weights = weights * (place.abs() <= torch.div(_kernel_size(sigma), 2, rounding_mode="floor")[:, None])
    return weights / weights.sum(dim=1, keepdim=True)


def _kernel_size(sigma: Tensor) -> Tensor:
    """The odd number nearest to ``6 * sigma + 0.5``."""
    wanted = sigma * BLUR_TRUNCATE + 0.5
    rounded = wanted.round()
    return torch.where(rounded % 2 == 1, rounded, torch.where(wanted >= rounded, rounded + 1, rounded - 1))


def lower_resolution(planes: Tensor, scale: Tensor) -> Tensor:
    """``SimulateLowResolutionTransform``: nearest neighbors down to ``round(scale * S)``, linear back up.

    Both steps act along each axis by itself, so that one weighted sum of two voxels per axis does both.

    Args:
        planes: (n, *S).
        scale: 0 to 1, (n, dimensions).
    """
    for axis in range(planes.ndim - 1):
        lower, upper, weight = _down_and_up(scale[:, axis], planes.shape[axis + 1])
        shape = [len(planes), *[1] * (planes.ndim - 1)]
        shape[axis + 1] = -1
        low, high = (planes.gather(axis + 1, index.view(shape).expand_as(planes)) for index in (lower, upper))
        planes = torch.lerp(low, high, weight.view(shape))
    return planes


def _down_and_up(scale: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Voxels of an axis that each voxel is a mean of, and the weight of the second: (n, size) each."""
    small = (size * scale.double()).round().clamp_min(1)[:, None]
    center = ((_range(size, scale.device) + 0.5) * (small / size) - 0.5).clamp_min(0)
    center = torch.minimum(center, small - 1)
    first = center.floor()
    second = torch.minimum(first + 1, small - 1)
    step = (size / small).float()  # torch's interpolation counts in float32, which decides where two are equally near
    lower, upper = (((index.float() + 0.5) * step).floor().long().clamp(max=size - 1) for index in (first, second))
    return lower, upper, (center - first).float()


@lru_cache(maxsize=16)
def _range(size: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.arange(size, device=device, dtype=torch.float64)
