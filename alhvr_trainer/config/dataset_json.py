"""What ``dataset.json`` must look like, checked before anything is done with it. Imports no nnU-Net."""

from __future__ import annotations

from typing import Any

from alhvr_trainer.config.files import is_list_of, is_name, is_whole
from alhvr_trainer.errors import InputError, shown

HIGHEST_LABEL = 32767
"""nnU-Net keeps labels in 16 bits."""


def check_dataset_json(content: dict[str, Any], where: str = "dataset.json") -> None:
    """The keys that nnU-Net and we read have the form in which nnU-Net documents them.

    Raises:
        InputError: names the file and the key, and says what belongs there.
    """
    check_channels(content, where)
    check_labels(content, where)
    check_file_ending(content, where)
    _check_optional(content, where)
    for case, entry in content.get("dataset", {}).items():
        files = entry.get("images") if isinstance(entry, dict) else None
        if not is_name(case) or not files or not is_list_of(files, _is_text) or not _is_text(entry.get("label")):
            raise InputError(
                f'{where}: "dataset" must map case names to {{"images": [files], "label": file}}, '
                f"found {shown(case)}: {shown(entry)}"
            )


def check_channels(content: dict[str, Any], where: str = "dataset.json") -> None:
    """``channel_names`` (or the older ``modality``) names the channels 0, 1, … in this order.

    Raises:
        InputError: it does not.
    """
    if not (content.get("channel_names") or content.get("modality")):
        raise InputError(f'{where} has no "channel_names", e.g. {{"0": "MR"}}')
    keys = [key for key in ("channel_names", "modality") if key in content]
    for key in keys:
        names = content[key]
        numbered = isinstance(names, dict) and set(names) == {str(number) for number in range(len(names))}
        if not numbered or not names or not all(map(_is_text, names.values())):
            raise InputError(
                f'{where}: "{key}" must name the channels 0, 1, …, e.g. {{"0": "MR"}}, found {shown(names)}'
            )
        if list(names) != sorted(names, key=int):
            raise InputError(
                f'{where}: "{key}" lists the channels in the order {", ".join(names)}; put them in order, for nnU-Net '
                "goes by the place in the list when it chooses normalization, and by the number when it reads images"
            )
    if len({len(content[key]) for key in keys}) > 1:
        raise InputError(f'{where}: "channel_names" and "modality" name different numbers of channels; remove one')


def check_labels(content: dict[str, Any], where: str = "dataset.json") -> None:
    """``labels`` maps names to values, or to lists of values (regions).

    Raises:
        InputError: it does not.
    """
    labels = content.get("labels")
    if not isinstance(labels, dict) or not labels:
        found = f"found {shown(labels)}" if "labels" in content else "it is missing"
        raise InputError(f'{where}: "labels" must be an object like {{"background": 0, "organ": 1}}; {found}')
    for name, value in labels.items():
        values = value if isinstance(value, list) else [value]
        if not values or not is_list_of(values, _is_label):
            raise InputError(
                f'{where}: label "{name}" is {shown(value)}; it must be a whole number, or a list of them '
                f"(a region), from 0 to {HIGHEST_LABEL}"
            )
    if isinstance(labels.get("ignore"), list):
        raise InputError(f'{where}: label "ignore" is {shown(labels["ignore"])}; it must be one whole number')


def check_file_ending(content: dict[str, Any], where: str = "dataset.json") -> None:
    """``file_ending`` is one.

    Raises:
        InputError: it is not.
    """
    ending = content.get("file_ending")
    if ending is None:
        raise InputError(
            f'{where} has no "file_ending"; it must be the dataset.json of an nnU-Net data set, with an '
            'ending like ".nii.gz"'
        )
    if not is_name(ending) or not ending.startswith(".") or len(ending) < 2:
        raise InputError(f'{where}: "file_ending" is {shown(ending)}; it must be an ending like ".nii.gz"')


def channel_names(dataset_json: dict[str, Any]) -> list[str]:
    """The names of the image channels in channel order."""
    check_channels(dataset_json)
    return list((dataset_json.get("channel_names") or dataset_json["modality"]).values())


def file_ending(dataset_json: dict[str, Any]) -> str:
    """The ending of all image files, e.g. ``".nii.gz"``."""
    check_file_ending(dataset_json)
    return dataset_json["file_ending"]


def _check_optional(content: dict[str, Any], where: str) -> None:
    rules = {
        "numTraining": (lambda value: is_whole(value, 0, 10**9), "a whole number"),
        "regions_class_order": (lambda value: is_list_of(value, _is_label), "a list of labels"),
        "overwrite_image_reader_writer": (is_name, "the name of one of nnU-Net's readers"),
        "dataset": (lambda value: isinstance(value, dict) and bool(value), "an object of cases"),
    }
    for key, (accepts, form) in rules.items():
        optional = content.get(key) is None and key in ("numTraining", "regions_class_order")
        if key in content and not optional and not accepts(content[key]):
            raise InputError(f'{where}: "{key}" must be {form}, found {shown(content[key])}')


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value) and "\0" not in value


def _is_label(value: object) -> bool:
    return is_whole(value, 0, HIGHEST_LABEL)
