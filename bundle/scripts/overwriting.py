"""Where a command may write: not over its input, and not where there can be no folder."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_RAW_FOLDERS = ("imagesTr", "imagesTs", "labelsTr", "labelsTs")


def overwritten_input(inputs: Iterable[str | Path], outputs: Iterable[str | Path]) -> str | None:
    """Which output would replace an input, as one line that names both; None if none would.

    An output that is a folder stands for any file in it, so it may neither be an input folder nor hold an input file.
    Relative paths, symbolic and hard links count as what they lead to.

    Args:
        inputs: files and folders that are read.
        outputs: files and folders that are written; they need not exist.

    Example:
        >>> overwritten_input(["scans/a.nii.gz"], ["scans"])
        'scans would be written over scans/a.nii.gz, which is an input: choose another output'
    """
    read_from: dict[object, str | Path] = {}
    for read in inputs:
        folder = [] if os.path.isdir(read) else [os.path.dirname(os.path.abspath(read))]
        for place in (read, *folder):
            for identity in _identities(place):
                read_from.setdefault(identity, read)
    for output in outputs:
        for identity in _identities(output):
            if identity in read_from:
                return f"{output} would be written over {read_from[identity]}, which is an input: choose another output"
    return None


def inside_raw_dataset(output: str | Path) -> str | None:
    """Why results do not belong into a folder of an nnU-Net raw dataset, as one line; None for any other folder.

    There they would take the place of scans, of reference labels of the same names, or of ``dataset.json``.

    Args:
        output: folder; it need not exist.
    """
    folder = Path(os.path.realpath(output))
    for dataset in (folder, folder.parent):
        is_raw = (dataset / "dataset.json").is_file() and (dataset / "imagesTr").is_dir()
        if is_raw and (dataset == folder or folder.name.startswith(_RAW_FOLDERS)):
            return (
                f"{output} belongs to the raw dataset {dataset.name}, whose files must stay as they are: choose another"
            )
    return None


def not_writable(output: str | Path) -> str | None:
    """Why there can be no files in a folder, as one line; None if there can. The folder need not exist."""
    place = Path(os.path.abspath(output))
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        own = str(place) == os.path.abspath(output)
        return f"output {output} is a file; name a folder" if own else f"output {output}: {place} is a file"
    if not os.access(place, os.W_OK | os.X_OK):
        return f"output {output} cannot be written: no permission in {place}"
    return None


def _identities(path: str | Path) -> list[object]:
    """Its name without links, and for what exists its place on the disk."""
    try:
        status = os.stat(path)
    except OSError:
        return [os.path.realpath(path)]
    return [os.path.realpath(path), (status.st_dev, status.st_ino)]
