"""DICOM series: which files make up a series, and whether these form a regular volume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .input_error import InputError

_SERIES_UID, _SERIES_DESCRIPTION = "0020|000e", "0008|103e"
_POSITION, _ORIENTATION = "0020|0032", "0020|0037"
_UNEVEN = 0.1  # share of the slice distance; positions are often rounded, and a missing slice doubles it
_TILTED = 0.01  # of the normal: about half a degree
_TURNED = 1e-3  # direction cosines


def is_dicom(file: Path) -> bool:
    """Whether a file is a DICOM instance: by its name, or without an ending by its content.

    Names are often UIDs, so that the ending is a number. The index ``DICOMDIR`` is not an instance.
    """
    suffix = file.suffix.lower()
    if not file.is_file() or file.name.startswith(".") or file.name == "DICOMDIR":
        return False
    if suffix in (".dcm", ".ima"):
        return True
    if suffix and not suffix[1:].isdigit():
        return False
    with open(file, "rb") as opened:
        return opened.read(132)[128:] == b"DICM"


def holds_dicom(folder: Path) -> bool:
    """Whether a folder directly contains DICOM instances."""
    return any(map(is_dicom, folder.iterdir()))


def series_files(folder: str | Path) -> list[str]:
    """The instances of the one series in a folder, in the order of their position.

    Raises:
        InputError: no series that can be read, or several; they are listed.
    """
    reader = _sitk(folder).ImageSeriesReader
    found = [reader.GetGDCMSeriesFileNames(str(folder), uid) for uid in reader.GetGDCMSeriesIDs(str(folder))]
    series = [[file for file in files if not Path(file).name.startswith(".")] for files in found]
    series = [files for files in series if files]
    if not series:
        raise InputError(f"cannot read the DICOM files in {folder} (damaged or no images); export the series again")
    if len(series) > 1:
        raise InputError(
            f"{folder} holds {len(series)} DICOM series, a case is one: {'; '.join(map(_described, series))}; "
            "put each into its own folder"
        )
    return series[0]


def check_series(folder: str | Path) -> None:
    """The slices of a DICOM series are parallel and equally spaced, as those of a volume must be.

    Readers assume the distance between the first two slices for all: if a slice is missing, the volume is compressed
    and its segmentation misplaced.

    Raises:
        InputError: slices are missing, uneven, at one position, turned, or shifted (gantry tilt).
    """
    files = series_files(folder)
    if len(files) < 2:
        return
    headers = [dicom_header(file) for file in files]
    positions = np.array([_numbers(header, _POSITION, folder) for header in headers])
    orientations = np.array([_numbers(header, _ORIENTATION, folder) for header in headers])
    if np.ptp(orientations, axis=0).max() > _TURNED:
        raise InputError(f"the slices of the DICOM series in {folder} differ in orientation; export one volume only")
    normal = np.cross(orientations[0][:3], orientations[0][3:])
    _check_distances(positions @ normal, folder)
    shift = positions[-1] - positions[0]
    height = abs(shift @ normal)
    lateral = np.linalg.norm(np.cross(shift, normal))
    if lateral > _TILTED * height:
        angle = math.degrees(math.atan2(lateral, height))
        raise InputError(
            f"the slices of the DICOM series in {folder} are shifted against each other (gantry tilt {angle:.1f}°); "
            "resample it to a straight volume first"
        )


def dicom_header(file: str | Path) -> Any:
    """A ``SimpleITK.ImageFileReader`` that has read the header of one instance.

    Raises:
        InputError: it cannot be read.
    """
    reader = _sitk(file).ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"cannot read {file} (damaged or not an image): {itk_reason(error)}") from error
    return reader


def itk_reason(error: BaseException) -> str:
    """The last, telling part of an ITK exception, on one line."""
    return " ".join(str(error).split()).rsplit("ERROR: ", 1)[-1][:300]


def _sitk(path: str | Path) -> Any:
    try:
        import SimpleITK
    except ImportError as error:
        raise InputError(f"reading {path} needs SimpleITK: pip install SimpleITK") from error
    return SimpleITK


def _described(files: Sequence[str]) -> str:
    header = dicom_header(files[0])
    uid, text = (
        header.GetMetaData(tag).strip() if header.HasMetaDataKey(tag) else ""
        for tag in (_SERIES_UID, _SERIES_DESCRIPTION)
    )
    return f'{uid} "{text}" ({len(files)} files)'


def _numbers(header: Any, tag: str, folder: str | Path) -> list[float]:
    try:
        numbers = [float(number) for number in header.GetMetaData(tag).split("\\")]
    except (RuntimeError, ValueError):
        numbers = []
    if len(numbers) != (3 if tag == _POSITION else 6) or not all(map(math.isfinite, numbers)):
        raise InputError(
            f"{header.GetFileName()} in {folder} has no position or orientation ({tag}); its place is unknown"
        )
    return numbers


def _check_distances(heights: np.ndarray, folder: str | Path) -> None:
    """Distances between neighbors, in mm along the normal."""
    distances = np.diff(np.sort(heights))  # unsorted where two slices share a position
    usual = np.median(distances)
    deviations = np.abs(distances - usual)
    worst = int(deviations.argmax())
    if usual <= 0 or deviations[worst] > _UNEVEN * usual:
        raise InputError(
            f"the DICOM series in {folder} is not a regular volume: slices {worst + 1} and {worst + 2} of "
            f"{len(heights)} are {distances[worst]:.3g} mm apart, the others {usual:.3g} mm; slices are missing or "
            "double, export the complete series"
        )
