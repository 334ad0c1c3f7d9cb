"""Label maps: values as nnU-Net wants them, on the grid of the image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alhvr_trainer.bundle.scripts.label_files import check_whole_numbers, stored_floats
from alhvr_trainer.errors import InputError, shown
from alhvr_trainer.experiments.convert.volumes import Geometry, Volume


def mapped_values(labels: np.ndarray, values: Mapping[int, int], where: object) -> np.ndarray:
    """The label map with each value replaced.

    Args:
        labels: of any shape and type.
        values: value in ``labels`` -> value in the result, at most 255.
        where: the file, for the message.

    Returns:
        uint8, shape of ``labels``.

    Raises:
        InputError: a value is not in ``values``.

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


def label_image(label: Volume, values: Mapping[int, int], image: Geometry) -> tuple[Any, bool]:
    """The label map as ``SimpleITK.Image`` of uint8 on the grid of its image, and whether it lay there.

    One that is stored in another orientation and covers the same voxels is reoriented, which changes no value. One of
    the same orientation and size at another position is given the image's header, its voxels unchanged.

    Raises:
        InputError: the sizes differ; it is stored in another orientation and covers other voxels; NaN or fractions; or
            :func:`mapped_values` finds a value that is not a label.
    """
    import SimpleITK as sitk

    orientation = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines
    stored = label.read()
    turned = orientation(stored.GetDirection()) != orientation(image.direction)
    oriented = sitk.DICOMOrient(stored, orientation(image.direction)) if turned else stored
    found = Geometry(oriented.GetSize(), oriented.GetSpacing(), oriented.GetOrigin(), oriented.GetDirection())
    if found.size != image.size:
        raise InputError(f"{label.file} has {_voxels(found.size)} voxels, its image {_voxels(image.size)}")
    aligned = found.aligned(image)
    if turned and not aligned:
        raise InputError(
            f"{label.file} is stored in another orientation than its image, and does not cover the same voxels: "
            "correct one of the two headers"
        )
    result = sitk.GetImageFromArray(mapped_values(_whole_numbers(oriented, label.file), values, label.file))
    result.SetSpacing(image.spacing)
    result.SetOrigin(image.origin)
    result.SetDirection(image.direction)
    return result, aligned


def _whole_numbers(image: Any, file: Path) -> np.ndarray:
    import SimpleITK as sitk

    array = sitk.GetArrayFromImage(image)
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
        try:
            check_whole_numbers(array, stored_floats(file), file)
        except ValueError as error:
            raise InputError(str(error)) from error
    return array


def _voxels(size: tuple[int, ...]) -> str:
    return " × ".join(map(str, size))
