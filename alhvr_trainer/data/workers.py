"""One function on many cases, in this process or in several, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm import tqdm

from alhvr_trainer.cluster import cluster_executor
from alhvr_trainer.data.dataset import Cases

Result = TypeVar("Result")

BYTES_WORTH_A_PROCESS = 8_000_000
"""Importing nnU-Net in a new process takes about as long as preprocessing image files of this size."""


def default_processes() -> int:
    """nnU-Net's default number of processes (``nnUNet_def_n_proc``), but no more than CPU cores."""
    from nnunetv2.configuration import default_num_processes  # here, for the commands' help does without nnU-Net

    return min(default_num_processes, os.cpu_count() or 1)


def useful_processes(num_processes: int, cases: Cases) -> int:
    """``num_processes``, or 0 if the cases are too few and small for new processes to pay."""
    size = sum(os.path.getsize(file) for files in cases.values() for file in files if os.path.isfile(file))
    return num_processes if size >= BYTES_WORTH_A_PROCESS else 0


def run_on_cases(
    function: Callable[..., Result],
    arguments: dict[str, tuple[Any, ...]],
    num_processes: int,
    description: str,
    show_progress: bool = True,
) -> dict[str, Result]:
    """``function(*arguments[case])`` for every case.

    With ``num_processes`` 0 or 1, or one case, it runs in this process: a new process takes seconds to import
    nnU-Net. Inside :func:`alhvr_trainer.cluster.scheduler` it runs on the cluster's workers.

    Raises:
        Whatever ``function`` raises first; the cases that have not begun are dropped.
        RuntimeError: a process died (killed, or out of memory).
    """
    cluster = cluster_executor()
    processes = len(arguments) if cluster else min(num_processes, len(arguments))
    with tqdm(total=len(arguments), desc=description, disable=not show_progress or not arguments) as progress:
        if processes <= 1 and not cluster:
            results = {}
            for case, values in arguments.items():
                results[case] = function(*values)
                progress.update()
            return results
        with cluster or _executor(processes) as executor:
            futures = {case: executor.submit(function, *values) for case, values in arguments.items()}
            for future in futures.values():
                future.add_done_callback(lambda done: progress.update(0 if done.cancelled() else 1))
            return _results(futures)


def _results(futures: dict[str, Future[Result]]) -> dict[str, Result]:
    done, _ = wait(futures.values(), return_when=FIRST_EXCEPTION)
    for future in done:
        error = future.exception()
        if error is not None:
            for future in futures.values():
                future.cancel()
            raise error
    return {case: future.result() for case, future in futures.items()}


@contextmanager
def _executor(processes: int) -> Iterator[ProcessPoolExecutor]:
    # spawn, as in nnU-Net: a fork would copy torch's threads in an unknown state
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(processes, mp_context=context) as executor:
            yield executor
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"one of {processes} worker processes died, most likely for lack of memory: use fewer of them"
        ) from error
