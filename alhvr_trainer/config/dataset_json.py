"""What ``dataset.json`` must look like, checked before anything is done with it. Imports no nnU-Net."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from alhvr_trainer.config.files import is_list_of, is_name, is_whole
from alhvr_trainer.config.validation import Entries, must, validated
from alhvr_trainer.errors import InputError

HIGHEST_LABEL = 32767
"""nnU-Net keeps labels in 16 bits."""


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value) and "\0" not in value


def _is_label(value: object) -> bool:
    return is_whole(value, 0, HIGHEST_LABEL)


def _are_labels(labels: Any) -> bool:
    one_value = not isinstance(labels.get("ignore"), list)
    regions = [value if isinstance(value, list) else [value] for value in labels.values()]
    return bool(labels) and one_value and all(region and is_list_of(region, _is_label) for region in regions)


def _are_channels(names: dict[str, Any]) -> bool:
    return bool(names) and set(names) == set(map(str, range(len(names)))) and all(map(_is_text, names.values()))


def _are_cases(cases: dict[str, Any]) -> bool:
    return bool(cases) and all(
        is_name(case)
        and isinstance(entry, dict)
        and is_list_of(entry.get("images"), _is_text)
        and bool(entry["images"])
        and _is_text(entry.get("label"))
        for case, entry in cases.items()
    )


Channels = Annotated[dict[str, Any], must(_are_channels)]
Ending = Annotated[str, must(lambda ending: is_name(ending) and ending.startswith(".") and len(ending) > 1)]
_CHANNELS = 'an object that names the channels 0, 1, ..., e.g. {"0": "MR"}'


class LabelsAndEnding(Entries):
    """What the label maps of a dataset are read with."""

    model_config = ConfigDict(extra="ignore")

    labels: Annotated[dict[str, Any], must(_are_labels)] = Field(
        description='an object like {"background": 0, "organ": 1}, whose values are whole numbers from 0 to '
        f'{HIGHEST_LABEL} or, except for "ignore", lists of them (regions)'
    )
    file_ending: Ending = Field(description='an ending like ".nii.gz", as in the dataset.json of an nnU-Net dataset')


class DatasetJson(LabelsAndEnding):
    """All keys that nnU-Net or we read; ``modality`` is an older name of ``channel_names``."""

    channel_names: Channels | None = Field(None, description=_CHANNELS)
    modality: Channels | None = Field(None, description=_CHANNELS)
    numTraining: Annotated[int, Field(ge=0)] | None = Field(None, description="a whole number")
    regions_class_order: list[Annotated[Any, must(_is_label)]] | None = Field(None, description="a list of labels")
    overwrite_image_reader_writer: Annotated[str, must(is_name)] = Field(
        "", description="the name of one of nnU-Net's readers"
    )
    dataset: Annotated[dict[str, Any], must(_are_cases)] = Field(
        {}, description='an object of cases, each {"images": [files], "label": file}'
    )


def check_dataset_json(content: dict[str, Any], where: str = "dataset.json") -> None:
    """The keys that nnU-Net and we read have the form in which nnU-Net documents them.

    Raises:
        InputError: names the file and the key, and says what belongs there.
    """
    read = validated(DatasetJson, content, where)
    if not (read.channel_names or read.modality):
        raise InputError(f'{where}: "channel_names" is missing; it must be {_CHANNELS}')
    if read.channel_names and read.modality and len(read.channel_names) != len(read.modality):
        raise InputError(f'{where}: "channel_names" and "modality" name different numbers of channels; remove one')
    for key in ("channel_names", "modality"):
        names = content.get(key) or {}
        if list(names) != sorted(names, key=int):
            raise InputError(
                f'{where}: "{key}" lists the channels in the order {", ".join(names)}; put them in order, for nnU-Net '
                "goes by the place in the list when it chooses normalization, and by the number when it reads images"
            )


def channel_names(dataset_json: dict[str, Any]) -> list[str]:
    """The names of the image channels in channel order."""
    return list((dataset_json.get("channel_names") or dataset_json["modality"]).values())
