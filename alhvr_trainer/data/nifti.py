"""NIfTI files as they are stored: what ITK passes over in silence."""

from __future__ import annotations

import math
import os
import zlib
from pathlib import Path

import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from alhvr_trainer.bundle.scripts.label_files import open_nifti
from alhvr_trainer.config.json_files import is_positive
from alhvr_trainer.errors import InputError, one_line

ENDINGS = (".nii", ".nii.gz")
MOST_COMPRESSED = 1032
"""Bytes that one byte of a ``.gz`` file can stand for."""
DAMAGED = (
    *(OSError, EOFError, ValueError, TypeError, OverflowError, MemoryError, RuntimeError, KeyError, zlib.error),
    *(ImageFileError, HeaderDataError, WrapStructError),
)
"""What the libraries raise that read images."""


def check_size(file: str | os.PathLike[str]) -> None:
    """The file is long enough for the voxels that its header promises; only the header is read.

    ITK would first take the memory for them, however many a damaged header promises.

    Raises:
        InputError: it is too short, or the header makes no sense.
    """
    try:
        image = open_nifti(Path(file))
        header, shape = image.header, image.shape
        needed = math.prod(map(int, shape)) * int(header["bitpix"]) // 8 + int(header["vox_offset"])
        # axes of one voxel often have no size, and the sign is left to the direction
        sizes = zip(header.get_zooms()[:3], shape, strict=False)
        spacing = [abs(float(size)) for size, voxels in sizes if voxels > 1]
    except DAMAGED as error:
        raise InputError(f"cannot read {file} (damaged or not an image): {one_line(error)}") from error
    available = os.path.getsize(file) * (MOST_COMPRESSED if str(file).endswith(".gz") else 1)
    if min(shape, default=0) < 1 or needed > available:
        raise InputError(f"cannot read {file} (damaged): its header promises an image of shape {shape}")
    if not all(map(is_positive, spacing)):
        raise InputError(f"{file}: the header gives a spacing of {spacing} mm; correct it")


def stored_voxels(file: str | os.PathLike[str]) -> np.ndarray:
    """The voxels as they are stored, without scale.

    ITK fills what is missing of a truncated file with arbitrary values, and takes NaN for 0; nibabel does not.

    Raises:
        InputError: the file is truncated or damaged.
    """
    check_size(file)
    try:
        return np.asarray(open_nifti(Path(file)).dataobj.get_unscaled())
    except DAMAGED as error:
        raise InputError(f"cannot read {file} (damaged or not an image): {one_line(error)}") from error
