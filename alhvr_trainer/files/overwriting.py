"""No command writes over its input.

Exported bundles carry this module as ``scripts/overwriting.py`` (a link in the repository): it must import nothing of
the package that it lies in.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def overwritten_input(inputs: Iterable[str | Path], outputs: Iterable[str | Path]) -> str | None:
    """Which output would replace an input, as one line that names both; None if none would.

    An output that is a folder stands for any file in it, so it may neither be an input folder nor hold an input file.
    Relative paths, symbolic and hard links count as what they lead to.

    Args:
        inputs: files and folders that are read.
        outputs: files and folders that are written; they need not exist.

    Example:
        >>> overwritten_input(["scans/a.nii.gz"], ["scans"])
        'scans would be written over scans/a.nii.gz, which is an input: choose another output'
    """
    inputs = list(inputs)
    for output in outputs:
        for read in inputs:
            folder = os.path.dirname(os.path.abspath(read))
            if _same(read, output) or (_same(folder, output) and not os.path.isdir(read)):
                return f"{output} would be written over {read}, which is an input: choose another output"
    return None


def _same(one: str | Path, other: str | Path) -> bool:
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)
