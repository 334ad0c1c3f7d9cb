"""What a setting accepts, in words that an error message can use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class Rule(Protocol):
    """``str(rule)`` completes "it must be ..."."""

    def accepts(self, value: object) -> bool: ...


def setting(default: Any, rule: Rule) -> Any:
    """A field of a settings class: its default, and what a plans file may put in its place.

    Example:
        >>> @dataclass(frozen=True)
        ... class MySettings:
        ...     sharpness: float = setting(2.0, Number(low=1.0))
        >>> MySettings().sharpness
        2.0
    """
    return field(default=default, metadata={"rule": rule})


@dataclass(frozen=True)
class Number:
    """A number (or None where ``optional``) between ``low`` and ``high``, both included."""

    low: float
    high: float = math.inf
    whole: bool = False
    optional: bool = False

    def __str__(self) -> str:
        bounds = f"from {self.low:g} to {self.high:g}" if self.high < math.inf else f"of at least {self.low:g}"
        return f"{'a whole number' if self.whole else 'a number'} {bounds}"

    def accepts(self, value: object) -> bool:
        if value is None:
            return self.optional
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        if self.whole and not isinstance(value, int):
            return False
        # no math.isfinite: whole numbers of JSON may be too large for a float
        return self.low <= value <= self.high and value != math.inf


@dataclass(frozen=True)
class Choice:
    """One of a few words."""

    values: Sequence[str]

    def __str__(self) -> str:
        return " or ".join(f'"{value}"' for value in self.values)

    def accepts(self, value: object) -> bool:
        return value in self.values


@dataclass(frozen=True)
class Flag:
    """True or false."""

    def __str__(self) -> str:
        return "true or false"

    def accepts(self, value: object) -> bool:
        return isinstance(value, bool)


@dataclass(frozen=True)
class Words:
    """A list of words out of a few."""

    values: Sequence[str]
    empty: str | None = None
    """What an empty list means; None: it must name at least one."""

    def __str__(self) -> str:
        return f"a list out of {', '.join(self.values)} ({f'empty: {self.empty}' if self.empty else 'at least one'})"

    def accepts(self, value: object) -> bool:
        if not isinstance(value, (list, tuple)) or (not value and self.empty is None):
            return False
        return all(item in self.values for item in value)
