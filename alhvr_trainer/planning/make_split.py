"""``alhvr make_split`` as a Python function."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alhvr_trainer.config.files import check_whole_number, read_json, write_json
from alhvr_trainer.data.dataset import find_dataset
from alhvr_trainer.data.splits import SPLITS_FILE, check_splits, choose_splits, split_summary
from alhvr_trainer.errors import InputError


def make_split(
    dataset: int | str,
    labeled: int | float | str | Sequence[str],
    folds: int = 1,
    validation: int | float | str | Sequence[str] | None = None,
    group: str | None = None,
    seed: int = 0,
    output: str | None = None,
    overwrite: bool = False,
) -> str:
    """Write a splits_final.json that hides the labels of most training cases, to simulate few labels.

    Every fold gets "train" (labeled), "unlabeled" (labels hidden from training) and "val". Stock nnU-Net ignores
    "unlabeled", so supervised training on the same split uses the labeled cases only. Split first, then plan.

    Args:
        dataset: nnU-Net dataset, as 27, "027" or "Dataset027_ACDC".
        labeled: labeled training cases: a number (7), a share of the training cases (0.1) or names
            (patient001,patient002).
        folds: number of folds; more than one make a cross-validation unless "validation" is given.
        validation: validation cases, as for "labeled"; default: a fifth, or the fold's part of a
            cross-validation.
        group: regular expression; cases whose names match with the same text stay together and count as one
            (patient\\d+ keeps the frames of a patient together).
        seed: of the random choice.
        output: file to write; default: splits_final.json in nnUNet_preprocessed.
        overwrite: replace a file that exists.

    Returns:
        Path of the file.

    Raises:
        InputError: numbers or names do not fit the dataset, or the file exists.

    Example:
        alhvr make_split -d 27 --labeled 7 --group 'patient\\d+'
        alhvr make_split -d 4 --labeled 0.05 --folds 5
    """
    found = find_dataset(dataset)
    cases, in_folders = sorted(found.images), found.unlabeled_images
    splits = choose_splits(cases, labeled, check_whole_number("folds", folds), validation, group, int(seed))
    if not all(split["unlabeled"] for split in splits) and not in_folders:
        raise InputError(f'"labeled" is {labeled}: no case of {found.name} is left to be unlabeled')
    file = Path(output) if output else Path(found.preprocessed) / SPLITS_FILE
    if file.is_dir():
        raise InputError(f"output {file} is a folder; name a file")
    if file.exists():
        _check_replaceable(file)
    if file.exists() and not overwrite:
        raise InputError(f"{file} exists: use --overwrite to replace it, or --output to write another file")
    in_raw = Path(str(found.raw)) / SPLITS_FILE
    if not output and in_raw.exists():
        raise InputError(f"{in_raw} exists, and nnU-Net refuses a different split beside it: remove it first")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(splits, file)
    print(f"{file}:", *split_summary(splits), sep="\n  ")
    if in_folders:
        print(f"  and in every fold {len(in_folders)} unlabeled cases of {', '.join(found.unlabeled_folders)}")
    return str(file)


def _check_replaceable(file: Path) -> None:
    """The file holds a split, not something else that would be lost.

    Raises:
        InputError: it does not.
    """
    try:
        check_splits(read_json(file))
    except InputError as error:
        raise InputError(f"output {file} exists and does not hold a split; choose another name") from error
