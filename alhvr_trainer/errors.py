"""The one error that users meet when their input is wrong."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: the message is one line that names the file or key, what was found, and what to do."""
