"""The files that an image is read from, and whether they have changed since something was made from them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_HEADER = 1 << 16
_DATA_FILE = re.compile(r"(?ims)^(?:ElementDataFile\s*=|data ?file\s*:)[ \t]*(\S[^\r\n]*?)[ \t\r]*$(.*)")


def source_stamps(files: Sequence[str]) -> list[list[Any]]:
    """Name, size in bytes, modification time in ns and digest of each file that the images are read from.

    Args:
        files: image files of a case; those that they refer to are added, see :func:`companions`.
    """
    return [[*_stamp(file), _digest(file)] for file in _sources(files)]


def same_sources(stamps: Any, files: Sequence[str]) -> bool:
    """Whether the files are what they were when the stamps were taken. Times decide; where they differ, contents.

    Example:
        >>> same_sources(source_stamps(["scan_0000.mhd"]), ["scan_0000.mhd"])  # and scan_0000.raw
        True
    """
    return renewed_stamps(stamps, files) is not None


def renewed_stamps(stamps: Any, files: Sequence[str]) -> list[list[Any]] | None:
    """The stamps with today's times if the files are :func:`same_sources`, else None.

    Files that were copied have new times. Whoever keeps the stamps should keep these instead: with the old ones, every
    question would read all files again.
    """
    sources = _sources(files)
    if not isinstance(stamps, list) or len(stamps) != len(sources):
        return None
    renewed = []
    for old, file in zip(stamps, sources, strict=True):
        now = _stamp(file)
        if old[:2] != now[:2] or (old[2] != now[2] and old[3:] != [_digest(file)]):
            return None
        renewed.append([*now, *old[3:]])
    return renewed


def companions(file: str) -> list[str]:
    """What nnU-Net's readers open beside an image file, whether it is there or not.

    The voxels of a ``.mhd``, ``.nhdr``, ``.hdr`` or ``.img``; ``CASE.json`` with the spacing of a 3D TIFF
    ``CASE_0000.tif``.

    Example:
        >>> companions("images/case_0000.tif")
        ['images/case.json']
    """
    stem, ending = os.path.splitext(file)
    if ending.lower() in (".tif", ".tiff"):
        return [f"{stem[:-5]}.json"]
    if ending.lower() in (".hdr", ".img"):
        return [stem + {".hdr": ".img", ".img": ".hdr"}[ending.lower()]]
    if ending.lower() in (".mhd", ".nhdr") and os.path.isfile(file):
        return [os.path.join(os.path.dirname(file), name) for name in _data_files(file)]
    return []


def _data_files(header: str) -> list[str]:
    with open(header, "rb") as opened:
        match = _DATA_FILE.search(opened.read(_HEADER).decode("latin-1"))
    if match is None or match[1].upper() == "LOCAL":
        return []
    return match[2].split() if match[1].upper().startswith("LIST") else [match[1]]


def _sources(files: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(source for file in files for source in (file, *companions(file))))


def _stamp(file: str) -> list[Any]:
    status = os.stat(file) if os.path.isfile(file) else None
    return [os.path.basename(file), *((status.st_size, status.st_mtime_ns) if status else (-1, 0))]


def _digest(file: str) -> str:
    if not os.path.isfile(file):
        return ""
    return hashlib.blake2b(Path(file).read_bytes(), digest_size=16).hexdigest()
