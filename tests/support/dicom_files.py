"""Writes DICOM series, as a scanner's export would hold them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from trained_models import OBLIQUE

SPACING, ORIGIN = (0.75, 0.8, 2.5), (-31.5, 12.25, 7.125)


def oblique_image(voxels: np.ndarray | None = None) -> sitk.Image:
    """An image (z, y, x) of 16-bit integers, 6 x 9 x 8 unless told, in a place no axis of which is the patient's."""
    if voxels is None:
        voxels = np.random.default_rng(7).integers(-1000, 2000, (6, 9, 8))
    image = sitk.GetImageFromArray(voxels.astype(np.int16))
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    image.SetDirection(OBLIQUE)
    return image


def write_series(
    folder: Path,
    image: sitk.Image,
    uid: str = "1.2.826.0.1.3680043.2.1125.1",
    description: str = "T1 axial",
    names: str = "{:03d}.dcm",
    slices: Sequence[int] | None = None,
    shift: Sequence[float] = (0.0, 0.0, 0.0),
) -> Path:
    """Write a 3D image as one instance per slice.

    Args:
        names: of the files; with the slice's number.
        slices: numbers of those to write; all unless told.
        shift: mm by which each slice lies beside its predecessor, beyond its place in ``image``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetImageIO("GDCMImageIO")
    direction = image.GetDirection()
    orientation = (direction[0], direction[3], direction[6], direction[1], direction[4], direction[7])
    for number in range(image.GetDepth()) if slices is None else slices:
        position = image.TransformIndexToPhysicalPoint((0, 0, number))
        tags = {
            "0008|0060": "MR",
            "0008|0070": "Scanners",
            "0010|0010": "Doe^J",
            "0010|0020": "p1",
            "0020|0010": "1",
            "0008|0018": f"{uid}.{number + 1}",
            "0008|103e": description,
            "0020|000d": "1.2.826.0.1.3680043.2.1125.9",
            "0020|000e": uid,
            "0020|0011": "1",
            "0020|0052": "1.2.826.0.1.3680043.2.1125.8",
            "0020|0013": str(number + 1),
            "0020|0032": _text(a + number * b for a, b in zip(position, shift, strict=True)),
            "0020|0037": _text(orientation),
            "0018|0050": f"{image.GetSpacing()[2]:g}",
        }
        one = image[:, :, number]
        for tag, value in tags.items():
            one.SetMetaData(tag, value)
        writer.SetFileName(str(folder / names.format(number)))
        writer.Execute(one)
    return folder


def _text(numbers) -> str:
    """Decimal strings of DICOM: 16 characters at most."""
    return "\\".join(f"{number:.10f}"[:16] for number in numbers)
