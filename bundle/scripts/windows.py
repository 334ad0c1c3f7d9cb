"""MONAI's sliding window with mirroring at test time, and with nnU-Net's places and weights of the windows.

What differs from nnU-Net, as voxels of 40 Hippocampus cases (2.5 million) that change in 2D with the training's window
of 56 × 40, and with one of 32 × 24:

- logits are added up in single precision, nnU-Net's in half: 9 and 11. It shows along the edges of a volume, too, where
  nnU-Net's weights vanish.
- windows are shifted against nnU-Net's by up to a voxel per window (:func:`even_overlap`): 0 and 1263. At MONAI's
  fixed distance it would be 0 and 11061.
- MONAI's own Gaussian would change 19 and 2658; hence :func:`gaussian_weights`.

Source of the rules: F. Isensee et al., nnU-Net, Nature Methods 18, 203-211 (2021).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from monai.inferers import SliceInferer, SlidingWindowInferer
from scipy import ndimage

from .memory import SINGLE, results_device

Network = Callable[..., torch.Tensor]


class MirrorWindowInferer(SlidingWindowInferer):
    """MONAI's sliding window whose prediction in each window is the mean over the mirrored windows, mirrored back.

    Windows spread evenly (:func:`even_overlap`) and are weighted as nnU-Net's (:func:`gaussian_weights`).

    Args:
        mirror_axes: axes of the window to mirror, and all their combinations; None for none.
        num_outputs: channels that the network puts out. Where their results do not fit on the GPU, main memory
            holds them.
        options: of MONAI's inferer.
    """

    def __init__(self, mirror_axes: Sequence[int] | None = None, num_outputs: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.num_outputs = num_outputs
        self.mirror_axes = tuple(mirror_axes or ())
        self.least_overlap = float(options.get("overlap", 0.25))
        if self.mode == "gaussian":
            self.roi_weight_map = gaussian_weights(self.roi_size, self.sigma_scale)

    def __call__(self, inputs: torch.Tensor, network: Network, *args: Any, **kwargs: Any) -> Any:
        """Logits of images: ``(N, C, *S)`` → ``(N, K, *S)``."""
        roi_size: Any = getattr(self, "orig_roi_size", self.roi_size)
        window = list(roi_size)
        if len(window) < inputs.ndim - 2:
            window.insert(self.spatial_dim, 1)
        self.device = results_device(inputs.shape[2:], self.num_outputs, inputs.device, inputs.shape[1], SINGLE)
        self.overlap = even_overlap(inputs.shape[2:], window, self.least_overlap)
        return super().__call__(inputs, mirrored(network, self.mirror_axes), *args, **kwargs)

    def without_mirroring(self) -> MirrorWindowInferer:
        """The same that takes the network's first answer."""
        found = copy.copy(self)
        found.mirror_axes = ()
        return found


class MirrorSliceInferer(MirrorWindowInferer, SliceInferer):
    """The same slice by slice, for 2D networks on volumes; ``spatial_dim`` is the axis of the slices."""


def even_overlap(shape: Sequence[int], window: Sequence[int], least: float) -> tuple[float, ...]:
    """Overlap per axis with which MONAI's windows, as many as for the least overlap, spread evenly over the image.

    MONAI's windows have a fixed distance and the last one is moved back to the border; nnU-Net's are spread evenly.
    With this overlap each window is where nnU-Net's is, or shifted by up to a voxel per window.

    Example:
        >>> [int(64 * (1 - overlap)) for overlap in even_overlap([110], [64], 0.5)]  # windows at 0, 23 and 46
        [23]
    """
    overlaps = []
    for size, width in zip(shape, window, strict=True):
        steps = math.ceil(max(size - width, 0) / (width * (1 - least)))
        interval = math.ceil((size - width) / steps) if steps else width
        # MONAI takes the whole part of width * (1 - overlap)
        overlaps.append(max(1 - (interval + 0.5) / width, 0.0))
    return tuple(overlaps)


def gaussian_weights(patch: Sequence[int], sigma_scale: float) -> torch.Tensor:
    """nnU-Net's weights of a window's voxels: a Gaussian whose peak, 1, is the voxel ``size // 2`` on each axis.

    MONAI's own center is half a voxel before that on even sizes, and falls off differently near the border. Returns a
    tensor of the patch's shape.
    """
    peak = np.zeros(patch)
    peak[tuple(size // 2 for size in patch)] = 1
    weights = ndimage.gaussian_filter(peak, [size * sigma_scale for size in patch], mode="constant")
    weights /= weights.max()
    return torch.from_numpy(np.maximum(weights, weights[weights > 0].min())).float()


def mirrored(network: Network, axes: Sequence[int]) -> Network:
    """The network with its output averaged over all mirrored inputs: along no axis, each axis, each combination."""
    others = flips(axes)[1:]

    def mean(image: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        total = network(image, *args, **kwargs)
        for flip in others:
            total = total + network(image.flip(flip), *args, **kwargs).flip(flip)
        return total / (1 + len(others))

    return mean


def flips(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """The axes of tensors (N, C, *S) to flip for each mirrored copy of an image; the first is the image itself.

    Example:
        >>> flips((0, 1))
        [(), (2,), (3,), (2, 3)]
    """
    return [tuple(axis + 2 for axis in some) for number in range(len(axes) + 1) for some in combinations(axes, number)]
