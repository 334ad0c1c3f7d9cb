"""The runs of a suite: some at a time, each in a process of its own, here or on a cluster."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm import tqdm

from alhvr_trainer.cluster import cluster_executor, is_cancelled
from alhvr_trainer.commands.link import check_nnunet_finds_us
from alhvr_trainer.config.files import check_folder, read_object
from alhvr_trainer.devices import check_device
from alhvr_trainer.errors import one_line
from alhvr_trainer.experiments.benchmark.jobs import LOGS, Job, chosen_part, digest, is_done, jobs_of, model_folder
from alhvr_trainer.experiments.benchmark.prepare import (
    dataset_of,
    locked,
    plans_file,
    plans_of,
    prepare,
    set_folders,
    splits_of,
)
from alhvr_trainer.experiments.benchmark.suites import ENVIRONMENT, Suite
from alhvr_trainer.processes import interrupted_by, run_logged
from alhvr_trainer.resources import ext_trainer_folder

TRAINERS = "nnUNet_extTrainer"
ELSEWHERE = "another process runs it"


@dataclass(frozen=True)
class How:
    """What all runs of a suite have in common."""

    plans_name: str
    """Of the suite's ready plan."""
    output: Path
    device: str
    environment: dict[str, str]
    """What the processes have in place of, or besides, the variables of the machine that they run on."""
    remove_checkpoints: bool
    """Of each run when it is done."""


def run_suite(
    suite: Suite,
    output: Path,
    device: str,
    remove_checkpoints: bool = False,
    parallel: int = 1,
    **part: list[Any] | None,
) -> list[str]:
    """All runs of the suite that have no result yet.

    Args:
        suite: what to run.
        output: folder for runs and logs.
        device: "cuda", "cpu" or "mps".
        remove_checkpoints: of each run when it is done.
        parallel: runs at a time.
        part: methods, seeds and folds, as :func:`jobs_of` takes them.

    Returns:
        What failed: run, reason and log, one line each.

    Raises:
        InputError: nothing could be run, as data, plans or the suite are wrong.
    """
    if cluster_executor() is None:
        check_device(device)
    check_nnunet_finds_us()
    chosen_part(suite, **part)  # for its error, before anything is written
    check_folder(output)
    set_folders(suite, output)
    dataset = dataset_of(suite)
    splits = splits_of(suite, dataset)
    jobs = jobs_of(suite, dataset, splits, digest(read_object(plans_file(suite))), **part)
    waiting = [job for job in jobs if not is_done(output, job)]
    print(f"{suite.name}: {len(jobs)} runs, {len(jobs) - len(waiting)} of them done, in {output}", flush=True)
    if not waiting:
        return []
    environment = environment_of(suite, device, parallel)
    with interrupted_by(signal.SIGTERM, signal.SIGHUP):
        plans_name = prepare(suite, dataset, splits, output / LOGS / "plan.log", os.environ | environment)
        return run_all(waiting, parallel, How(plans_name, output, device, environment, remove_checkpoints))


def run_all(jobs: list[Job], parallel: int, how: How) -> list[str]:
    """Run jobs, ``parallel`` at a time or on all workers of the cluster; one that fails stops no other.

    Returns:
        What failed: run, reason and log, one line each.
    """
    stop, cluster = threading.Event(), cluster_executor()
    at_once = cluster.workers if cluster else parallel
    failures, elsewhere, took = [], [], []
    with cluster or ThreadPoolExecutor(parallel) as executor:
        futures = {executor.submit(run_job, job, how, None if cluster else stop): job for job in jobs}
        try:
            for number, future in enumerate(as_completed(futures), 1):
                job, (problem, seconds) = futures[future], _outcome(future)
                took.append(seconds)
                left = tqdm.format_interval(fmean(took) * math.ceil((len(jobs) - number) / at_once))
                print(f"run {number} of {len(jobs)}: {job}: {_went(problem, seconds)}, about {left} left", flush=True)
                if problem == ELSEWHERE:
                    elsewhere.append(job)
                elif problem:
                    failures.append(f"{job}: {problem}")
        except BaseException:
            stop.set()  # each thread ends its process
            for future in futures:
                future.cancel()
            raise
    if elsewhere:
        print(f"{len(elsewhere)} run(s) are still with another process, which adds them to the tables", flush=True)
    return failures


def _outcome(future: Future[tuple[str | None, float]]) -> tuple[str | None, float]:
    """Of :func:`run_job`; an error in it, or the death of each worker that had the run, is that run's failure alone."""
    try:
        return future.result()
    except Exception as error:
        return f"{type(error).__name__}: {one_line(error)}", 0.0


def _went(problem: str | None, seconds: float) -> str:
    if problem == ELSEWHERE:
        return problem
    return f"FAILED: {problem}" if problem else f"done in {tqdm.format_interval(seconds)}"


def run_job(job: Job, how: How, stop: threading.Event | None = None) -> tuple[str | None, float]:
    """One run in its own process, if no other process has it.

    Args:
        job: what to run.
        how: the rest.
        stop: once set, the process is ended; on a cluster, once nobody waits for the run.

    Returns:
        None or what went wrong, and the seconds that it took.
    """
    log, start = how.output / LOGS / f"{job.name}.log", time.monotonic()

    def end_if_stopped() -> None:
        if (stop is not None and stop.is_set()) or is_cancelled():
            raise CancelledError

    with locked(log.with_suffix(".lock"), wait=False) as mine:
        if not mine:
            return ELSEWHERE, 0.0
        if is_done(how.output, job):  # another process may have run it meanwhile
            return None, 0.0
        print(f"{job}: starts ({log})", flush=True)
        plans = plans_of(job, how.plans_name)
        module = [sys.executable, "-m", "alhvr_trainer.experiments.benchmark"]
        command = [*module, json.dumps(asdict(job)), plans, str(how.output), how.device]
        problem = run_logged(command, log, os.environ | how.environment, meanwhile=end_if_stopped)
        if problem is None and how.remove_checkpoints:
            for file in (model_folder(job, plans) / f"fold_{job.fold}").glob("checkpoint_*.pth"):
                file.unlink()
    return None if problem is None else f"{problem} ({log})", time.monotonic() - start


def environment_of(suite: Suite, device: str, parallel: int) -> dict[str, str]:
    """What speed depends on, as the user or else the suite has set it; nnU-Net finds our trainers and the user's.

    On the CPU, trainings side by side share the cores, unless suite or user say how many threads each has.
    """
    folders = [str(ext_trainer_folder()), *os.environ.get(TRAINERS, "").split(os.pathsep)]
    trainers = os.pathsep.join(dict.fromkeys(folder for folder in folders if folder))
    shared = device == "cpu" and parallel > 1
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // parallel))} if shared else {}
    users = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    return {**threads, **suite.environment, **users, TRAINERS: trainers, "PYTHONUNBUFFERED": "1"}
