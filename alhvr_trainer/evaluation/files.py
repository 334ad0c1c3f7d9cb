"""Finding, reading and checking the files that ``alhvr evaluate`` compares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from alhvr_trainer.errors import InputError, one_line
from alhvr_trainer.evaluation.label_maps import Labels, different_voxels, labels_of, listed, unknown_values
from alhvr_trainer.files.dataset_json import check_file_ending, check_labels
from alhvr_trainer.files.json_files import read_object
from alhvr_trainer.files.nifti import ENDINGS, stored_voxels


def read_dataset_json(source: str | Path | dict[str, Any]) -> tuple[Labels, str]:
    """Labels and the file ending.

    Raises:
        InputError: unreadable, or a key is missing or of the wrong form.
    """
    where, content = ("dataset.json", source) if isinstance(source, dict) else (str(source), read_object(source))
    check_labels(content, where)
    check_file_ending(content, where)
    labels = labels_of(content["labels"])
    if not labels.classes:
        raise InputError(f"{where} has no label besides the background")
    return labels, content["file_ending"]


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
            f"{listed(missing)}; predict them, or leave them out with only_predicted"
        )
    if missing:
        print(f"left out, references without prediction: {listed(missing)}", flush=True)
    if extra:
        print(f"left out, predictions without reference: {listed(extra)}", flush=True)
    return {case: (predicted[case], reference[case]) for case in cases}


def _cases(folder: Path, role: str, ending: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(f"the folder of {role} {folder} does not exist")
    files = {file.name[: -len(ending)]: file for file in folder.iterdir() if file.name.endswith(ending)}
    if not files:
        raise InputError(f'no file in the folder of {role} {folder} ends in "{ending}", as dataset.json says')
    return files


def read_pair(
    prediction_file: Path, reference_file: Path, labels: Labels
) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Both label arrays, and the spacing in mm per array axis.

    Raises:
        InputError: a file is unreadable, they lie on different voxels, or one has a value that is no label.
    """
    prediction, reference = _read(prediction_file), _read(reference_file)
    problem = different_voxels(prediction, reference, (prediction_file, reference_file))
    if problem:
        raise InputError(problem)
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
    problem = unknown_values(array, labels, file)
    if problem:
        raise InputError(problem)
    return array.astype(np.int64)
