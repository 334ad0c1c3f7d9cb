"""What the exporting user states about a bundle, checked, and the history of its versions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from alhvr_trainer.errors import InputError, shown

FIRST_VERSION = "0.1.0"
LONGEST_TEXT = 2000
_NUMBER = r"(?:0|[1-9][0-9]{0,8})"
_VERSION = re.compile(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}")


@dataclass(frozen=True)
class Details:
    """Name, authors and terms of a bundle; what is empty is taken from the model.

    Raises:
        InputError: a value that the bundle could not carry.
    """

    name: str = ""
    version: str = FIRST_VERSION
    author: str = ""
    """Several are separated by semicolons."""
    license: str = ""
    data_source: str = ""
    changelog: str = ""
    """Of this version."""
    mirroring: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.mirroring, bool):
            raise InputError(f"mirroring is {shown(self.mirroring)}; it must be True or False")
        if not is_version(self.version):
            raise InputError(f"version is {shown(self.version)}; it must be MAJOR.MINOR.PATCH, e.g. {FIRST_VERSION}")
        for what in ("name", "author", "license", "data_source", "changelog"):
            _check_text(what, getattr(self, what))
        if self.author and not self.authors:
            raise InputError(f"author is {shown(self.author)}; it must name at least one, several separated by ;")

    @property
    def authors(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.author.split(";") if name.strip())


def _check_text(what: str, value: object) -> None:
    if not isinstance(value, str):
        raise InputError(f"{what} is {shown(value)}; it must be text")
    if value and not value.strip():
        raise InputError(f"{what} is {shown(value)}; it must not be blank")
    if not value.isprintable():  # line breaks would leave the table or the JSON line that the text goes into
        raise InputError(f"{what} is {shown(value)}; it must be one line of printable text")
    if len(value) > LONGEST_TEXT:
        raise InputError(f"{what} has {len(value)} characters; it must have at most {LONGEST_TEXT}")


def is_version(value: object) -> bool:
    """Whether a value is a version as the model zoo numbers bundles.

    Example:
        >>> is_version("0.1.0"), is_version("1.0"), is_version("01.0.0")
        (True, False, False)
    """
    return isinstance(value, str) and bool(_VERSION.fullmatch(value))


def next_changelog(previous: dict[str, Any], version: str, text: str, otherwise: str) -> dict[str, str]:
    """The history of a bundle with the version that is being written, newest first.

    Args:
        previous: metadata of the bundle that is replaced, as anyone may have edited it; ``{}`` for none.
        version: of the new bundle.
        text: its entry; empty: the entry that the version already has, or ``otherwise``.
        otherwise: entry where there is no other.

    Raises:
        InputError: the bundle there has a higher version.

    Example:
        >>> next_changelog({"version": "0.1.0", "changelog": {"0.1.0": "first"}}, "0.2.0", "more data", "")
        {'0.2.0': 'more data', '0.1.0': 'first'}
    """
    found = previous.get("changelog")
    entries = {
        key: value
        for key, value in (found.items() if isinstance(found, dict) else ())
        if is_version(key) and isinstance(value, str) and value
    }
    highest = max([*entries, *filter(is_version, [previous.get("version")])], key=_numbers, default=version)
    if _numbers(version) < _numbers(highest):
        major, minor, patch = _numbers(highest)
        raise InputError(
            f"version {version} is lower than {highest}, which the bundle there has; "
            f"give {highest} again or a higher one (--version {major}.{minor}.{patch + 1})"
        )
    entries[version] = text or entries.get(version) or otherwise
    return {key: entries[key] for key in sorted(entries, key=_numbers, reverse=True)}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
