"""Any task of the Medical Segmentation Decathlon (Antonelli et al., Nature Communications 13:4128, 2022).

A task folder has ``dataset.json``, ``imagesTr``, ``labelsTr`` and ``imagesTs``; images of several channels are 4D. What
``dataset.json`` lists is converted. The labels of ``imagesTs`` are not public, so these go to ``imagesTs`` without any,
and the folds keep 20 % of the labeled cases for validation.

nnU-Net's own ``nnUNetv2_convert_MSD_dataset`` does the same without splits. It refuses a dataset number that is in use,
its own unfinished conversion included, and does not look into the files, so it is not called here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from alhvr_trainer.config.files import is_name, read_object
from alhvr_trainer.errors import InputError, shown
from alhvr_trainer.experiments.convert.folds import drawn_folds
from alhvr_trainer.experiments.convert.release import Case, Release
from alhvr_trainer.experiments.convert.volumes import ImageFile

REFERENCE = "http://medicaldecathlon.com"
VALIDATION_SHARE = 0.2
ENDING = ".nii.gz"


def msd(source: Path, seed: int) -> Release:
    """A task folder, such as ``Task04_Hippocampus``.

    Raises:
        InputError: ``dataset.json`` is not the decathlon's, or names a file that is missing.
    """
    file = source / "dataset.json"
    content = read_object(file, "name the folder of one task, such as Task04_Hippocampus")
    channel_names, labels = _names(content, "modality", file), _names(content, "labels", file)
    cases = [_labeled_case(entry, source, file, len(channel_names)) for entry in _entries(content, "training", file)]
    test = [_case(entry, None, source, file, len(channel_names)) for entry in _entries(content, "test", file)]
    licence = content.get("licence")
    return Release(
        kind="msd",
        name=_dataset_name(source),
        channel_names=tuple(channel_names.values()),
        labels={"background" if value == 0 else label: value for value, label in labels.items()},
        label_values={value: value for value in labels},
        training=cases,
        test=test,
        folds=drawn_folds([case.name for case in cases], VALIDATION_SHARE, seed),
        description=f"Medical Segmentation Decathlon, {source.resolve().name}; split drawn with seed {seed}",
        reference=REFERENCE,
        licence=licence if isinstance(licence, str) else "",
    )


def _dataset_name(source: Path) -> str:
    """``Hippocampus`` of ``Task04_Hippocampus``: the names in ``dataset.json`` are not all fit for a folder."""
    return re.sub(r"^Task\d+_|\W", "", source.resolve().name) or "MSD"


def _names(content: dict[str, Any], key: str, file: Path) -> dict[int, str]:
    """``{"0": "MRI"}`` of ``modality`` or ``labels``, by number, sorted."""
    names = content.get(key)
    if not isinstance(names, dict) or set(names) != {str(number) for number in range(len(names))} or not names:
        raise InputError(f'{file}: "{key}" must name 0, 1, …, e.g. {{"0": "MRI"}}, found {shown(names)}')
    if not all(isinstance(name, str) and name for name in names.values()):
        raise InputError(f'{file}: "{key}" must hold names, found {shown(names)}')
    return {number: names[str(number)] for number in range(len(names))}


def _entries(content: dict[str, Any], key: str, file: Path) -> list[Any]:
    entries = content.get(key)
    if not isinstance(entries, list):
        raise InputError(f'{file}: "{key}" must be a list of files, found {shown(entries)}')
    return entries


def _labeled_case(entry: Any, source: Path, file: Path, channels: int) -> Case:
    if not isinstance(entry, dict) or set(entry) != {"image", "label"}:
        raise InputError(f'{file}: "training" must list {{"image": file, "label": file}}, found {shown(entry)}')
    return _case(entry["image"], entry["label"], source, file, channels)


def _case(image: Any, label: Any, source: Path, file: Path, channels: int) -> Case:
    path = _existing(image, source, file)
    volumes = [ImageFile(path, channel, channels) for channel in range(channels)]
    return Case(
        path.name.removesuffix(ENDING),
        tuple(volumes),
        None if label is None else ImageFile(_existing(label, source, file)),
    )


def _existing(entry: Any, source: Path, file: Path) -> Path:
    """The file of an entry such as ``"./imagesTr/hippocampus_001.nii.gz"``."""
    parts = Path(entry).parts if isinstance(entry, str) and entry.endswith(ENDING) else ()
    if len(parts) != 2 or not all(map(is_name, parts)):
        raise InputError(f"{file} must name files like ./imagesTr/case_001{ENDING}, found {shown(entry)}")
    path = source.joinpath(*parts)
    if not path.is_file():
        raise InputError(f"{path} does not exist, but {file} names it: complete the release")
    return path
