"""Finds the cases in a folder: nnU-Net's file names, plain file names, DICOM series.

Needs the standard library alone, and SimpleITK where there is DICOM.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from .dicom import holds_dicom, is_dicom, series_files
from .input_error import InputError
from .overwriting import inside_raw_dataset, not_writable, overwritten_input

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl")
"""Files that hold one image; everything else in a folder is ignored."""
_NUMBERED = re.compile(r"(.+)_(\d{4})")


class _Image(NamedTuple):
    """A file, or the folder of a DICOM series."""

    path: Path
    name: str
    """Without ending."""

    @property
    def case(self) -> str:
        match = _NUMBERED.fullmatch(self.name)
        return match[1] if match else self.name

    @property
    def channel(self) -> int | None:
        match = _NUMBERED.fullmatch(self.name)
        return int(match[2]) if match else None


def find_cases(dataset_dir: str | Path, num_channels: int, file_ending: str | None = None) -> list[dict[str, Any]]:
    """The cases in a folder, sorted by name.

    - files named as for nnU-Net, ``CASE_0000.nii.gz``, ``CASE_0001.nii.gz``, …: one file per channel
    - with one channel also ``CASE.nii.gz``
    - folders that hold the instances of one DICOM series: ``CASE/``, with several channels ``CASE_0000/``, …

    ``dataset_dir`` may also be one image: a file, or the folder of a DICOM series. The other channels of its
    case are found next to it.

    Args:
        dataset_dir: a folder of images, or one image.
        num_channels: files per case that the model needs. (One for a model of RGB pictures: the file holds them.)
        file_ending: the ending of the model's training data, accepted in addition to :data:`ENDINGS`, e.g. ``".png"``.

    Returns:
        ``[{"case": name, "image": [path of each channel]}]``; the path of a DICOM series is its folder.

    Raises:
        InputError: nothing there, or a case that is incomplete, there twice, or no single DICOM series.

    Example:
        >>> find_cases("images", 2)     # doctest: +SKIP
        [{'case': 'heart', 'image': ['images/heart_0000.nii.gz', 'images/heart_0001.nii.gz']}]
    """
    source = Path(dataset_dir)
    if not source.exists():
        raise InputError(f"dataset_dir {source} does not exist; name a folder of images, or one image")
    if source.is_file() and source.name.startswith("."):
        raise InputError(f"dataset_dir {source} is a hidden file, such as macOS creates; name an image")
    endings = tuple(dict.fromkeys((*ENDINGS, *filter(None, [file_ending]))))
    one = _as_image(source, endings)
    if one is not None:
        images = _beside(one, num_channels, endings)
    elif source.is_file():
        raise InputError(f"dataset_dir {source} is not an image; supported are {_endings_said(endings)}")
    else:
        images = _images_in(source, endings)
    cases = _complete_cases(images, num_channels, source)
    for path in (path for case in cases for path in case["image"] if Path(path).is_dir()):
        series_files(path)
    return cases


class Cases(list[dict[str, Any]]):
    """What :func:`find_cases` returns, or no case and the ``problem`` why: one line, empty if there is none.

    Tools build a bundle's whole workflow only to look at it; a missing folder must not matter before it runs.
    """

    def __init__(self, cases: Iterable[dict[str, Any]] = (), problem: str = "") -> None:
        super().__init__(cases)
        self.problem = problem


def cases_or_problem(
    dataset_dir: str | Path,
    num_channels: int,
    file_ending: str | None = None,
    output_dir: str | Path | None = None,
) -> Cases:
    """As :func:`find_cases`, but the error is kept for the run, which ends with it.

    Args:
        output_dir: where the label maps will be written; that they would replace an image is such an error.
    """
    try:
        cases = find_cases(dataset_dir, num_channels, file_ending)
        if output_dir is not None:
            _keep_images(cases, dataset_dir, Path(output_dir), (*ENDINGS, *filter(None, [file_ending])))
    except InputError as error:
        return Cases(problem=str(error))
    return Cases(cases)


def _keep_images(
    cases: list[dict[str, Any]], dataset_dir: str | Path, output_dir: Path, endings: tuple[str, ...]
) -> None:
    """The output folder holds no image, nor a link to one under a name that will be written."""
    images = [path for case in cases for path in case["image"]]
    written = {case["case"] for case in cases}
    there = list(output_dir.iterdir()) if output_dir.is_dir() else []
    replaced = [file for file in there if without_ending(file, endings) in written]
    problem = overwritten_input([dataset_dir, *images], [output_dir, *replaced]) or inside_raw_dataset(output_dir)
    problem = problem or not_writable(output_dir)
    if problem:
        raise InputError(problem)


def keep_labels_or_exit(labels_dir: str | Path, output_dir: str | Path) -> None:
    """See that predictions and metrics are not written over the reference labels.

    Raises:
        SystemExit: one line.
    """
    labels = [*Path(labels_dir).iterdir()] if Path(labels_dir).is_dir() else []
    outputs = [*Path(output_dir).iterdir()] if Path(output_dir).is_dir() else []
    problem = overwritten_input([labels_dir, *labels], [output_dir, *outputs])
    if problem:
        raise SystemExit(f"bundle: {problem}")


def without_ending(file: str | Path, endings: Iterable[str] = ENDINGS) -> str | None:
    """A file's name without its ending; None if it has none of these.

    Example:
        >>> without_ending("in/heart_0000.nii.gz"), without_ending("notes.txt")
        ('heart_0000', None)
    """
    name = Path(file).name
    for ending in sorted(endings, key=len, reverse=True):
        if name.lower().endswith(ending.lower()) and len(name) > len(ending):
            return name[: -len(ending)]
    return None


def _as_image(path: Path, endings: Iterable[str]) -> _Image | None:
    """``path`` as an image, if it is one by its name, or by being DICOM."""
    own_name = os.path.basename(os.path.abspath(path))  # of "." as well
    if path.is_dir():
        return _Image(path, own_name) if holds_dicom(path) else None
    name = without_ending(path, endings)
    if name is not None:
        return _Image(path, name)
    return _Image(path, path.stem if path.suffix.lower() == ".dcm" else own_name) if is_dicom(path) else None


def _images_in(folder: Path, endings: Iterable[str]) -> list[_Image]:
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    images = [image for image in (_as_image(entry, endings) for entry in entries) if image is not None]
    if images:
        return images
    kinds = sorted({entry.suffix or "no ending" for entry in entries if entry.is_file()})
    folders = sum(entry.is_dir() for entry in entries)
    found = [*kinds, *([f"{folders} folders without DICOM instances"] if folders else [])]
    raise InputError(
        f"no image in dataset_dir {folder}: it {'holds ' + ', '.join(found) if found else 'is empty'}; "
        f"supported are {_endings_said(endings)}"
    )


def _beside(one: _Image, num_channels: int, endings: Iterable[str]) -> list[_Image]:
    """All channels of the case that one image belongs to."""
    if num_channels == 1:  # whatever its name is, it is meant
        return [one if one.channel in (0, None) else _Image(one.path, f"{one.name}_0000")]
    entries = sorted(Path(os.path.abspath(one.path)).parent.iterdir())
    near = (_as_image(entry, endings) for entry in entries if entry.name.startswith(f"{one.case}_"))
    return [image for image in near if image is not None and image.case == one.case] or [one]


def _complete_cases(images: Iterable[_Image], num_channels: int, source: Path) -> list[dict[str, Any]]:
    cases: dict[str, dict[int, Path]] = {}
    for image in images:
        if image.channel is None and num_channels > 1:
            raise InputError(
                f"{image.path} carries no channel number, and the model needs {num_channels} channels: name them "
                f"{_numbered(image.case, range(num_channels))}"
            )
        channels = cases.setdefault(image.case, {})
        other = channels.setdefault(image.channel or 0, image.path)
        if other != image.path:
            raise InputError(
                f"case {image.case} in {source} is there twice: {other.name}, {image.path.name}; remove one"
            )
    for case, channels in cases.items():
        _check_channels(case, channels, num_channels, source)
    return [
        {"case": case, "image": [str(path) for _, path in sorted(channels.items())]}
        for case, channels in sorted(cases.items())
    ]


def _check_channels(case: str, channels: dict[int, Path], num_channels: int, source: Path) -> None:
    if set(channels) == set(range(num_channels)):
        return
    needed = _numbered(case, range(num_channels))
    files = ", ".join(path.name for _, path in sorted(channels.items()))
    count = f"{len(channels)} channel{'s' if len(channels) > 1 else ''}"
    if len(channels) == num_channels:
        numbers = ", ".join(map(str, sorted(channels)))
        raise InputError(f"case {case} in {source} has channel {numbers} ({files}); rename to {needed}")
    hint = " (four digits at the end number the channels: if these are cases of their own, append _0000)"
    raise InputError(
        f"case {case} in {source} has {count} ({files}), the model needs {num_channels}: {needed}"
        f"{hint if num_channels == 1 else ''}"
    )


def _numbered(case: str, channels: Iterable[int]) -> str:
    return ", ".join(f"{case}_{channel:04d}" for channel in channels)


def _endings_said(endings: Iterable[str]) -> str:
    return f"{', '.join(endings)} and DICOM series"
