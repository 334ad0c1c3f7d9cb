"""The runs of a suite, one process for each, shared with other processes that run the same suite."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm import tqdm

from alhvr_trainer.commands.link import check_nnunet_finds_us
from alhvr_trainer.config.files import check_folder, read_object
from alhvr_trainer.devices import check_device
from alhvr_trainer.experiments.benchmark.jobs import (
    LOGS,
    Job,
    chosen_part,
    digest,
    is_done,
    jobs_of,
    model_folder,
)
from alhvr_trainer.experiments.benchmark.prepare import (
    dataset_of,
    locked,
    plans_file,
    plans_of,
    prepare,
    set_folders,
    splits_of,
)
from alhvr_trainer.experiments.benchmark.suites import Suite
from alhvr_trainer.experiments.processes import interrupted_by, run_logged
from alhvr_trainer.resources import ext_trainer_folder

TRAINERS = "nnUNet_extTrainer"


def run_suite(
    suite: Suite, output: Path, device: str, remove_checkpoints: bool = False, **part: list[Any] | None
) -> list[str]:
    """All runs of the suite that have no result yet.

    Args:
        suite: what to run.
        output: folder for runs and logs.
        device: "cuda", "cpu" or "mps".
        remove_checkpoints: of each run when it is done.
        part: methods, seeds and folds, as :func:`jobs_of` takes them.

    Returns:
        What failed: run, reason and log, one line each.

    Raises:
        InputError: nothing could be run, as data, plans or the suite are wrong.
    """
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
    environment = _environment(suite)
    failures = []
    with interrupted_by(signal.SIGTERM, signal.SIGHUP):
        plans_name = prepare(suite, dataset, splits, output / LOGS / "plan.log", environment)
        took = []
        for number, job in enumerate(waiting, 1):
            title, log = f"run {number} of {len(waiting)}: {job}", output / LOGS / f"{job.name}.log"
            with locked(log.with_suffix(".lock"), wait=False) as mine:
                if not mine:
                    print(f"{title}: another process runs it", flush=True)
                elif not is_done(output, job):  # another process may have run it meanwhile
                    print(f"{title}: starts ({log})", flush=True)
                    start, plans = time.monotonic(), plans_of(job, plans_name)
                    problem = _run(job, plans, output, device, log, environment)
                    took.append(time.monotonic() - start)
                    left = tqdm.format_interval(fmean(took) * (len(waiting) - number))
                    how = f"FAILED: {problem}" if problem else f"done in {tqdm.format_interval(took[-1])}"
                    print(f"{title}: {how}, about {left} left", flush=True)
                    if problem is not None:
                        failures.append(f"{job}: {problem} ({log})")
                    elif remove_checkpoints:
                        _remove_checkpoints(job, plans)
    return failures


def _run(job: Job, plans: str, output: Path, device: str, log: Path, environment: dict[str, str]) -> str | None:
    """One run in its own process; None, or what went wrong."""
    module = [sys.executable, "-m", "alhvr_trainer.experiments.benchmark"]
    return run_logged([*module, json.dumps(asdict(job)), plans, str(output), device], log, environment)


def _remove_checkpoints(job: Job, plans: str) -> None:
    for file in (model_folder(job, plans) / f"fold_{job.fold}").glob("checkpoint_*.pth"):
        file.unlink()


def _environment(suite: Suite) -> dict[str, str]:
    """The user's variables, the suite's for what the user has not set; nnU-Net finds our trainers and the user's."""
    folders = [str(ext_trainer_folder()), *os.environ.get(TRAINERS, "").split(os.pathsep)]
    trainers = os.pathsep.join(dict.fromkeys(folder for folder in folders if folder))
    return {**suite.environment, **os.environ, TRAINERS: trainers, "PYTHONUNBUFFERED": "1"}
