"""The error that the bundle raises on bad input, and how other errors are told in one line."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: the message is one line that says what was found and what to do."""


def reason(error: BaseException) -> str:
    """One line for an error: the message of an :class:`InputError`, else the kind and the last line of what it says.

    MONAI's readers and torch's worker processes put whole tracebacks into their messages; the cause comes last.

    Example:
        >>> reason(RuntimeError("Traceback (most recent call last):\\n  ...\\nOSError: truncated file"))
        'RuntimeError: OSError: truncated file'
    """
    while error.__cause__ is not None and not _is_ours(error):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if _is_ours(error):
        return last
    return f"{type(error).__name__}: {last}" if last else type(error).__name__


def _is_ours(error: BaseException) -> bool:
    # not isinstance: some programs import this package again while a workflow runs
    return type(error).__name__ == InputError.__name__
