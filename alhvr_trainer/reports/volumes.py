"""The volumes of a case as the page carries them: cropped to the foreground, shrunk, and packed into small NIfTI files.

A page shows where a model errs or is unsure; it is no place for measurements. Intensities are therefore kept in 8 bits.
"""

from __future__ import annotations

import base64
import gzip
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk

MARGIN = 25.0
"""Around the foreground, in mm (in voxels where a format has no sizes)."""
MOST_VOXELS = 160**3
"""Of a volume: what a page needs to be sharp, and a browser draws at once."""
FEWEST_VOXELS = 16**3
LEAST_SIZE = 8
"""Voxels along an axis that is shrunk."""
FLAT = 999.0
"""nnU-Net's spacing across an image of one slice."""
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""ITK's axes to those of NIfTI."""


@dataclass(frozen=True)
class Volume:
    """One volume of a case, on the grid that all volumes of the case share."""

    image: sitk.Image
    labels: bool = False
    """Whether values are labels, which have no mean."""
    background: int = 0
    """Larger labels are foreground."""

    @property
    def foreground(self) -> np.ndarray:
        """(z, y, x) bool."""
        found: np.ndarray = sitk.GetArrayViewFromImage(self.image) > self.background
        return found


def as_volume(values: np.ndarray, properties: Mapping[str, Any], labels: bool = False) -> Volume:
    """What nnU-Net's reader gives, with its place in space.

    Args:
        values: (z, y, x); of a 2D image (1, y, x).
        properties: nnU-Net's, with "spacing" (z, y, x).
        labels: whether values are labels.

    Example:
        >>> as_volume(np.zeros((2, 3, 4)), {"spacing": (5.0, 1.0, 1.0)}).image.GetSize()
        (4, 3, 2)
    """
    kind = np.int16 if labels else np.float32
    image = sitk.GetImageFromArray(np.nan_to_num(values).astype(kind))
    spacing = [float(size) for size in properties["spacing"][::-1]]
    if values.shape[0] == 1 and spacing[2] == FLAT:
        spacing[2] = spacing[0]
    image.SetSpacing(spacing)
    geometry = properties.get("sitk_stuff")
    if geometry and len(geometry["origin"]) == 3:
        image.SetOrigin(geometry["origin"])
        image.SetDirection(geometry["direction"])
    nifti = properties.get("nibabel_stuff")
    if nifti:
        matrix = LPS_TO_RAS @ np.asarray(nifti.get("reoriented_affine", nifti["original_affine"]), dtype=float)
        image.SetOrigin(matrix[:3, 3].tolist())
        image.SetDirection((matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)).ravel().tolist())
    return Volume(image, labels)


def foreground_box(masks: Sequence[np.ndarray], spacing: Sequence[float], margin: float = MARGIN) -> list[slice]:
    """The part of a volume that holds all foreground and a margin; all of it where there is no foreground.

    Args:
        masks: arrays of one shape; foreground is what is not 0 in any of them.
        spacing: per axis of the arrays.
        margin: on each side, in the unit of the spacing; cut at the border.

    Example:
        >>> foreground_box([np.array([0, 0, 0, 1, 0, 0, 0])], [2.0], margin=3.0)
        [slice(1, 6, None)]
    """
    inside = np.logical_or.reduce([mask != 0 for mask in masks])
    if not inside.any():
        return [slice(0, size) for size in inside.shape]
    box = []
    for axis, (size, step) in enumerate(zip(inside.shape, spacing, strict=True)):
        (found,) = np.nonzero(inside.any(axis=tuple(other for other in range(inside.ndim) if other != axis)))
        more = math.ceil(margin / step)
        box.append(slice(max(0, int(found[0]) - more), min(size, int(found[-1]) + 1 + more)))
    return box


