"""Finding, reading and checking the files that ``alhvr evaluate`` compares."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError

from alhvr_trainer.errors import InputError

_TOLERANCE = 1e-3  # mm, and entries of the direction matrix: NIfTI stores geometry in single precision


def read_dataset_json(source: str | Path | dict[str, Any]) -> tuple[dict[str, int], str]:
    """Classes without the background, and the file ending.

    Raises:
        InputError: unreadable, a key is missing, or it has regions or an ignore label.
    """
    where, content = ("dataset.json", source) if isinstance(source, dict) else (str(source), _read_json(source))
    missing = [key for key in ("labels", "file_ending") if key not in content]
    if missing:
        raise InputError(f'{where} has no "{missing[0]}"; it must be the dataset.json of a nnU-Net data set')
    if "ignore" in content["labels"]:
        raise InputError(f'{where} has an "ignore" label: not supported yet')
    regions = [name for name, value in content["labels"].items() if not isinstance(value, int)]
    if regions:
        raise InputError(f'{where}: label "{regions[0]}" is a region (a list of labels): not supported yet')
    labels = {name: value for name, value in content["labels"].items() if value != 0}
    if not labels:
        raise InputError(f"{where} has no label besides the background")
    return labels, content["file_ending"]


def _read_json(file: str | Path) -> dict[str, Any]:
    try:
        return json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON: {error}") from error


def match_cases(
    predictions: Path, references: Path, ending: str, only_predicted: bool = False
) -> dict[str, tuple[Path, Path]]:
    """Case -> (prediction file, reference file); says which files have no partner.

    Raises:
        InputError: a folder is missing or empty, nothing matches, or (unless ``only_predicted``) a reference
            has no prediction.
    """
    predicted = _cases(predictions, "predictions", ending)
    reference = _cases(references, "references", ending)
    cases = sorted(set(predicted) & set(reference))
    if not cases:
        raise InputError(f"no file in {predictions} has the name of a file in {references}")
    missing, extra = set(reference) - set(predicted), set(predicted) - set(reference)
    if missing and not only_predicted:
        raise InputError(
            f"{len(missing)} of {len(reference)} references have no prediction in {predictions}: "
            f"{_listed(missing)}; predict them, or leave them out with only_predicted"
        )
    if missing:
        print(f"left out, references without prediction: {_listed(missing)}", flush=True)
    if extra:
        print(f"left out, predictions without reference: {_listed(extra)}", flush=True)
    return {case: (predicted[case], reference[case]) for case in cases}


def _cases(folder: Path, role: str, ending: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(f"the folder of {role} {folder} does not exist")
    files = {file.name[: -len(ending)]: file for file in folder.iterdir() if file.name.endswith(ending)}
    if not files:
        raise InputError(f'no file in the folder of {role} {folder} ends in "{ending}", as dataset.json says')
    return files


def _listed(names: Iterable[str], most: int = 10) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def read_pair(
    prediction_file: Path, reference_file: Path, labels: Mapping[str, int]
) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Both label arrays, and the spacing in mm per array axis.

    Raises:
        InputError: a file is unreadable, they lie on different voxels, or one has a value that is no label.
    """
    prediction, reference = _read(prediction_file), _read(reference_file)
    for what in ("Size", "Spacing", "Origin", "Direction"):
        found, expected = (getattr(image, f"Get{what}")() for image in (prediction, reference))
        if len(found) != len(expected) or not np.allclose(found, expected, rtol=0.0, atol=_TOLERANCE):
            raise InputError(
                f"{what.lower()} {found} of {prediction_file} differs from {expected} of {reference_file}: "
                "both must lie on the same voxels"
            )
    spacing = tuple(reversed(reference.GetSpacing()))
    return (
        _label_array(prediction, prediction_file, labels),
        _label_array(reference, reference_file, labels),
        spacing,
    )


def _read(file: Path) -> sitk.Image:
    try:
        if file.name.endswith((".nii", ".nii.gz")):
            # ITK fills what is missing of a truncated NIfTI file with arbitrary values; nibabel refuses it
            nibabel.load(file).dataobj.get_unscaled()  # type: ignore[attr-defined]
        return sitk.ReadImage(str(file))
    except (RuntimeError, OSError, EOFError, ValueError, zlib.error, ImageFileError) as error:
        reason = " ".join(str(error).rsplit("ERROR: ", 1)[-1].split())
        raise InputError(f"cannot read {file} (damaged or not an image): {reason}") from error


def _label_array(image: sitk.Image, file: Path, labels: Mapping[str, int]) -> np.ndarray:
    array = sitk.GetArrayFromImage(image)
    unknown = sorted(set(np.unique(array).tolist()) - {0, *labels.values()})
    if unknown:
        raise InputError(
            f"{file} has values that are no label of dataset.json: "
            f"{_listed(f'{value:g}' for value in unknown)}; labels are "
            f"{', '.join(str(value) for value in sorted({0, *labels.values()}))}"
        )
    return array.astype(np.int64)
