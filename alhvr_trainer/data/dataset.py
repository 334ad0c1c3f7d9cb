"""An nnU-Net dataset: its folders and splits, and which of its cases are labeled, unlabeled and hidden.

Unlabeled cases come from two places:

- folders of the raw dataset: ``imagesTr_unlabeled``, or those that ``dataset.json`` names under ``"unlabeled"``;
- the ``"unlabeled"`` list of a fold in ``splits_final.json``: cases of ``imagesTr`` whose labels are hidden from
  training.

Only image files are listed here; the path of a label file is never built.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Iterable
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from alhvr_trainer.compatibility import nnunet_folder, nnunet_folder_if_set, require_nnunet_folders
from alhvr_trainer.config.files import read_object
from alhvr_trainer.config.lookup import dataset_in
from alhvr_trainer.config.names import JOURNAL, UNLABELED_FOLDER, UNLABELED_KEY
from alhvr_trainer.data.splits import SPLITS_FILE, Splits, check_spelling, hidden_cases, load_splits
from alhvr_trainer.errors import InputError, shown

Cases = dict[str, list[str]]
"""Case name -> its image files in channel order."""

IMAGE_ENDINGS = (
    *(".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".gipl", ".hdr", ".img", ".dcm"),
    *(".tif", ".tiff", ".png", ".bmp", ".jpg", ".jpeg", ".npy", ".npz"),
)
"""Files with other endings (JSON, text, hidden files) may be in the same folder."""


@dataclass(frozen=True)
class Dataset:
    """A dataset, whose files and folders are each read once, at first use.

    Example:
        >>> dataset = find_dataset(27)                                     # doctest: +SKIP
        >>> dataset.fold(0, ["patient001"], ["patient002"]).unlabeled      # doctest: +SKIP
        {'patient101': ['…/Dataset027_ACDC/imagesTr_unlabeled/patient101_0000.nii.gz']}
    """

    name: str
    """``DatasetXXX_Name``."""
    raw: str | None
    """Its folder in ``nnUNet_raw``; None on a machine that has preprocessed data only."""
    preprocessed: str
    """Its folder in ``nnUNet_preprocessed``, which may not exist yet."""
    dataset_json: dict[str, Any]

    @cached_property
    def splits(self) -> Splits:
        """``splits_final.json`` as nnU-Net uses it; ``[]`` if there is none."""
        return load_splits(self.raw or self.preprocessed, self.preprocessed)

    @cached_property
    def images(self) -> Cases:
        """nnU-Net's own cases, with labels or hidden ones: ``imagesTr``, or ``"dataset"`` in ``dataset.json``."""
        if self.raw is None:
            return {}
        if "dataset" in self.dataset_json:
            from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

            listed = get_filenames_of_train_images_and_targets(self.raw, deepcopy(self.dataset_json))
            return {case: list(entry["images"]) for case, entry in listed.items()}
        folder = os.path.join(self.raw, "imagesTr")
        if not os.path.isdir(folder):
            return {}
        by_case = files_by_case(folder, self.dataset_json["file_ending"], strict=False)
        return {case: _in_order(channels) for case, channels in by_case.items()}

    @cached_property
    def unlabeled_folders(self) -> list[str]:
        """Those that ``dataset.json`` names, else the default one if it exists."""
        return _unlabeled_folders(self.raw, self.dataset_json) if self.raw is not None else []

    @cached_property
    def unlabeled_images(self) -> Cases:
        """The cases of the unlabeled folders (none of ``splits_final.json``); may be empty.

        Raises:
            InputError: a folder that ``dataset.json`` names does not exist; a file has another ending or no channel
                number; a case lacks a channel, has one too many, or is in two folders or also in ``imagesTr``.
        """
        # here, for the commands' help does without pydantic
        from alhvr_trainer.config.dataset_json import channel_names

        journal = Path(str(self.raw), JOURNAL)
        if journal.is_file():
            raise InputError(f"{journal}: alhvr move_labeled was interrupted; repeat it, for cases are moved by half")
        ending = self.dataset_json["file_ending"]
        # not the number of channels: one file may hold several (RGB images)
        files_per_case = max(map(len, self.images.values()), default=len(channel_names(self.dataset_json)))
        found: Cases = {}
        for folder in self.unlabeled_folders:
            for case, channels in files_by_case(folder, ending).items():
                where = os.path.dirname(found[case][0]) if case in found else None
                where = os.path.join(str(self.raw), "imagesTr") if case in self.images else where
                if where is not None:
                    raise InputError(
                        f'unlabeled case "{case}" is in {folder} and in {where}: remove or rename one of them'
                    )
                _check_channels(case, folder, channels, files_per_case, ending)
                found[case] = _in_order(channels)
        _check_case_names([*self.images, *found])
        return found

    @cached_property
    def unlabeled(self) -> Cases:
        """The unlabeled cases of all folds: what is planned for and preprocessed.

        Raises:
            InputError: as :attr:`unlabeled_images` and :attr:`Fold.unlabeled`, for any fold.
        """
        listed: dict[str, None] = {}
        for number, split in enumerate(self.splits):
            hidden = hidden_cases(self.splits, number)
            for key in ("train", "val"):
                _check_apart(hidden, split.get(key, []), _in_split(key, number))
            listed.update(dict.fromkeys(hidden))
        return self.with_hidden(listed, "the dataset")

    @cached_property
    def hidden(self) -> frozenset[str]:
        """Cases of ``imagesTr`` listed under ``"unlabeled"`` in some fold."""
        return frozenset(case for number in range(len(self.splits)) for case in hidden_cases(self.splits, number))

    def fold(self, number: int | str, train: Collection[str], validation: Collection[str]) -> Fold:
        """A fold with its labeled cases, as nnU-Net's ``do_split`` gives them."""
        return Fold(self, number, tuple(train), tuple(validation))

    def with_hidden(self, hidden: Collection[str], where: str) -> Cases:
        """The cases of the unlabeled folders and hidden ones of ``imagesTr``, sorted by name.

        Args:
            hidden: names of the latter.
            where: what an error calls the fold or dataset.

        Raises:
            InputError: there is none, or a hidden case has no images or is also in an unlabeled folder.
        """
        _check_apart(self.unlabeled_images, hidden, f'an unlabeled folder and "{UNLABELED_KEY}" in {SPLITS_FILE}')
        without_images = sorted(set(hidden) - set(self.images))
        if without_images:
            raise InputError(
                f'case "{without_images[0]}" is listed under "{UNLABELED_KEY}" in {SPLITS_FILE}, '
                f"but {os.path.join(str(self.raw), 'imagesTr')} has no images of it"
            )
        cases = {**self.unlabeled_images, **{case: self.images[case] for case in hidden}}
        if not cases:
            raise InputError(
                f"no unlabeled case for {where}: put images into {os.path.join(str(self.raw), UNLABELED_FOLDER)} (or "
                f'name folders under "{UNLABELED_KEY}" in dataset.json), or list cases under "{UNLABELED_KEY}" of the '
                f"fold in {SPLITS_FILE} (alhvr make_split writes one)"
            )
        return dict(sorted(cases.items()))

    def check_no_hidden_files(self) -> None:
        """nnU-Net mistakes hidden files such as macOS's ``._case_0000.nii.gz`` for images.

        Raises:
            InputError: there are such files in ``imagesTr``.
        """
        folder, ending = os.path.join(str(self.raw), "imagesTr"), self.dataset_json["file_ending"]
        names = sorted(os.listdir(folder)) if "dataset" not in self.dataset_json and os.path.isdir(folder) else []
        hidden = [name for name in names if name.startswith(".") and name.endswith(ending)]
        if hidden:
            raise InputError(
                f"{os.path.join(folder, hidden[0])} is a hidden file, which nnU-Net would mistake for an image; remove "
                f"all of them: find {shlex.quote(str(self.raw))} -name '.*{ending}' -delete"
            )


