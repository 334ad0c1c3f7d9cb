"""Which run of a benchmark goes on, how far it is, and how long all of them will take."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from alhvr_trainer.experiments.benchmark.jobs import Job

_EPOCH = re.compile(rb"Epoch (\d+) *\r?$|epoch (\d+)/\d+: ", re.MULTILINE)
"""nnU-Net says which epoch begins, counted from 0; our trainers which is done, counted from 1."""
_REPORTS = 10
"""Lines per run where nobody watches a terminal."""


def epoch_in(log: Path, tail: int = 20_000) -> int | None:
    """The epoch that nnU-Net's output announced last, counted from 1; None before the first."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - tail))
        found = _EPOCH.findall(file.read())
    return int(b"".join(found[-1])) + 1 if found else None


def seconds_left(
    waiting: Sequence[tuple[str, str]],
    finished: Mapping[tuple[str, str], Sequence[float]],
    current: tuple[str, str] | None = None,
    elapsed: float = 0.0,
    share: float = 0.0,
) -> float | None:
    """Estimate of the time that a benchmark still takes.

    A run is taken to last as long as the finished runs of its method and fold did on average, else those of its
    method, else all, else as long as the current one, by the share that it has done.

    Args:
        waiting: (method, fold) of the runs after the current one.
        finished: (method, fold) -> seconds of each finished run.
        current: (method, fold) of the run that goes on.
        elapsed: seconds since it began.
        share: part of its epochs that is done, 0 to 1.

    Returns:
        Seconds; None before anything is known.

    Example:
        >>> seconds_left([("ALHVR", "5")], {("ALHVR", "5"): [60.0, 80.0]}, ("ALHVR", "5"), elapsed=50.0)
        90.0
    """
    by_share = elapsed / share if share > 0 else None

    def expected(run: tuple[str, str]) -> float | None:
        same_method = [s for key, each in finished.items() for s in each if key[0] == run[0]]
        for seconds in (finished.get(run, []), same_method, [s for each in finished.values() for s in each]):
            if seconds:
                return fmean(seconds)
        return by_share

    of_current = 0.0
    if current is not None:
        total = by_share if by_share is not None and not finished.get(current) else expected(current)
        if total is None:
            return None
        of_current = max(0.0, total - elapsed)
    rest = [expected(run) for run in waiting]
    return None if None in rest else of_current + sum(seconds for seconds in rest if seconds is not None)


def clock(seconds: float | None) -> str:
    """``1:02:03``, or ``2:03`` below an hour."""
    if seconds is None:
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


class Progress:
    """Shows the run that goes on: one line that changes where a person is watching, else a line now and then."""

    def __init__(self, jobs: Sequence[Job], finished: Mapping[tuple[str, str], Sequence[float]]) -> None:
        self.jobs = list(jobs)
        self.finished = {key: list(seconds) for key, seconds in finished.items()}
        self.watched = sys.stderr.isatty()

    def start(self, job: Job, epochs: int | None, log: Path) -> None:
        self.job, self.epochs, self.log = job, epochs, log
        self.started, self.looked, self.shown = time.monotonic(), 0.0, -1
        self.epoch_at_start: int | None = None
        self._say(f"{self._name()}: starts ({log}), time left {clock(self._left(0.0))}")

    def _name(self) -> str:
        return f"run {self.jobs.index(self.job) + 1} of {len(self.jobs)}: {self.job}"

    def _left(self, share: float) -> float | None:
        waiting = [(job.method, job.fold_name) for job in self.jobs[self.jobs.index(self.job) + 1 :]]
        here = (self.job.method, self.job.fold_name)
        return seconds_left(waiting, self.finished, here, time.monotonic() - self.started, share)

    def look(self) -> None:
        """Read how far the run is; called often, looks once in two seconds."""
        if time.monotonic() - self.looked < 2:
            return
        self.looked = time.monotonic()
        epoch = epoch_in(self.log)
        if epoch is None or not self.epochs:
            return
        if self.epoch_at_start is None:  # a continued run does not begin at 1
            self.epoch_at_start = epoch - 1
        done, all_ = epoch - 1 - self.epoch_at_start, self.epochs - self.epoch_at_start
        left = clock(self._left(done / max(1, all_)))
        line = f"{self._name()}: epoch {min(epoch, self.epochs)} of {self.epochs}, time left {left}"
        tenth = epoch * _REPORTS // self.epochs
        if self.watched:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        elif tenth > self.shown:
            self.shown = tenth
            print(line, flush=True)

    def finish(self, problem: str | None) -> None:
        seconds = time.monotonic() - self.started
        if problem is None:
            self.finished.setdefault((self.job.method, self.job.fold_name), []).append(seconds)
        self._say(f"{self._name()}: " + (f"FAILED: {problem}" if problem else f"done in {clock(seconds)}"))

    def _say(self, line: str) -> None:
        if self.watched:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        print(line, flush=True)
