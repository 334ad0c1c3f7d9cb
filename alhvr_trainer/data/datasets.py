"""The dataset that a command names, and its folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from alhvr_trainer.compatibility import nnunet_folder, require_nnunet_folders
from alhvr_trainer.errors import InputError


def resolve_dataset(dataset: int | str) -> str:
    """``DatasetXXX_Name`` in nnUNet_raw for 27, ``"027"`` or the name itself.

    Raises:
        InputError: an environment variable is missing, or there is no such dataset, or more than one.
    """
    require_nnunet_folders("nnUNet_raw", "nnUNet_preprocessed")
    raw = Path(nnunet_folder("nnUNet_raw"))
    text = str(dataset)
    if not raw.is_dir():
        raise InputError(f"nnUNet_raw is {raw}, which is no folder")
    names = sorted(folder.name for folder in raw.glob("Dataset[0-9][0-9][0-9]_*") if folder.is_dir())
    prefix = f"Dataset{int(text):03d}_" if text.isdigit() else None
    found = [name for name in names if name == text or (prefix and name.startswith(prefix))]
    if not found:
        raise InputError(f"no dataset {text} in {raw}; there are: {', '.join(names) or 'none'}")
    # nnU-Net looks datasets up by their number, in all of its folders
    from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets

    same_number = sorted({*found, *map(str, find_candidate_datasets(int(found[0][7:10])))})
    if len(same_number) > 1:
        raise InputError(f"several datasets have the number {found[0][7:10]}: {', '.join(same_number)}")
    return found[0]


def raw_folder(name: str) -> str:
    return os.path.join(nnunet_folder("nnUNet_raw"), name)


def preprocessed_folder(name: str) -> str:
    return os.path.join(nnunet_folder("nnUNet_preprocessed"), name)


def whole_number(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f'"{name}" must be a whole number of at least 1, found {value!r}')
    return value
