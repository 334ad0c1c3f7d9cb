"""Reads the images of one unlabeled case with nnU-Net's reader, and refuses those that would spoil training."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alhvr_trainer.bundle.scripts.images import check_finite
from alhvr_trainer.bundle.scripts.label_files import stored_floats
from alhvr_trainer.bundle.scripts.nifti import check_complete, read_header
from alhvr_trainer.config.files import is_positive
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
    _check_spacing(_names(files), map(float, properties["spacing"]))
    _check_voxels(data, files)
    return data, properties


def check_channel_count(data: np.ndarray, files: Sequence[str], expected: int) -> None:
    """InputError unless ``data`` (channels, x, y, z) has ``expected`` channels; a file may hold several."""
    if len(data) != expected:
        raise InputError(f"{_names(files)}: found {len(data)} image channels, dataset.json names {expected}")


def _check_nifti(file: str, reader_writer: BaseReaderWriter) -> None:
    """ITK reads a truncated file without an error, NaN as 0, and a spacing of 0 or NaN as 1 mm."""
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    if not isinstance(reader_writer, SimpleITKIO) or not file.endswith((".nii", ".nii.gz")):
        return
    header = read_header(Path(file))
    if header is not None:
        # axes of one voxel often have no spacing, and its sign belongs to the direction
        sizes = zip(header.spacing[:3], header.shape, strict=False)
        _check_spacing(file, [abs(size) for size, voxels in sizes if voxels > 1])
    check_complete(Path(file))
    floats = stored_floats(Path(file))
    if floats is not None:
        check_finite(floats, file)


def _check_spacing(name: str, spacing: Iterable[float]) -> None:
    sizes = list(spacing)
    if not all(map(is_positive, sizes)):
        raise InputError(f"{name} has a spacing of {sizes} mm; correct its header")


def _check_voxels(data: np.ndarray, files: Sequence[str]) -> None:
    for channel, voxels in enumerate(data):
        check_finite(voxels, files[channel] if len(files) == len(data) else files[0])
    if not data.any():
        raise InputError(f"{_names(files)} is an empty image: all voxels are zero")


def _names(files: Sequence[str]) -> str:
    return ", ".join([str(files[0]), *(os.path.basename(file) for file in files[1:])])
