"""The runs of a suite: what each is told, the order, and the small JSON file that each leaves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alhvr_trainer.compatibility import nnunet_folder
from alhvr_trainer.config.files import read_object
from alhvr_trainer.errors import InputError, shown
from alhvr_trainer.experiments.benchmark.suites import Suite, file_name

RUNS = "runs"
"""Folder of the results, below the output folder."""
LOGS = "logs"


@dataclass(frozen=True)
class Job:
    """One training with its evaluation. The result holds all of it, so that a result of another job is noticed."""

    suite: str
    method: str
    trainer: str
    dataset: str
    configuration: str
    plans: str
    """The ready plan that the suite names."""
    plans_digest: str
    """Of the ready plan's content."""
    fold_name: str
    fold: int
    split: str
    """Digest of the fold's lists of cases."""
    seed: int
    settings: dict[str, Any]
    """What suite, method and seed set in the plans' ``alhvr`` block."""
    test: bool

    @property
    def name(self) -> str:
        return f"{file_name(self.method)}__{file_name(self.fold_name)}__seed{self.seed}"

    def __str__(self) -> str:
        return f"{self.method}, {self.fold_name}, seed {self.seed}"


def jobs_of(
    suite: Suite,
    dataset: str,
    splits: Sequence[dict[str, Any]],
    plans_digest: str,
    methods: Collection[str] | None = None,
    seeds: Collection[int] | None = None,
    folds: Collection[str] | None = None,
) -> list[Job]:
    """All runs of a suite, or a part; seed by seed, so that comparisons are complete if you stop early.

    Args:
        suite: the suite.
        dataset: ``DatasetNNN_Name``.
        splits: the folds of the suite's split.
        plans_digest: :func:`digest` of the ready plan.
        methods: names; default all, as for the others.
        seeds: numbers.
        folds: names of labeled fractions.

    Raises:
        InputError: the split has no such fold, or the suite no such method, seed or fold.
    """
    missing = [name for name, fold in suite.all_folds.items() if fold >= len(splits)]
    if missing:
        raise InputError(
            f'suite {suite.name}: "{missing[0]}" is fold {suite.all_folds[missing[0]]}, but {suite.splits} has only '
            f"{len(splits)} folds, numbered from 0"
        )
    names, numbers, fractions = chosen_part(suite, methods, seeds, folds)
    return [
        Job(
            suite=suite.name,
            method=method.name,
            trainer=method.trainer,
            dataset=dataset,
            configuration=suite.configuration,
            plans=Path(suite.plans).stem,
            plans_digest=plans_digest,
            fold_name=fold_name,
            fold=suite.all_folds[fold_name],
            split=digest(splits[suite.all_folds[fold_name]]),
            seed=seed,
            settings=suite.settings_of(method, seed),
            test=suite.test,
        )
        for seed in numbers
        for fold_name in fractions
        for method in suite.methods
        if method.name in names and (method.supervised or fold_name not in suite.fully_labeled)
    ]


def chosen_part(
    suite: Suite,
    methods: Collection[str] | None = None,
    seeds: Collection[int] | None = None,
    folds: Collection[str] | None = None,
) -> tuple[list[str], list[int], list[str]]:
    """Methods, seeds and labeled fractions; None means all; InputError for what the suite does not have."""
    return (
        _chosen("methods", methods, [method.name for method in suite.methods]),
        _chosen("seeds", seeds, suite.seeds),
        _chosen("folds", folds, list(suite.all_folds)),
    )


def _chosen(kind: str, wanted: Collection[Any] | None, there: list[Any]) -> list[Any]:
    unknown = [name for name in wanted or [] if name not in there]
    if unknown:
        raise InputError(f"{kind}: the suite has no {shown(unknown[0])}; there are {', '.join(map(str, there))}")
    return [name for name in there if wanted is None or name in wanted]


def digest(content: Any) -> str:
    """Sixteen hexadecimal digits that differ for different content (of JSON's kinds)."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def result_file(output: Path, job: Job) -> Path:
    """The file with the result of a run: ``runs/<method>__<fold>__seed<k>.json``."""
    return output / RUNS / f"{job.name}.json"


def model_folder(job: Job, plans: str) -> Path:
    """nnU-Net's folder of the model that a run trains with plans of this identifier."""
    return Path(nnunet_folder("nnUNet_results"), job.dataset, f"{job.trainer}__{plans}__{job.configuration}")


def is_done(output: Path, job: Job) -> bool:
    """Whether the result is there.

    Settings are compared by what was in force: a suite may name a default that its finished runs had without naming it.

    Raises:
        InputError: it is there, but of a run with other settings, data or trainer; names what differs.
    """
    file = result_file(output, job)
    if not file.exists():
        return False
    content = read_object(file, "remove it to run it again")
    found, in_force = content.get("job"), content.get("settings_in_force", {})
    if not isinstance(found, dict):
        raise InputError(f'{file} is not a result of a benchmark: "job" is missing; remove it to run it again')
    if isinstance(found.get("settings"), dict):
        found["settings"] |= {key: in_force[key] for key in job.settings if key in in_force}
    for key, value in asdict(job).items():
        if key in found and found[key] != value:  # earlier versions of the package knew fewer keys
            was, now = _difference(found.get(key), value)
            raise InputError(
                f'{file} was made with "{key}" {was}, now it is {now}: remove the file to run it again, or choose '
                "another --output"
            )
    return True


def _difference(was: Any, now: Any) -> tuple[str, str]:
    """Both values, of settings only those that differ."""
    if isinstance(was, dict) and isinstance(now, dict):
        keys = [key for key in {**was, **now} if was.get(key) != now.get(key)]
        was, now = ({key: value[key] for key in keys if key in value} for value in (was, now))
    return shown(was), shown(now)


def read_results(output: Path, suite: str) -> list[dict[str, Any]]:
    """All results in the output folder, by file name.

    Raises:
        InputError: one is unreadable, of another suite, or ran with other settings than another seed of its row.
    """
    results = []
    rows: dict[tuple[str, str], tuple[Path, dict[str, Any]]] = {}
    for file in sorted((output / RUNS).glob("[!.]*.json")):
        content = read_object(file, "remove it to run it again")
        job = content.get("job")
        if not isinstance(job, dict) or job.get("suite") != suite or "metrics" not in content:
            raise InputError(f"{file} is not a result of the suite {suite}; remove it, or choose another --output")
        settings = {key: value for key, value in content.get("settings_in_force", {}).items() if key != "seed"}
        first, of_first = rows.setdefault((job["method"], job["fold_name"]), (file, settings))
        # a key that one of them lacks came with a later version of the package
        other = {key: value for key, value in settings.items() if of_first.get(key, value) != value}
        if other:
            raise InputError(
                f"{file} ran with {shown(other)}, {first.name} of the same row with "
                f"{shown({key: of_first[key] for key in other})}: a default has changed between them; remove one file"
            )
        results.append(content)
    return results