@dataclass(frozen=True)
class Fold:
    """A fold of a dataset."""

    dataset: Dataset
    number: int | str
    """``"all"``, or its place in ``splits_final.json`` or in nnU-Net's own cross validation."""
    train: tuple[str, ...]
    validation: tuple[str, ...]

    @property
    def hidden(self) -> list[str]:
        """Cases of ``imagesTr`` that the fold takes as unlabeled ones, see :func:`hidden_cases`."""
        return hidden_cases(self.dataset.splits, self.number)

    @cached_property
    def unlabeled(self) -> Cases:
        """All unlabeled cases of the fold, sorted by name.

        Raises:
            InputError: there is none; one is also a training or validation case; one is both in a folder and in
                the split; one of the split has no images; or a rule of :attr:`Dataset.unlabeled_images` is broken.
        """
        labeled = {"train": self.train, "val": self.validation}
        for key, cases in labeled.items():  # before the folders are read: this mistake is in the splits file alone
            _check_apart(self.hidden, cases, _in_split(key, self.number))
        for key, cases in labeled.items():
            where = f'the unlabeled folder and "{key}" of fold {self.number}'
            _check_apart(self.dataset.unlabeled_images, cases, where)
        return self.dataset.with_hidden(self.hidden, f"fold {self.number}")


def find_dataset(dataset: int | str) -> Dataset:
    """The raw dataset of this name or number.

    Args:
        dataset: 27, ``"027"`` or ``"Dataset027_ACDC"``.

    Raises:
        InputError: an environment variable is not set, there is no such dataset or more than one of this number, or
            its ``dataset.json`` is missing or broken.
    """
    require_nnunet_folders("nnUNet_raw", "nnUNet_preprocessed")
    name = dataset_in("nnUNet_raw", dataset)
    # nnU-Net looks datasets up by their number, in all of its folders
    from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets

    same_number = sorted({name, *map(str, find_candidate_datasets(int(name[7:10])))})
    if len(same_number) > 1:
        raise InputError(f"several datasets have the number {name[7:10]}: {', '.join(same_number)}")
    return named_dataset(name)


