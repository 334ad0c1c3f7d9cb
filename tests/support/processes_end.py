"""Whether processes end, for tests that end them from outside."""

from __future__ import annotations

import time
from collections.abc import Sequence

import psutil


def ended(process: psutil.Process) -> bool:
    """Whether it runs no more, even if nobody has waited for it yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def all_end(processes: Sequence[psutil.Process]) -> bool:
    """Whether they end soon: on a busy machine a signal takes its time."""
    end = time.monotonic() + 90
    while time.monotonic() < end and not all(map(ended, processes)):
        time.sleep(0.05)
    return all(map(ended, processes))
