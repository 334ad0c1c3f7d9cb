"""The one error that users of the bundle meet when their input is wrong."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: the message is one line that says what was found and what to do."""
