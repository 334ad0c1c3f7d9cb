"""NIfTI-1 headers as they are stored, including what ITK silently ignores."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

from .input_error import InputError

_HEADER_BYTES = 348
_BLOCK = 1 << 20


class Header(NamedTuple):
    """What the first 348 bytes say."""

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    """``pixdim`` in mm, per axis of the shape."""
    needed: int
    """Bytes that the file must have, uncompressed."""


def read_header(file: Path) -> Header | None:
    """The header of a ``.nii`` or ``.nii.gz`` file; None for other files and other versions of NIfTI."""
    if not file.name.lower().endswith((".nii", ".nii.gz")) or file.is_dir():
        return None
    try:
        with (gzip.open if file.name.lower().endswith(".gz") else open)(file, "rb") as opened:
            header = opened.read(_HEADER_BYTES)
    except (OSError, EOFError, zlib.error):  # ITK says what is wrong with it
        return None
    for order in "<>":
        if len(header) == _HEADER_BYTES and struct.unpack_from(f"{order}i", header)[0] == _HEADER_BYTES:
            axes, *sizes = struct.unpack_from(f"{order}8h", header, 40)
            shape = tuple(sizes[: max(0, min(axes, 7))])
            (bits,) = struct.unpack_from(f"{order}h", header, 72)
            (offset,) = struct.unpack_from(f"{order}f", header, 108)
            spacing = struct.unpack_from(f"{order}7f", header, 80)[: len(shape)]
            start = int(offset) if math.isfinite(offset) else _HEADER_BYTES
            return Header(shape, spacing, start + math.prod(shape) * bits // 8)
    return None


def check_complete(file: Path) -> None:
    """All voxels are there. ITK fills what is missing of a truncated file with arbitrary values.

    Raises:
        InputError: the file ends too early.
    """
    header = read_header(file)
    if header is None:
        return
    found = _gzip_bytes(file, header.needed) if file.name.lower().endswith(".gz") else os.path.getsize(file)
    if found < header.needed:
        voxels = " x ".join(map(str, header.shape))
        raise InputError(
            f"cannot read {file} (damaged or not an image): it ends before the last of its {voxels} voxels; "
            "copy or export it again"
        )


def _gzip_bytes(file: Path, needed: int) -> int:
    """Uncompressed bytes, without unpacking where the file's own count says what is expected."""
    with open(file, "rb") as opened:
        opened.seek(-4, os.SEEK_END)
        if int.from_bytes(opened.read(4), "little") == needed % 2**32:
            return needed
    found = 0
    try:
        with gzip.open(file, "rb") as unpacked:
            while block := unpacked.read(_BLOCK):
                found += len(block)
    except (OSError, EOFError, zlib.error):
        pass
    return found