def shrink_factors(shape: Sequence[int], spacing: Sequence[float], most_voxels: int) -> list[int]:
    """By how much to shrink each axis so that a volume has few enough voxels: the finest axis first.

    Args:
        shape: voxels per axis.
        spacing: per axis.
        most_voxels: wanted; an axis keeps :data:`LEAST_SIZE` voxels, so there may be more.

    Example:
        >>> shrink_factors([10, 100, 100], [5.0, 1.0, 1.0], 30_000)
        [1, 2, 2]
    """
    factors = [1] * len(shape)
    while math.prod(size // factor for size, factor in zip(shape, factors, strict=True)) > most_voxels:
        axes = [axis for axis, size in enumerate(shape) if size // (factors[axis] + 1) >= LEAST_SIZE]
        if not axes:
            break
        factors[min(axes, key=lambda axis: factors[axis] * spacing[axis])] += 1
    return factors


def cropped(volumes: Mapping[str, Volume], margin: float = MARGIN) -> dict[str, Volume]:
    """The volumes of a case around the foreground of its label maps; whole where it has none.

    Args:
        volumes: name -> volume.
        margin: see :func:`foreground_box`.
    """
    masks = [each.foreground for each in volumes.values() if each.labels]
    if not masks:
        return dict(volumes)
    first = next(iter(volumes.values())).image
    box = foreground_box(masks, first.GetSpacing()[::-1], margin)[::-1]
    return {name: replace(each, image=each.image[tuple(box)]) for name, each in volumes.items()}


def shrunk(volumes: Mapping[str, Volume], most_voxels: int = MOST_VOXELS) -> dict[str, Volume]:
    """The volumes of a case with fewer voxels: means of intensities, of labels the one in the middle.

    Args:
        volumes: name -> volume, of one grid.
        most_voxels: of each.
    """
    first = next(iter(volumes.values())).image
    factors = shrink_factors(first.GetSize(), first.GetSpacing(), most_voxels)
    if max(factors) == 1:
        return dict(volumes)
    grid = sitk.BinShrink(first, factors)
    return {
        name: replace(
            each,
            image=sitk.Resample(each.image, grid, sitk.Transform(), sitk.sitkNearestNeighbor)
            if each.labels
            else sitk.BinShrink(each.image, factors),
        )
        for name, each in volumes.items()
    }


def packed(volume: Volume) -> bytes:
    """The volume as a gzipped NIfTI file; the same volume gives the same bytes."""
    values = sitk.GetArrayViewFromImage(volume.image).T
    slope, shift = 1.0, 0.0
    if volume.labels:
        stored = values.astype(np.uint8 if values.min() >= 0 and values.max() < 256 else np.int16)
    else:
        low, high = window(volume)
        slope, shift = (high - low) / 255 or 1.0, low
        stored = np.rint((values.clip(low, high) - shift) / slope).astype(np.uint8)
    nifti = nibabel.Nifti1Image(stored, _affine(volume.image))
    nifti.header.set_slope_inter(slope, shift)
    return gzip.compress(nifti.to_bytes(), mtime=0)


def window(volume: Volume) -> tuple[float, float]:
    """The intensities to show: without the lowest and highest two of a thousand."""
    low, high = np.percentile(sitk.GetArrayViewFromImage(volume.image), (0.2, 99.8))
    return float(low), float(high)


def _affine(image: sitk.Image) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    matrix[:3, 3] = image.GetOrigin()
    return LPS_TO_RAS @ matrix


def embedded(volumes: Mapping[str, Volume], most_bytes: float) -> dict[str, str]:
    """The volumes of a case as base64 text, shrunk until it is short enough.

    Args:
        volumes: name -> volume, of one grid.
        most_bytes: of all together; less than :data:`FEWEST_VOXELS` are no longer of use, so there may be more.
    """
    most_voxels = MOST_VOXELS
    while True:
        files = {name: packed(each) for name, each in shrunk(volumes, most_voxels).items()}
        texts = {name: base64.b64encode(file).decode() for name, file in files.items()}
        if sum(map(len, texts.values())) <= most_bytes or most_voxels <= FEWEST_VOXELS:
            return texts
        most_voxels //= 2
