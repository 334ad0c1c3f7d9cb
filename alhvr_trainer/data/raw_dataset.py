"""The raw dataset folder as nnU-Net lays it out: ``dataset.json`` and image files, never a label file."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

from alhvr_trainer.config.dataset_json import check_dataset_json, file_ending
from alhvr_trainer.config.json_files import read_object
from alhvr_trainer.errors import InputError

Cases = dict[str, list[str]]
"""Case name -> its image files in channel order."""

IMAGE_ENDINGS = (
    *(".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".gipl", ".hdr", ".img", ".dcm"),
    *(".tif", ".tiff", ".png", ".bmp", ".jpg", ".jpeg", ".npy", ".npz"),
)
"""Files with another ending (JSON, text, hidden ones) may lie beside the images."""


def load_dataset_json(raw_dataset_folder: str) -> dict[str, Any]:
    """``dataset.json`` of a raw dataset; InputError if it is missing, broken, or not what nnU-Net documents."""
    file = Path(raw_dataset_folder) / "dataset.json"
    content = read_object(file)
    check_dataset_json(content, str(file))
    return content


def images_of_labeled_folder(raw_dataset_folder: str, dataset_json: dict[str, Any]) -> Cases:
    """Image files of nnU-Net's own (labeled) cases: ``imagesTr``, or ``"dataset"`` in ``dataset.json``."""
    if "dataset" in dataset_json:
        from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

        listed = get_filenames_of_train_images_and_targets(raw_dataset_folder, deepcopy(dataset_json))
        return {case: list(entry["images"]) for case, entry in listed.items()}
    folder = os.path.join(raw_dataset_folder, "imagesTr")
    if not os.path.isdir(folder):
        return {}
    by_case = files_by_case(folder, file_ending(dataset_json), strict=False)
    return {case: [channels[number] for number in sorted(channels)] for case, channels in by_case.items()}


def check_for_hidden_images(raw_dataset_folder: str, dataset_json: dict[str, Any]) -> None:
    """nnU-Net takes hidden files like ``._case_0000.nii.gz``, which macOS leaves behind, for images.

    Raises:
        InputError: there are such files in ``imagesTr``.
    """
    folder, ending = os.path.join(raw_dataset_folder, "imagesTr"), file_ending(dataset_json)
    names = sorted(os.listdir(folder)) if "dataset" not in dataset_json and os.path.isdir(folder) else []
    hidden = [name for name in names if name.startswith(".") and name.endswith(ending)]
    if hidden:
        raise InputError(
            f"{os.path.join(folder, hidden[0])} is a hidden file, which nnU-Net would take for an image; remove it and "
            f"its like: find {shlex.quote(raw_dataset_folder)} -name '.*{ending}' -delete"
        )


def check_case_names(cases: Iterable[str]) -> None:
    """No case is called as nnU-Net calls the preprocessed segmentation of another one.

    Raises:
        InputError: a name ends in ``_seg``.
    """
    for case in cases:
        if case.endswith("_seg"):
            raise InputError(
                f'case "{case}": nnU-Net keeps the segmentation of a case "{case[:-4]}" under this name, and finds '
                "no image there; rename the case"
            )


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
