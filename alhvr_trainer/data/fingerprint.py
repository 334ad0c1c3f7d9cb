"""The unlabeled part of nnU-Net's dataset fingerprint.

Planning looks at spacings and shapes of labeled and unlabeled cases, and at intensities of the labeled
foreground. ``dataset_fingerprint.json`` gets two more keys for that::

    "labeled_cases": [case, ...]       the cases behind nnU-Net's own entries (absent: all of imagesTr)
    "unlabeled": {"cases": [...], "spacings": [...], "shapes_after_crop": [...], "files": [...]}
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero

from alhvr_trainer.compatibility import nnunet_folder
from alhvr_trainer.config.dataset_json import channel_names
from alhvr_trainer.config.json_files import read_object
from alhvr_trainer.config.names import UNLABELED_KEY
from alhvr_trainer.data.cases import all_unlabeled_cases, load_splits, split_unlabeled_cases
from alhvr_trainer.data.images import check_channel_count, read_case
from alhvr_trainer.data.raw_dataset import Cases, check_for_hidden_images, images_of_labeled_folder, load_dataset_json
from alhvr_trainer.data.sources import same_sources, source_stamps
from alhvr_trainer.data.workers import run_on_cases, useful_processes
from alhvr_trainer.errors import InputError

FINGERPRINT_FILE = "dataset_fingerprint.json"
LABELED_CASES = "labeled_cases"


class ALHVRFingerprintExtractor(DatasetFingerprintExtractor):
    """nnU-Net's extractor without the cases that ``splits_final.json`` calls unlabeled.

    Their labels exist, but are hidden from training; the statistics of the foreground would let them in again
    (CT normalization uses these). A case that any fold calls unlabeled is left out. If that leaves none, as
    in a cross validation over all cases, the training cases of all folds are taken.
    """

    def __init__(self, dataset_name_or_id: str | int, num_processes: int = 8, verbose: bool = False):
        super().__init__(dataset_name_or_id, num_processes, verbose)
        check_for_hidden_images(self.input_folder, self.dataset_json)
        splits = load_splits(self.input_folder, os.path.join(nnunet_folder("nnUNet_preprocessed"), self.dataset_name))
        hidden = {case for fold in range(len(splits)) for case in split_unlabeled_cases(splits, fold)}
        kept = [case for case in self.dataset if case not in hidden]
        if not kept:
            kept = [case for case in self.dataset if any(case in split.get("train", []) for split in splits)]
            print("Every case is unlabeled in some fold: intensities come from all folds' training cases")
        self.dataset: dict[str, Any] = {case: self.dataset[case] for case in kept}

    def run(self, overwrite_existing: bool = False) -> dict[str, Any]:
        file = Path(nnunet_folder("nnUNet_preprocessed")) / self.dataset_name / FINGERPRINT_FILE
        cases = [str(case) for case in self.dataset]
        if file.is_file() and not overwrite_existing:
            overwrite_existing = _labeled_cases(load_fingerprint(file), self.input_folder, self.dataset_json) != cases
        super().run(overwrite_existing)
        # what nnU-Net returns after extraction holds arrays; the file holds plain values
        fingerprint = {**load_fingerprint(file), LABELED_CASES: cases}
        _save(fingerprint, file)
        return fingerprint


def add_unlabeled_to_fingerprint(dataset_name: str, num_processes: int) -> dict[str, Any]:
    """Read every unlabeled case once and add their spacings and shapes to ``dataset_fingerprint.json``.

    Cases that nnU-Net's own entries cover already (those of ``imagesTr``, unless left out as hidden) are not
    repeated. Cases whose files have not changed since the last time are not read again.

    Args:
        dataset_name: ``DatasetXXX_Name``.
        num_processes: worker processes; 0 or 1 works in this process, and so do few small images.

    Returns:
        The whole fingerprint, see the module's documentation. Spacings in mm and shapes after cropping in the
        axis order of nnU-Net's own entries.

    Raises:
        InputError: no fingerprint yet; no unlabeled case; an image cannot be used.

    Example:
        >>> fingerprint = add_unlabeled_to_fingerprint("Dataset027_ACDC", num_processes=4)
        >>> fingerprint["unlabeled"]["shapes_after_crop"][0]
        [9, 256, 216]
    """
    raw_folder = os.path.join(nnunet_folder("nnUNet_raw"), dataset_name)
    preprocessed_folder = os.path.join(nnunet_folder("nnUNet_preprocessed"), dataset_name)
    file = Path(preprocessed_folder) / FINGERPRINT_FILE
    fingerprint = load_fingerprint(file)
    dataset_json = load_dataset_json(raw_folder)
    cases = all_unlabeled_cases(raw_folder, dataset_json, load_splits(raw_folder, preprocessed_folder))
    covered = set(_labeled_cases(fingerprint, raw_folder, dataset_json))
    known = _by_case(fingerprint.get(UNLABELED_KEY, {}))
    entries = {case: known.get(case) for case in cases if case not in covered}
    changed: Cases = {
        case: cases[case]
        for case, entry in entries.items()
        if not entry or not same_sources(entry["files"], cases[case])
    }
    if changed:
        example = next(iter(images_of_labeled_folder(raw_folder, dataset_json).values()), next(iter(cases.values())))[0]
        reader = determine_reader_writer_from_dataset_json(dataset_json, example, verbose=False)
        arguments = {case: (files, reader, len(channel_names(dataset_json))) for case, files in changed.items()}
        processes = useful_processes(num_processes, changed)
        entries.update(run_on_cases(_analyze, arguments, processes, "Fingerprint of unlabeled cases"))
    fingerprint[UNLABELED_KEY] = {
        "cases": list(entries),
        **{
            key: [entry[key] for entry in entries.values() if entry]
            for key in ("spacings", "shapes_after_crop", "files")
        },
    }
    _save(fingerprint, file)
    return fingerprint


def merged_with_unlabeled(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """The fingerprint as if labeled and unlabeled cases were one dataset: spacings and shapes only."""
    unlabeled = fingerprint[UNLABELED_KEY]
    return {
        **fingerprint,
        **{key: fingerprint[key] + unlabeled[key] for key in ("spacings", "shapes_after_crop")},
    }


def load_fingerprint(file: Path) -> dict[str, Any]:
    """Read ``dataset_fingerprint.json``; InputError if it is missing or broken."""
    if not file.is_file():
        raise InputError(f"{file} does not exist: extract the fingerprint first (alhvr plan_and_preprocess)")
    return read_object(file, "delete it and plan again")


def _labeled_cases(fingerprint: dict[str, Any], raw_folder: str, dataset_json: dict[str, Any]) -> list[str]:
    stored = fingerprint.get(LABELED_CASES)
    return stored if stored is not None else sorted(images_of_labeled_folder(raw_folder, dataset_json))


def _by_case(part: dict[str, Any]) -> dict[str, dict[str, Any]]:
    keys = ("spacings", "shapes_after_crop", "files")
    columns = [part.get(key, []) for key in keys]
    return {case: dict(zip(keys, row, strict=True)) for case, *row in zip(part.get("cases", []), *columns, strict=True)}


def _analyze(files: list[str], reader_writer: type[BaseReaderWriter], channels: int) -> dict[str, Any]:
    stamps = source_stamps(files)
    data, properties = read_case(files, reader_writer())
    check_channel_count(data, files, channels)
    cropped, _, _ = crop_to_nonzero(data)
    return {
        "spacings": [float(size) for size in properties["spacing"]],
        "shapes_after_crop": [int(size) for size in cropped.shape[1:]],
        "files": stamps,
    }


def _save(fingerprint: dict[str, Any], file: Path) -> None:
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(fingerprint, indent=4))
    os.replace(partial, file)
