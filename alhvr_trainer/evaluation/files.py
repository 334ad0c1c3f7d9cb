"""Finding, reading and checking the files that ``alhvr evaluate`` compares."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from alhvr_trainer.errors import InputError, one_line
from alhvr_trainer.files.dataset_json import check_file_ending, check_labels
from alhvr_trainer.files.json_files import read_object
from alhvr_trainer.files.nifti import ENDINGS, stored_voxels

_TOLERANCE = 1e-3  # mm, and entries of the direction matrix: NIfTI stores geometry in single precision


@dataclass(frozen=True)
class Labels:
    """What ``dataset.json`` says of the labels."""

    classes: dict[str, tuple[int, ...]]
    """Name -> values, without the background; several values make a region, and regions may overlap."""
    ignore: int | None
    """Marks voxels of references that nobody annotated."""

    @property
    def values(self) -> set[int]:
        """All values that a reference may have."""
        ignored = set() if self.ignore is None else {self.ignore}
        return {0, *ignored, *(value for values in self.classes.values() for value in values)}


def read_dataset_json(source: str | Path | dict[str, Any]) -> tuple[Labels, str]:
    """Labels and the file ending.

    Raises:
        InputError: unreadable, or a key is missing or of the wrong form.
    """
    where, content = ("dataset.json", source) if isinstance(source, dict) else (str(source), read_object(source))
    check_labels(content, where)
    check_file_ending(content, where)
    values = {name: tuple(value) if isinstance(value, list) else (value,) for name, value in content["labels"].items()}
    ignore = values.pop("ignore", None)
    classes = {name: of_class for name, of_class in values.items() if of_class != (0,)}
    if not classes:
        raise InputError(f"{where} has no label besides the background")
    return Labels(classes, None if ignore is None else ignore[0]), content["file_ending"]


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
    prediction_file: Path, reference_file: Path, labels: Labels
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
        if file.name.endswith(ENDINGS):
            stored_voxels(file)
        return sitk.ReadImage(str(file))
    except (RuntimeError, OSError) as error:
        reason = one_line(error).rsplit("ERROR: ", 1)[-1]
        raise InputError(f"cannot read {file} (damaged or not an image): {reason}") from error


def _label_array(image: sitk.Image, file: Path, labels: Labels) -> np.ndarray:
    array = sitk.GetArrayFromImage(image)
    unknown = sorted(set(np.unique(array).tolist()) - labels.values)
    if unknown:
        raise InputError(
            f"{file} has values that are no label of dataset.json: "
            f"{_listed(f'{value:g}' for value in unknown)}; labels are "
            f"{', '.join(str(value) for value in sorted(labels.values))}"
        )
    return array.astype(np.int64)
