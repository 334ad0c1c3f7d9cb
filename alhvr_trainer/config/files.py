"""Reads JSON files that anyone may have written or damaged, writes whole files, and checks the form of values."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alhvr_trainer.bundle.scripts.overwriting import not_writable
from alhvr_trainer.errors import InputError, one_line, shown

_NAME = re.compile(r"[^/\\\x00-\x1f]+")


def read_json(file: str | os.PathLike[str], remedy: str = "") -> Any:
    """The content of a JSON file.

    Args:
        file: to read.
        remedy: what to do if that fails, for the message.

    Raises:
        InputError: it is missing or unreadable, or not JSON.
    """
    advice = f"; {remedy}" if remedy else ""
    try:
        return json.loads(Path(file).read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{file} does not exist{advice}") from error
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}{advice}") from error
    except ValueError as error:  # no JSON, or no Unicode
        raise InputError(f"{file} is not valid JSON: {one_line(error)}{advice}") from error


def read_object(file: str | os.PathLike[str], remedy: str = "") -> dict[str, Any]:
    """The content of a JSON file that must hold an object; otherwise as :func:`read_json`."""
    content = read_json(file, remedy)
    if not isinstance(content, dict):
        raise InputError(f"{file} must hold a JSON object, found {shown(content)}{f'; {remedy}' if remedy else ''}")
    return content


def check_folder(output: str | os.PathLike[str]) -> None:
    """Files can be written into the folder, which need not exist; InputError if not."""
    problem = not_writable(os.fspath(output))
    if problem:
        raise InputError(problem)


@contextmanager
def replacing(file: str | os.PathLike[str], durable: bool = False) -> Iterator[Path]:
    """A path to write to; what is written there replaces ``file`` if the block ends without an error.

    Readers find the old file or the new one, never half of one, even if several processes write it.

    Args:
        file: to replace.
        durable: also after a power failure. One process writes such a file, over what a killed one left.

    Example:
        >>> with replacing("plans.json") as part:
        ...     _ = part.write_text("{}")
    """
    target = Path(file)
    part = target.with_name(f".{target.name}{'' if durable else f'.{secrets.token_hex(4)}'}.part")
    try:
        yield part
        if durable:
            _to_disk(part)
        os.replace(part, target)
        if durable:
            _to_disk(target.parent)
    finally:
        part.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(file: str | os.PathLike[str], text: str) -> None:
    """Write a file that appears whole or not at all, and its folder if need be."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as part:
        part.write_text(text, encoding="utf-8")


def write_json(content: object, file: str | os.PathLike[str], indent: int = 1) -> None:
    """As :func:`write_text`."""
    write_text(file, json.dumps(content, indent=indent) + "\n")


def is_whole(value: object, low: int, high: int) -> bool:
    """A whole number (no boolean) from ``low`` to ``high``."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def check_whole_number(name: str, value: Any) -> int:
    """The value of an argument that must be a whole number of at least 1; InputError if it is not."""
    if not is_whole(value, 1, 10**9):
        raise InputError(f'"{name}" must be a whole number of at least 1, found {value!r}')
    return int(value)


def is_positive(value: object) -> bool:
    """A number (no boolean) of a size that images and spacings have."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 1e-6 <= value <= 1e6


def is_name(value: object) -> bool:
    """Text that is safe as the name of one file or folder inside a path."""
    return isinstance(value, str) and bool(_NAME.fullmatch(value)) and value not in (".", "..") and len(value) <= 200


def is_list_of(value: object, accepts: Any, length: int | None = None) -> bool:
    """A list, of ``length`` entries if given, each of which ``accepts``."""
    return isinstance(value, list) and length in (None, len(value)) and all(map(accepts, value))
