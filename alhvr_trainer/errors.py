"""The one error that users meet when their input is wrong."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: the message is one line that names the file or key, what was found, and what to do."""


def one_line(error: BaseException, most: int = 300) -> str:
    """The message of an error without line breaks, or its kind where it has none; long ones are cut."""
    return cut(" ".join(str(error).split()) or type(error).__name__, most)


def shown(value: object, most: int = 80) -> str:
    """A value from a file as an error message shows it: a file may hold pages in place of a number."""
    return cut(repr(value), most)


def cut(text: str, most: int = 80) -> str:
    """Text from a file, no longer than an error message bears."""
    return text if len(text) <= most else f"{text[: most - 3]}..."
