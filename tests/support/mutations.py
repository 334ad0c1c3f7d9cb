"""Strategies that damage files: JSON documents, raw bytes, NIfTI headers, checkpoints."""

from __future__ import annotations

import copy
import gzip
import json
import math
import struct
from typing import Any

from hypothesis import strategies as st

TEXTS = ["", "x", "../../x", "/etc", "a/b", "\0", "ä" * 300, "2d", "nan", "torch.nn.LeakyReLU", "os.getcwd"]
NUMBERS = [0, 1, -1, 2, 7, 2**31, 10**18, -(10**18), 10**400, 0.5, -0.0, 1e-320, 1e308, math.nan, math.inf, -math.inf]
NESTED = [[], {}, [[]], [None], [0], ["x"], {"a": {}}, {"0": 1}, [[1, 2], [3]], [[{"x": [None]}]], {"": None}]
JUNK = st.one_of(st.sampled_from([None, True, False]), *map(st.sampled_from, (TEXTS, NUMBERS, NESTED)))
KEYS = [
    *("dataset", "unlabeled", "modality", "regions_class_order", "overwrite_image_reader_writer", "ignore", "alhvr"),
    *("inherits_from", "previous_stage", "next_stage", "label_manager", "labels", "numTraining", "continue_training"),
]


@st.composite
def documents(draw: st.DrawFn, document: Any, path: tuple[str | int, ...] = ()) -> Any:
    """The document with one to three damages below ``path``: keys gone, renamed or added; values of any other kind."""
    holder = {"root": copy.deepcopy(document)}
    for _ in range(draw(st.integers(1, 3))):
        parent, key = _place(draw, holder, path)
        _damage(draw, parent, key)
    return holder["root"]


def _place(draw: st.DrawFn, holder: dict[str, Any], path: tuple[str | int, ...]) -> tuple[Any, Any]:
    """A container and one of its keys, each level as likely as any other."""
    parent, key = holder, "root"
    for step in path:
        if not isinstance(parent[key], (dict, list)) or step not in parent[key]:  # damaged before
            return parent, key
        parent, key = parent[key], step
    while isinstance(parent[key], (dict, list)) and parent[key] and draw(st.integers(0, 3)):
        parent = parent[key]
        key = draw(st.sampled_from(list(parent))) if isinstance(parent, dict) else draw(st.integers(0, len(parent) - 1))
    return parent, key


def _damage(draw: st.DrawFn, parent: Any, key: Any) -> None:
    value = parent[key]
    kind = draw(st.sampled_from(["junk", "junk", "junk", "delete", "rename", "add", "nudge"]))
    if kind == "junk" or (key == "root" and kind in ("delete", "rename")):
        parent[key] = copy.deepcopy(draw(JUNK))
    elif kind == "delete":
        del parent[key]
    elif kind == "rename" and isinstance(parent, dict):
        parent[draw(st.sampled_from([*KEYS, *TEXTS]))] = parent.pop(key)
    elif kind == "add" and isinstance(value, dict):
        value[draw(st.sampled_from([*KEYS, *TEXTS]))] = copy.deepcopy(draw(JUNK))
    elif kind == "add" and isinstance(value, list):
        value.append(copy.deepcopy(value[0] if value and draw(st.booleans()) else draw(JUNK)))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        half = value / 2 if abs(value) < 1e300 else 0
        parent[key] = draw(st.sampled_from([-value, value + 1, value * 2, half, str(value)]))
    else:
        parent[key] = draw(st.sampled_from([[value], {"x": value}, str(value)]))


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Cut off, some bits flipped, a part overwritten, left out or doubled."""
    start = draw(st.integers(0, len(content) - 1))
    end = min(len(content), start + draw(st.integers(1, 64)))
    kind = draw(st.sampled_from(["cut", "flip", "flip", "overwrite", "leave out", "double"]))
    if kind == "cut":
        return content[:start]
    if kind == "flip":
        damaged = bytearray(content)
        for position in draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)):
            damaged[position] ^= 1 << draw(st.integers(0, 7))
        return bytes(damaged)
    middle = {
        "overwrite": draw(st.sampled_from([b"\0", b"\xff", b"[", b"{"])) * (end - start),
        "leave out": b"",
        "double": content[start:end] * 2,
    }[kind]
    return content[:start] + middle + content[end:]


def json_files(document: Any, path: tuple[str | int, ...] = ()) -> st.SearchStrategy[bytes]:
    """A damaged document, or a document as a damaged file; one of four is of the second kind."""
    structured = documents(document, path).map(lambda content: json.dumps(content).encode())
    return st.one_of(structured, structured, structured, damaged_bytes(json.dumps(document).encode()))


INTEGERS = [0, 1, -1, 2, 3, 8, 127, 32767, -32768]
FLOATS = [0.0, 1.0, -1.0, 1e-30, 1e30, 3e38, -3e38, math.nan, math.inf, -math.inf, 352.5]
FIELDS = {
    **{f"dim[{axis}]": (40 + 2 * axis, "<h", INTEGERS) for axis in range(8)},
    "datatype": (70, "<h", [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 1536, 1792, 2304, -1, 32767]),
    "bitpix": (72, "<h", [0, 1, 8, 16, 64, 128, -8, 32767]),
    **{f"pixdim[{axis}]": (76 + 4 * axis, "<f", FLOATS) for axis in range(8)},
    **{name: (108 + 4 * place, "<f", FLOATS) for place, name in enumerate(("vox_offset", "scl_slope", "scl_inter"))},
    "qform_code": (252, "<h", INTEGERS),
    "sform_code": (254, "<h", INTEGERS),
    **{f"quatern+srow[{place}]": (256 + 4 * place, "<f", FLOATS) for place in range(18)},
    "magic": (344, "4s", [b"ni1\0", b"n+2\0", b"\0\0\0\0", b"abcd"]),
    "sizeof_hdr": (0, "<i", [0, -1, 540, 2**31 - 1, 1543569408]),
}


@st.composite
def nifti_files(draw: st.DrawFn, packed: bytes) -> bytes:
    """A ``.nii.gz`` with up to three wrong header fields; cut off or damaged before or after it is compressed."""
    content = bytearray(gzip.decompress(packed))
    kind = draw(st.sampled_from(["header", "header", "header", "voxels", "packed", "both"]))
    if kind in ("header", "both"):
        for _ in range(draw(st.integers(1, 3))):
            offset, form, values = FIELDS[draw(st.sampled_from(list(FIELDS)))]
            struct.pack_into(form, content, offset, draw(st.sampled_from(values)))
    if kind in ("voxels", "both"):
        content = bytearray(draw(damaged_bytes(bytes(content))))
    compressed = gzip.compress(bytes(content), 1, mtime=0)
    return draw(damaged_bytes(compressed)) if kind == "packed" else compressed
