"""What comes before the runs of a suite: data set, split, plans and preprocessing, and a plans file for each run."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from alhvr_trainer.compatibility import require_nnunet_folders
from alhvr_trainer.config.files import read_json, read_object, write_text
from alhvr_trainer.config.names import SETTINGS_KEY
from alhvr_trainer.data.dataset import find_dataset, preprocessed_folder, raw_folder
from alhvr_trainer.data.splits import SPLITS_FILE
from alhvr_trainer.errors import InputError
from alhvr_trainer.experiments.benchmark.jobs import Job, digest
from alhvr_trainer.experiments.benchmark.suites import PHANTOM, Suite, file_name
from alhvr_trainer.experiments.demo.phantom import write_dataset
from alhvr_trainer.processes import run_logged
from alhvr_trainer.resources import plans_folder

PHANTOM_ID = 902
"""The demo's own phantoms have 901."""
SPLITS = Path(__file__).resolve().parent / "splits"
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def set_folders(suite: Suite, output: Path) -> None:
    """Take nnU-Net's folders from the environment; for the phantoms, those that are not set are created in ``output``.

    Raises:
        InputError: a variable is not set.
    """
    if suite.dataset == PHANTOM:
        for name in FOLDERS:
            os.environ.setdefault(name, str(output / "nnunet" / name))
            Path(os.environ[name]).mkdir(parents=True, exist_ok=True)
    require_nnunet_folders(*FOLDERS)


def dataset_of(suite: Suite) -> str:
    """``DatasetNNN_Name`` of the suite; phantoms are generated if they are not there.

    Raises:
        InputError: no such data set, or phantoms of other numbers are in its place.
    """
    if suite.dataset != PHANTOM:
        name = find_dataset(_numbered(suite.dataset)).name
    else:
        name = f"Dataset{PHANTOM_ID}_Phantom"
        _generate(Path(raw_folder(name)), suite.phantom)
    for folder in ("imagesTs", "labelsTs") if suite.test else ():
        if not os.path.isdir(os.path.join(raw_folder(name), folder)):
            raise InputError(f'suite {suite.name} has "test: true", but {raw_folder(name)} has no folder {folder}')
    return name


def _numbered(dataset: str) -> str:
    """``Dataset027_ACDC`` for ``ACDC``, if nnUNet_raw has it under one number; else the text itself."""
    found = [folder.name for folder in Path(os.environ[FOLDERS[0]]).glob(f"Dataset[0-9][0-9][0-9]_{dataset}")]
    return found[0] if len(found) == 1 else dataset


def _generate(folder: Path, numbers: dict[str, int]) -> None:
    made_of = folder / "phantom.json"
    if folder.exists():
        if not made_of.is_file() or read_object(made_of) != numbers:
            raise InputError(f"{folder} holds other phantoms than the suite's ({numbers}); remove it or set nnUNet_raw")
        return
    partial = folder.parent / f".phantom.{os.getpid()}"
    made = write_dataset(partial, dataset_id=PHANTOM_ID, **numbers)  # type: ignore[arg-type]
    (made / SPLITS_FILE).unlink()  # the suite has its own
    (made / made_of.name).write_text(json.dumps(numbers), encoding="utf-8")
    made.replace(folder)
    shutil.rmtree(partial)


def splits_of(suite: Suite, dataset: str) -> list[dict[str, Any]]:
    """The folds of the suite's split: a file of the package, of the raw data set (``alhvr convert``), or any path.

    Raises:
        InputError: there is no such file, or it is not a list of folds.
    """
    candidates = (SPLITS / suite.splits, Path(raw_folder(dataset), suite.splits), Path(suite.splits))
    file = next((path for path in candidates if path.is_file()), None)
    if file is None:
        raise InputError(f"suite {suite.name}: there is no file of splits {candidates[0]}, nor {candidates[1]}")
    content = read_json(file)
    if not isinstance(content, list) or not all(isinstance(fold, dict) for fold in content):
        raise InputError(f'{file} must be a list of folds: [{{"train": [...], "unlabeled": [...], "val": [...]}}]')
    return content


def prepare(suite: Suite, dataset: str, splits: list[dict[str, Any]], log: Path, environment: dict[str, str]) -> str:
    """Put the split in place, plan and preprocess, unless that was done with the same plan and split.

    Returns:
        The plans identifier of the suite's ready plan.

    Raises:
        InputError: another split is in place, there is no such plan, or planning failed (its log is named).
    """
    plan = plans_file(suite)
    content = read_object(plan)
    name = str(content.get("plans_name", plan.stem))
    folder = Path(preprocessed_folder(dataset))
    folder.mkdir(parents=True, exist_ok=True)
    stamp = folder / f"{name}__{suite.configuration}.benchmark.json"
    made_of = {"plans": digest(content), "splits": digest(splits)}
    with locked(folder / "benchmark.lock"):
        _place_splits(splits, folder / SPLITS_FILE)
        if stamp.is_file() and read_object(stamp, "remove it") == made_of and (folder / f"{name}.json").is_file():
            return name
        print(f"plan and preprocess {dataset}, {suite.configuration} ({log})", flush=True)
        stamp.unlink(missing_ok=True)
        words = ["plan_and_preprocess", "-d", dataset, "-c", suite.configuration, "--plans_file", str(plan)]
        problem = run_logged([sys.executable, "-m", "alhvr_trainer", *words], log, environment)
        if problem is not None:
            raise InputError(f"planning and preprocessing failed: {problem} (all that it said: {log})")
        write_text(stamp, json.dumps(made_of) + "\n")
    return name


def plans_file(suite: Suite) -> Path:
    """The suite's ready plan.

    Raises:
        InputError: there is none of that name.
    """
    candidates = (Path(suite.plans), plans_folder() / f"{suite.plans}.json")
    file = next((path for path in candidates if path.is_file()), None)
    if file is None:
        raise InputError(f'suite {suite.name}: there is no plans file "{suite.plans}", nor {candidates[1]}')
    return file


def _place_splits(splits: list[dict[str, Any]], target: Path) -> None:
    if target.is_file() and read_json(target) != splits:
        raise InputError(
            f"{target} is another split than the suite's; move it away, or set nnUNet_preprocessed to another folder"
        )
    if not target.is_file():
        write_text(target, json.dumps(splits, indent=1) + "\n")


def plans_of(job: Job, plans_name: str) -> str:
    """Write the plans of one run next to the suite's, with its settings; returns the identifier.

    The preprocessed data are shared. The identifier tells different settings apart, so a training never goes on from
    the checkpoint of another one.
    """
    folder = Path(preprocessed_folder(job.dataset))
    plans = read_object(folder / f"{plans_name}.json")
    configuration = plans["configurations"][job.configuration]
    configuration[SETTINGS_KEY] = {**configuration.get(SETTINGS_KEY, {}), **job.settings}
    name = f"Benchmark_{file_name(job.method)}_seed{job.seed}_{digest([plans, job.split])[:8]}"
    write_text(folder / f"{name}.json", json.dumps({**plans, "plans_name": name}, indent=2) + "\n")
    return name


@contextmanager
def locked(file: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a file's lock, which ends with the process; gives whether it was had (``wait=False``: another has it)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
