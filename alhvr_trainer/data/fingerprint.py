"""The unlabeled part of nnU-Net's dataset fingerprint.

Planning looks at spacings and shapes of labeled and unlabeled cases, and at intensities of the labeled
foreground. ``dataset_fingerprint.json`` gets two more keys for that::

    "labeled_cases": [case, ...]       the cases behind nnU-Net's own entries (absent: all of imagesTr)
    "unlabeled": {"cases": [...], "spacings": [...], "shapes_after_crop": [...], "files": [...]}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero

from alhvr_trainer.config.dataset_json import channel_names
from alhvr_trainer.config.files import read_object, write_json
from alhvr_trainer.config.names import UNLABELED_KEY
from alhvr_trainer.data.case_images import check_channel_count, read_case
from alhvr_trainer.data.dataset import Cases, Dataset, named_dataset
from alhvr_trainer.data.sources import renewed_stamps, source_stamps
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

    def __init__(
        self,
        dataset_name_or_id: str | int,
        num_processes: int = 8,
        verbose: bool = False,
        source: Dataset | None = None,
    ):
        super().__init__(dataset_name_or_id, num_processes, verbose)
        self.source = source or named_dataset(self.dataset_name)
        self.source.check_no_hidden_files()
        kept = [case for case in self.dataset if case not in self.source.hidden]
        if not kept:
            trained_on = {case for split in self.source.splits for case in split["train"]}
            kept = [case for case in self.dataset if case in trained_on]
            print("Every case is unlabeled in some fold: intensities come from all folds' training cases")
        self.dataset: dict[str, Any] = {case: self.dataset[case] for case in kept}

    def run(self, overwrite_existing: bool = False) -> dict[str, Any]:
        file = Path(self.source.preprocessed) / FINGERPRINT_FILE
        cases = [str(case) for case in self.dataset]
        if file.is_file() and not overwrite_existing:
            overwrite_existing = _labeled_cases(load_fingerprint(file), self.source) != cases
        super().run(overwrite_existing)
        # what nnU-Net returns after extraction holds arrays; the file holds plain values
        fingerprint = load_fingerprint(file)
        if fingerprint.get(LABELED_CASES) != cases:
            fingerprint[LABELED_CASES] = cases
            write_json(fingerprint, file, indent=4)
        return fingerprint


def add_unlabeled_to_fingerprint(dataset: Dataset, num_processes: int) -> dict[str, Any]:
    """Read every unlabeled case once and add their spacings and shapes to ``dataset_fingerprint.json``.

    Cases that nnU-Net's own entries cover already (those of ``imagesTr``, unless left out as hidden) are not
    repeated. Cases whose files have not changed since the last time are not read again.

    Args:
        dataset: with a fingerprint of its labeled cases.
        num_processes: worker processes; 0 or 1 works in this process, and so do few small images.

    Returns:
        The whole fingerprint, see the module's documentation. Spacings in mm and shapes after cropping in the
        axis order of nnU-Net's own entries.

    Raises:
        InputError: no fingerprint yet; no unlabeled case; an image cannot be used.

    Example:
        >>> fingerprint = add_unlabeled_to_fingerprint(find_dataset(27), num_processes=4)
        >>> fingerprint["unlabeled"]["shapes_after_crop"][0]
        [9, 256, 216]
    """
    file = Path(dataset.preprocessed) / FINGERPRINT_FILE
    fingerprint, cases, dataset_json = load_fingerprint(file), dataset.unlabeled, dataset.dataset_json
    covered = set(_labeled_cases(fingerprint, dataset))
    known = _by_case(fingerprint.get(UNLABELED_KEY, {}))
    entries = {case: known.get(case) for case in cases if case not in covered}
    stamps = {case: renewed_stamps(entry["files"], cases[case]) if entry else None for case, entry in entries.items()}
    entries = {case: entry and {**entry, "files": stamps[case]} for case, entry in entries.items()}
    changed: Cases = {case: cases[case] for case in entries if stamps[case] is None}
    if changed:
        example = next(iter({**dataset.images, **cases}.values()))[0]
        reader = determine_reader_writer_from_dataset_json(dataset_json, example, verbose=False)
        arguments = {case: (files, reader, len(channel_names(dataset_json))) for case, files in changed.items()}
        processes = useful_processes(num_processes, changed)
        entries.update(run_on_cases(_analyze, arguments, processes, "Fingerprint of unlabeled cases"))
    part = {
        "cases": list(entries),
        **{
            key: [entry[key] for entry in entries.values() if entry]
            for key in ("spacings", "shapes_after_crop", "files")
        },
    }
    if fingerprint.get(UNLABELED_KEY) != part:
        fingerprint[UNLABELED_KEY] = part
        write_json(fingerprint, file, indent=4)
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


def _labeled_cases(fingerprint: dict[str, Any], dataset: Dataset) -> list[str]:
    stored = fingerprint.get(LABELED_CASES)
    return stored if stored is not None else sorted(dataset.images)


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
