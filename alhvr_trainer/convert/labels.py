"""Label maps: values as nnU-Net wants them, on the grid of the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from alhvr_trainer.convert.volumes import Geometry, Volume
from alhvr_trainer.errors import InputError, shown


def mapped_values(labels: np.ndarray, values: Mapping[int, int], where: object) -> np.ndarray:
    """The label map with each value replaced.

    Args:
        labels: of any shape and type.
        values: value in ``labels`` -> value in the result, at most 255.
        where: the file, for the message.

    Returns:
        uint8, shape of ``labels``.

    Raises:
        InputError: a value is none of ``values``.

    Example:
        >>> mapped_values(np.array([0, 4, 2]), {0: 0, 1: 1, 2: 2, 4: 3}, "BraTS19_2013_0_1_seg.nii.gz")
        array([0, 3, 2], dtype=uint8)
    """
    found = np.unique(labels).tolist()
    strange = [value for value in found if value not in values]
    if strange:
        raise InputError(f"{where} has the label {shown(strange[0])}; expected {', '.join(map(str, sorted(values)))}")
    result = np.zeros(labels.shape, np.uint8)
    for value in found:
        result[labels == value] = values[value]
    return result


def label_image(label: Volume, values: Mapping[int, int], image: Geometry) -> Any:
    """The label map as ``SimpleITK.Image`` of uint8 on the grid of its image.

    Raises:
        InputError: the sizes differ, or :func:`mapped_values` finds a value that is no label.
    """
    import SimpleITK as sitk

    size = label.geometry().size
    if size != image.size:
        raise InputError(f"{label.file} has {_voxels(size)} voxels, its image {_voxels(image.size)}")
    result = sitk.GetImageFromArray(mapped_values(sitk.GetArrayFromImage(label.read()), values, label.file))
    result.SetSpacing(image.spacing)
    result.SetOrigin(image.origin)
    result.SetDirection(image.direction)
    return result


def _voxels(size: tuple[int, ...]) -> str:
    return " × ".join(map(str, size))
