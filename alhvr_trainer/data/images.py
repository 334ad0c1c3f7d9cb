"""Reading the images of one unlabeled case with nnU-Net's reader, and refusing what would spoil training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from alhvr_trainer.config.json_files import is_positive
from alhvr_trainer.data.nifti import ENDINGS, stored_voxels
from alhvr_trainer.errors import InputError, one_line

if TYPE_CHECKING:
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter


def read_case(files: Sequence[str], reader_writer: BaseReaderWriter) -> tuple[np.ndarray, dict[str, Any]]:
    """Read and check the images of a case.

    Args:
        files: image files in channel order.
        reader_writer: instance of one of nnU-Net's readers (``plans_manager.image_reader_writer_class()``).

    Returns:
        Image (channels, x, y, z) in float32 and nnU-Net's properties, as ``read_images`` gives them.

    Raises:
        InputError: a file is missing, unreadable or truncated; channels differ in shape or spacing; a voxel
            is NaN or infinite; all voxels are zero.

    Example:
        >>> data, properties = read_case(["imagesTr_unlabeled/scan1_0000.nii.gz"], SimpleITKIO())
        >>> data.shape, properties["spacing"]
        ((1, 9, 256, 216), [10.0, 1.0, 1.0])
    """
    for file in files:
        if not os.path.isfile(file):
            raise InputError(f"{file} does not exist")
    try:
        for file in files:
            _check_nifti(file, reader_writer)
        data, properties = reader_writer.read_images(list(files))
    except InputError:
        raise
    # the readers sit on several libraries, each with errors of its own
    except Exception as error:
        # nnU-Net's readers print the reason and raise an empty error when the channels do not match
        reason = one_line(error).rsplit("ERROR: ", 1)[-1] if str(error) else "its channels differ in shape or spacing"
        raise InputError(f"cannot read {_names(files)}: {reason}") from error
    if not all(map(is_positive, map(float, properties["spacing"]))):
        raise InputError(f"{_names(files)}: the spacing is {properties['spacing']} mm; correct it")
    _check_voxels(data, files)
    return data, properties


def check_channel_count(data: np.ndarray, files: Sequence[str], expected: int) -> None:
    """InputError unless ``data`` (channels, x, y, z) has ``expected`` channels; a file may hold several."""
    if len(data) != expected:
        raise InputError(f"{_names(files)}: found {len(data)} image channels, dataset.json names {expected}")


def _check_nifti(file: str, reader_writer: BaseReaderWriter) -> None:
    """ITK reads a truncated ``.nii.gz`` without an error, and NaN as 0: look at the stored values."""
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    if isinstance(reader_writer, SimpleITKIO) and file.endswith(ENDINGS):
        stored = stored_voxels(file)
        if np.issubdtype(stored.dtype, np.floating):
            _check_finite(stored, file)


def _check_voxels(data: np.ndarray, files: Sequence[str]) -> None:
    for channel, voxels in enumerate(data):
        _check_finite(voxels, files[channel] if len(files) == len(data) else files[0])
    if not data.any():
        raise InputError(f"{_names(files)} is an empty image: all voxels are zero")


def _check_finite(voxels: np.ndarray, file: str) -> None:
    # a sum is finite only if all voxels are, and needs no mask of the image's size
    with np.errstate(invalid="ignore", over="ignore"):
        suspicious = not np.isfinite(voxels.sum(dtype=np.float64))
    count = int(voxels.size - np.isfinite(voxels).sum()) if suspicious else 0
    if count:
        raise InputError(f"{file} has {count} NaN or infinite voxel{'s' if count > 1 else ''}: replace them")


def _names(files: Sequence[str]) -> str:
    return ", ".join([str(files[0]), *(os.path.basename(file) for file in files[1:])])
