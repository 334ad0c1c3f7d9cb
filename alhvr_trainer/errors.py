"""The one error that users meet when their input is wrong, and the words of its message."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from alhvr_trainer.bundle.scripts.input_error import InputError as InputError


def one_line(error: BaseException, most: int = 300) -> str:
    """The message of an error without line breaks, or its kind where it has none; long ones are cut."""
    return cut(" ".join(str(error).split()) or type(error).__name__, most)


def shown(value: object, most: int = 80) -> str:
    """A value from a file as an error message shows it: a file may hold pages in place of a number."""
    return cut(repr(value), most)


def cut(text: str, most: int = 80) -> str:
    """Text from a file, no longer than an error message bears."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """The end of a message about a name that is not there: the known one that is closest to it, or nothing.

    Example:
        >>> "there is no trainer ALHVTrainer" + did_you_mean("ALHVTrainer", ["ALHVRTrainer", "CPSTrainer"])
        'there is no trainer ALHVTrainer; did you mean ALHVRTrainer?'
    """
    by_lower = {str(each).lower(): str(each) for each in known}
    wanted = str(name).lower()
    close = get_close_matches(wanted, by_lower, n=1, cutoff=0.6)
    close = close or [each for each in by_lower if wanted and each.startswith(wanted)]
    return f"; did you mean {by_lower[close[0]]}?" if close else ""