def named_dataset(name: str, dataset_json: dict[str, Any] | None = None) -> Dataset:
    """The dataset in nnU-Net's folders.

    Args:
        name: ``DatasetXXX_Name``.
        dataset_json: its content; default: the file in the raw dataset. With it, the raw dataset need not be there.

    Raises:
        InputError: a folder of nnU-Net is not set, or ``dataset.json`` is missing or broken.
    """
    if dataset_json is None:
        return Dataset(name, raw_folder(name), preprocessed_folder(name), load_dataset_json(raw_folder(name)))
    raw = raw_folder(name) if nnunet_folder_if_set("nnUNet_raw") else ""
    return Dataset(name, raw if os.path.isdir(raw) else None, preprocessed_folder(name), dataset_json)


def raw_folder(name: str) -> str:
    return os.path.join(nnunet_folder("nnUNet_raw"), name)


def preprocessed_folder(name: str) -> str:
    return os.path.join(nnunet_folder("nnUNet_preprocessed"), name)


def load_dataset_json(folder: str) -> dict[str, Any]:
    """``dataset.json`` in a folder; InputError if it is missing, broken, or not what nnU-Net documents."""
    from alhvr_trainer.config.dataset_json import check_dataset_json

    file = Path(folder) / "dataset.json"
    content = read_object(file)
    check_dataset_json(content, str(file))
    return content


def files_by_case(folder: str, ending: str, strict: bool = True) -> dict[str, dict[int, str]]:
    """Case -> channel number -> file; no hidden ones. ``strict``: images that nnU-Net would pass over are errors."""
    pattern = re.compile(rf"(.+)_(\d{{4}}){re.escape(ending)}")
    found: dict[str, dict[int, str]] = {}
    for name in sorted(name for name in os.listdir(folder) if not name.startswith(".")):
        file = os.path.join(folder, name)
        match = pattern.fullmatch(name)
        if match:
            found.setdefault(match[1], {})[int(match[2])] = file
        elif strict:
            if name.endswith(ending):
                raise InputError(f"{file} has no channel number: name it CASE_0000{ending}")
            if name.lower().endswith(IMAGE_ENDINGS):
                raise InputError(
                    f'{file} has another file ending than the dataset: "file_ending" in dataset.json is "{ending}"'
                )
    return found


def _in_order(channels: dict[int, str]) -> list[str]:
    return [channels[number] for number in sorted(channels)]


def _unlabeled_folders(raw: str, dataset_json: dict[str, Any]) -> list[str]:
    named = dataset_json.get(UNLABELED_KEY)
    if named is None:
        check_spelling(dataset_json, (UNLABELED_KEY,), os.path.join(raw, "dataset.json"))
        subfolders = [entry.name for entry in os.scandir(raw) if entry.is_dir()]
        check_spelling(subfolders, (UNLABELED_FOLDER,), raw)
        return [os.path.join(raw, UNLABELED_FOLDER)] if UNLABELED_FOLDER in subfolders else []
    if not isinstance(named, list) or not all(isinstance(folder, str) and folder for folder in named):
        raise InputError(
            f'"{UNLABELED_KEY}" in dataset.json must be a list of folders, e.g. ["{UNLABELED_FOLDER}"], '
            f"found {shown(named)}"
        )
    folders = [os.path.normpath(os.path.join(raw, os.path.expandvars(folder))) for folder in named]
    for folder in folders:
        if not os.path.isdir(folder):
            raise InputError(f'"{UNLABELED_KEY}" in dataset.json names the folder {folder}, which does not exist')
    return list(dict.fromkeys(folders))


def _check_channels(case: str, folder: str, channels: Collection[int], expected: int, ending: str) -> None:
    missing, extra = set(range(expected)) - set(channels), set(channels) - set(range(expected))
    for numbers, problem in ((missing, "missing"), (extra, "one channel too many")):
        if numbers:
            raise InputError(
                f'unlabeled case "{case}" in {folder}: {case}_{min(numbers):04d}{ending} is {problem} '
                f"(labeled cases have {expected} file{'s' if expected > 1 else ''} each)"
            )


def _check_case_names(cases: Iterable[str]) -> None:
    for case in cases:
        if case.endswith("_seg"):
            raise InputError(
                f'case "{case}": nnU-Net keeps the segmentation of a case "{case[:-4]}" under this name, and finds '
                "no image there; rename the case"
            )


def _in_split(key: str, fold: int | str) -> str:
    return f'"{UNLABELED_KEY}" and "{key}" of fold {fold} in {SPLITS_FILE}'


def _check_apart(cases: Iterable[str], others: Collection[str], where: str) -> None:
    both = sorted(set(cases) & set(others))
    if both:
        more = f" (and {len(both) - 1} more)" if len(both) > 1 else ""
        raise InputError(f'case "{both[0]}"{more} is in {where}: it can be in one of them only')
