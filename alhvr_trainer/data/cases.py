"""Where the unlabeled cases of a nnU-Net dataset lie, and the rules that keep them apart.

Two sources, joined for every fold:

- folders of the raw dataset: ``imagesTr_unlabeled``, or those that ``dataset.json`` names under
  ``"unlabeled"``;
- the ``"unlabeled"`` list of a fold in ``splits_final.json``: cases of ``imagesTr`` whose labels training
  must not see.

Only image files are listed here; the path of a label file is never built.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from alhvr_trainer.config.dataset_json import channel_names, file_ending
from alhvr_trainer.config.json_files import is_list_of, is_name, read_json
from alhvr_trainer.config.names import UNLABELED_FOLDER, UNLABELED_KEY
from alhvr_trainer.data.raw_dataset import Cases, check_case_names, files_by_case, images_of_labeled_folder
from alhvr_trainer.errors import InputError, did_you_mean, shown

SPLITS_FILE = "splits_final.json"


def raw_unlabeled_cases(raw_dataset_folder: str, dataset_json: dict[str, Any]) -> Cases:
    """The cases of the unlabeled folders (none of ``splits_final.json``); may be empty.

    Raises:
        InputError: a folder that ``dataset.json`` names does not exist; a file has another ending or no
            channel number; a case lacks a channel, has one too many, or lies in two folders or in
            ``imagesTr`` as well.

    Example:
        >>> raw_unlabeled_cases("Dataset027_ACDC", {"channel_names": {"0": "MR"}, "file_ending": ".nii.gz"})
        {'patient101': ['Dataset027_ACDC/imagesTr_unlabeled/patient101_0000.nii.gz']}
    """
    labeled = images_of_labeled_folder(raw_dataset_folder, dataset_json)
    # not the number of channels: one file may hold several (RGB images)
    files_per_case = max(map(len, labeled.values()), default=len(channel_names(dataset_json)))
    found: Cases = {}
    for folder in unlabeled_folders(raw_dataset_folder, dataset_json):
        for case, channels in files_by_case(folder, file_ending(dataset_json)).items():
            where = os.path.dirname(found[case][0]) if case in found else None
            where = os.path.join(raw_dataset_folder, "imagesTr") if case in labeled else where
            if where is not None:
                raise InputError(
                    f'unlabeled case "{case}" lies in {folder} and in {where}: remove or rename one of them'
                )
            _check_channels(case, folder, channels, files_per_case, file_ending(dataset_json))
            found[case] = [channels[number] for number in sorted(channels)]
    check_case_names([*labeled, *found])
    return found


def is_in_file(splits: list[dict[str, Any]], fold: int | str) -> bool:
    """Whether ``splits_final.json`` holds the fold: not ``"all"``, and none beyond its end."""
    return fold != "all" and int(fold) < len(splits)


def split_unlabeled_cases(splits: list[dict[str, Any]], fold: int | str) -> list[str]:
    """The cases under ``"unlabeled"`` of a fold; for fold ``"all"`` and folds beyond the file those of all folds.

    A fold that the file does not hold cannot say what it hides. nnU-Net takes all of ``imagesTr`` for it; here a
    case that some fold hides stays hidden there, unless another fold trains on its label.

    Raises:
        InputError: the splits or the key have the wrong form, or a case is listed twice.

    Example:
        >>> split_unlabeled_cases([{"train": ["a"], "unlabeled": ["b"], "val": ["c"]}], 0)
        ['b']
    """
    _check_splits(splits)
    if not is_in_file(splits, fold):
        hidden = {case for split in splits for case in split.get(UNLABELED_KEY, [])}
        return sorted(hidden.difference(*(split.get("train", []) for split in splits)))
    return list(splits[int(fold)].get(UNLABELED_KEY, []))


def unlabeled_cases_of_fold(
    raw_dataset_folder: str,
    dataset_json: dict[str, Any],
    splits: list[dict[str, Any]],
    fold: int | str,
    train_keys: Iterable[str],
    val_keys: Iterable[str],
) -> Cases:
    """All unlabeled cases of a fold: those of the folders and those of the split, sorted by name.

    Args:
        raw_dataset_folder: ``nnUNet_raw/DatasetXXX_Name``.
        dataset_json: its ``dataset.json``.
        splits: ``splits_final.json`` (``[]`` if there is none); see :func:`load_splits`.
        fold: number of the fold, or ``"all"``.
        train_keys: labeled training cases of the fold, as nnU-Net's ``do_split`` gives them.
        val_keys: its validation cases.

    Raises:
        InputError: there is none; one is also a training or validation case; one lies in a folder and stands
            in the split; one of the split has no images; or a rule of :func:`raw_unlabeled_cases` is broken.
    """
    split_cases = split_unlabeled_cases(splits, fold)
    # before the folders are read: this mistake is in the splits file alone
    for name, keys in (("train", set(train_keys)), ("val", set(val_keys))):
        _check_apart(split_cases, keys, f'"{UNLABELED_KEY}" and "{name}" of fold {fold} in {SPLITS_FILE}')
    cases = raw_unlabeled_cases(raw_dataset_folder, dataset_json)
    for name, keys in (("train", set(train_keys)), ("val", set(val_keys))):
        _check_apart(cases, keys, f'the unlabeled folder and "{name}" of fold {fold}')
    return _joined(cases, split_cases, raw_dataset_folder, dataset_json, f"fold {fold}")


def all_unlabeled_cases(raw_dataset_folder: str, dataset_json: dict[str, Any], splits: list[dict[str, Any]]) -> Cases:
    """The unlabeled cases of all folds together: what is planned for and preprocessed.

    Raises:
        InputError: as :func:`unlabeled_cases_of_fold`, for any fold.
    """
    split_cases: dict[str, None] = {}
    for fold, split in enumerate(splits):
        for name in ("train", "val"):
            overlap = f'"{UNLABELED_KEY}" and "{name}" of fold {fold} in {SPLITS_FILE}'
            _check_apart(split_unlabeled_cases(splits, fold), set(split.get(name, [])), overlap)
        split_cases.update(dict.fromkeys(split_unlabeled_cases(splits, fold)))
    cases = raw_unlabeled_cases(raw_dataset_folder, dataset_json)
    return _joined(cases, split_cases, raw_dataset_folder, dataset_json, "the dataset")


def load_splits(raw_dataset_folder: str, preprocessed_dataset_folder: str) -> list[dict[str, Any]]:
    """``splits_final.json`` as nnU-Net uses it: the preprocessed folder's, else the raw folder's, else
    ``[]``.

    Raises:
        InputError: a file is no list of folds, or both exist and disagree (nnU-Net refuses that, too, but
            does not look at ``"unlabeled"``).
    """
    loaded = []
    for folder in filter(None, (preprocessed_dataset_folder, raw_dataset_folder)):
        file = Path(folder) / SPLITS_FILE
        if file.is_file():
            loaded.append(read_json(file))
            _check_splits(loaded[-1], str(file))
    if not loaded:
        return []
    used, source = loaded[0], loaded[-1]
    for fold, split in enumerate(source):
        other = used[fold] if fold < len(used) else {}
        for key in ("train", "val", UNLABELED_KEY):
            if key in split and set(split[key]) != set(other.get(key, [])):
                raise InputError(
                    f'"{key}" of fold {fold} differs between {Path(raw_dataset_folder) / SPLITS_FILE} and '
                    f"{Path(preprocessed_dataset_folder) / SPLITS_FILE}: delete the one that is out of date"
                )
    return used


def unlabeled_folders(raw_dataset_folder: str, dataset_json: dict[str, Any]) -> list[str]:
    """Folders to look for unlabeled cases in: those that ``dataset.json`` names, else the default one."""
    named = dataset_json.get(UNLABELED_KEY)
    if named is None:
        _check_spelling(dataset_json, (UNLABELED_KEY,), os.path.join(raw_dataset_folder, "dataset.json"))
        subfolders = [entry.name for entry in os.scandir(raw_dataset_folder) if entry.is_dir()]
        _check_spelling(subfolders, (UNLABELED_FOLDER,), raw_dataset_folder)
        return [os.path.join(raw_dataset_folder, UNLABELED_FOLDER)] if UNLABELED_FOLDER in subfolders else []
    if not isinstance(named, list) or not all(isinstance(folder, str) and folder for folder in named):
        raise InputError(
            f'"{UNLABELED_KEY}" in dataset.json must be a list of folders, e.g. ["{UNLABELED_FOLDER}"], '
            f"found {shown(named)}"
        )
    folders = [os.path.normpath(os.path.join(raw_dataset_folder, os.path.expandvars(folder))) for folder in named]
    for folder in folders:
        if not os.path.isdir(folder):
            raise InputError(f'"{UNLABELED_KEY}" in dataset.json names the folder {folder}, which does not exist')
    return list(dict.fromkeys(folders))


def _check_spelling(names: Iterable[str], known: tuple[str, ...], where: str) -> None:
    """No name is one letter or capital away from one that would be looked at."""
    for name in names:
        near = get_close_matches(name.lower(), [each.lower() for each in known], 1, cutoff=0.9)
        if near and name not in known:
            raise InputError(f'{where} has "{name}"{did_you_mean(name, known)}')


def _check_channels(case: str, folder: str, channels: Collection[int], expected: int, ending: str) -> None:
    missing, extra = set(range(expected)) - set(channels), set(channels) - set(range(expected))
    for numbers, problem in ((missing, "missing"), (extra, "one channel too many")):
        if numbers:
            raise InputError(
                f'unlabeled case "{case}" in {folder}: {case}_{min(numbers):04d}{ending} is {problem} '
                f"(labeled cases have {expected} file{'s' if expected > 1 else ''} each)"
            )


def _joined(
    folder_cases: Cases,
    split_cases: Iterable[str],
    raw_dataset_folder: str,
    dataset_json: dict[str, Any],
    where: str,
) -> Cases:
    split_cases = list(split_cases)
    _check_apart(folder_cases, set(split_cases), f'an unlabeled folder and "{UNLABELED_KEY}" in {SPLITS_FILE}')
    labeled = images_of_labeled_folder(raw_dataset_folder, dataset_json) if split_cases else {}
    without_images = sorted(set(split_cases) - set(labeled))
    if without_images:
        raise InputError(
            f'case "{without_images[0]}" stands under "{UNLABELED_KEY}" in {SPLITS_FILE}, '
            f"but {os.path.join(raw_dataset_folder, 'imagesTr')} has no images of it"
        )
    cases = {**folder_cases, **{case: labeled[case] for case in split_cases}}
    if not cases:
        raise InputError(
            f"no unlabeled case for {where}: put images into "
            f"{os.path.join(raw_dataset_folder, UNLABELED_FOLDER)} (or name folders under "
            f'"{UNLABELED_KEY}" in dataset.json), or list cases under "{UNLABELED_KEY}" of the fold in '
            f"{SPLITS_FILE} (alhvr make_split writes one)"
        )
    return {case: cases[case] for case in sorted(cases)}


def _check_apart(cases: Iterable[str], others: Collection[str], where: str) -> None:
    both = sorted(set(cases) & set(others))
    if both:
        more = f" (and {len(both) - 1} more)" if len(both) > 1 else ""
        raise InputError(f'case "{both[0]}"{more} stands in {where}: it can be in one of them only')


def _check_splits(splits: object, file: str = SPLITS_FILE) -> None:
    if not isinstance(splits, list) or not all(isinstance(split, dict) for split in splits):
        form = f'[{{"train": [...], "{UNLABELED_KEY}": [...], "val": [...]}}]'
        raise InputError(f"{file} must be a list of folds: {form}")
    for fold, split in enumerate(splits):
        _check_spelling(split, ("train", UNLABELED_KEY, "val"), f"fold {fold} in {file}")
        for key in ("train", "val"):
            if not is_list_of(split.get(key), is_name):
                raise InputError(
                    f'"{key}" of fold {fold} in {file} must be a list of case names, found {shown(split.get(key))}'
                )
        _check_unlabeled(split.get(UNLABELED_KEY, []), fold, file)


def _check_unlabeled(cases: object, fold: int, file: str) -> None:
    if not isinstance(cases, list) or not is_list_of(cases, is_name):
        raise InputError(
            f'"{UNLABELED_KEY}" of fold {fold} in {file} must be a list of case names, found {shown(cases)}'
        )
    if len(set(cases)) < len(cases):
        twice = next(case for case in cases if cases.count(case) > 1)
        raise InputError(f'case "{twice}" stands twice under "{UNLABELED_KEY}" of fold {fold} in {file}')
