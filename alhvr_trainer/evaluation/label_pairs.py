"""Finding, reading and checking the files that ``alhvr evaluate`` compares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alhvr_trainer.bundle.scripts.label_files import LabelMap, different_voxels, read_label_map
from alhvr_trainer.bundle.scripts.label_maps import Labels, labels_of, listed, unknown_values
from alhvr_trainer.bundle.scripts.nifti import check_complete
from alhvr_trainer.config.dataset_json import check_file_ending, check_labels
from alhvr_trainer.config.files import read_object
from alhvr_trainer.errors import InputError


def read_dataset_json(source: str | Path | dict[str, Any]) -> tuple[Labels, dict[str, Any]]:
    """Labels, and the whole content.

    Raises:
        InputError: unreadable, or a key is missing or of the wrong form.
    """
    where, content = ("dataset.json", source) if isinstance(source, dict) else (str(source), read_object(source))
    check_labels(content, where)
    check_file_ending(content, where)
    labels = labels_of(content["labels"])
    if not labels.classes:
        raise InputError(f"{where} has no label besides the background")
    return labels, content


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
    if predictions.samefile(references):
        raise InputError(f"{predictions} and {references} are one folder: predictions would be their own references")
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
    files = {case: file for case, file in files.items() if not file.name.startswith(".")}
    if not files:
        raise InputError(f'no file in the folder of {role} {folder} ends in "{ending}", as dataset.json says')
    return files


def read_pair(
    prediction_file: Path, reference_file: Path, labels: Labels, dataset_json: dict[str, Any]
) -> tuple[LabelMap, LabelMap]:
    """Prediction and reference, as nnU-Net reads them.

    Raises:
        InputError: a file is unreadable, they lie on different voxels, or one has a value that is not a label.
    """
    prediction, reference = (_read(file, labels, dataset_json) for file in (prediction_file, reference_file))
    problem = different_voxels(prediction, reference, (prediction_file, reference_file))
    if problem:
        raise InputError(problem)
    return prediction, reference


def _read(file: Path, labels: Labels, dataset_json: dict[str, Any]) -> LabelMap:
    check_complete(file)
    try:
        label_map = read_label_map(file, dataset_json)
    except ValueError as error:
        raise InputError(str(error)) from error
    problem = unknown_values(label_map.array, labels, file)
    if problem:
        raise InputError(problem)
    return label_map
