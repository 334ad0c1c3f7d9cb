"""A release as the converters describe it to the writer: cases, channels, labels and folds, nothing read yet."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alhvr_trainer.errors import InputError
from alhvr_trainer.experiments.convert.volumes import Volume

Split = dict[str, list[str]]
"""One fold of ``splits_final.json``."""


@dataclass(frozen=True)
class Case:
    """One case: its channels in order, and its label map if the release has one."""

    name: str
    images: tuple[Volume, ...]
    label: Volume | None


@dataclass(frozen=True)
class Release:
    """What becomes a raw dataset.

    Attributes:
        kind: the name of the kind, as ``alhvr convert`` takes it.
        name: of the dataset, the last part of ``DatasetXXX_Name``.
        channel_names: of the image files of a case, in order; nnU-Net normalizes ``"CT"`` in its own way.
        labels: name and value of each label in the written label maps.
        label_values: value in the release's label maps -> value in the written ones.
        training: cases for ``imagesTr`` and ``labelsTr``.
        test: cases for ``imagesTs`` and ``labelsTs``; never part of a fold.
        unlabeled: cases for ``imagesTr_unlabeled``.
        folds: the splits; one for each number of labeled cases.
        description: one line for ``dataset.json``.
        reference: where the data set comes from.
        licence: its terms, where the release states them.
    """

    kind: str
    name: str
    channel_names: tuple[str, ...]
    labels: Mapping[str, int]
    label_values: Mapping[int, int]
    training: Sequence[Case]
    test: Sequence[Case]
    folds: Sequence[Split]
    description: str
    reference: str
    licence: str = ""
    unlabeled: Sequence[Case] = ()


def find_files(source: Path, pattern: str, example: str) -> dict[tuple[str, ...], Path]:
    """The files below ``source`` whose path ends with ``pattern``, by what the groups of the pattern matched.

    Hidden files are ignored: archives made on a Mac contain a ``._name`` for each file.

    Args:
        source: folder of the release.
        pattern: regular expression with at least one group, for the end of the path (``/`` between folders).
        example: path that fits, for the message.

    Raises:
        InputError: there is none, or two files match equally well.
    """
    expression = re.compile(rf"(?:.*/)?{pattern}")
    found: dict[tuple[str, ...], Path] = {}
    for file in sorted(source.rglob("*")):
        match = expression.fullmatch(file.relative_to(source).as_posix())
        if not match or file.name.startswith(".") or not file.is_file():
            continue
        if match.groups() in found:
            raise InputError(f"{found[match.groups()]} and {file} are the same case: leave one of them in {source}")
        found[match.groups()] = file
    if not found:
        raise InputError(f"{source} holds no file like {example}: name the folder of the unpacked release")
    return found


def needed(files: Mapping[tuple[str, ...], Path], key: tuple[str, ...], source: Path, example: str) -> Path:
    """The file found for ``key``; InputError that names the missing one."""
    if key not in files:
        raise InputError(f"{source} lacks {example}: complete the release")
    return files[key]
