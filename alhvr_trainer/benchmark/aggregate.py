"""From the results of runs to the numbers of the tables: means over seeds, and paired tests over cases.

Pure functions of what :func:`alhvr_trainer.benchmark.jobs.read_results` returns. What the numbers mean:

- Of a run: ``alhvr evaluate``'s rule. Each case's mean over its classes, then the mean over the cases. HD95 and ASD of
  a class that the prediction or the reference lacks are undefined: left out and counted (Dice is 0 then).
- Of a method: mean and sample standard deviation (n - 1) over the seeds.
- Test: Wilcoxon's signed-rank test, two-sided, over cases. A case's value is its mean over classes, then over the seeds
  that both methods have. It asks whether the trainings that were run differ on cases like these; it does not ask what
  other seeds would give. Cases count as independent, and p is not corrected for the number of methods.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

from scipy.stats import wilcoxon

from alhvr_trainer.evaluation.metrics import METRICS, summarize

HIGHER_IS_BETTER = {"Dice": True, "Jaccard": True, "HD95": False, "ASD": False}
Result = Mapping[str, Any]
Cases = dict[str, dict[str, dict[str, Any]]]
"""case -> class -> metric, NaN where undefined, and "empty"."""


@dataclass(frozen=True)
class Statistic:
    """Mean and sample SD over the seeds; None where nothing is defined, or for the SD of one seed."""

    mean: float | None
    sd: float | None
    n: int


@dataclass(frozen=True)
class Test:
    """A paired comparison of two methods."""

    p: float
    cases: int
    seeds: int
    better: int
    """Cases with a higher value than the other method's."""


@dataclass(frozen=True)
class Row:
    """One method with one labelled fraction, for the mean over the classes or for one class."""

    method: str
    fold: str
    labeled: int
    unlabeled: int
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]
    statistics: Mapping[str, Statistic]
    without_distance: int
    """How many classes of cases, over all seeds, have no HD95 and ASD."""
    class_name: str = ""
    """Empty: the mean over the classes."""
    runner_up: str = ""
    """Second best method (Dice) of the same fraction and class; "" if there is only one."""
    test: Test | None = None
    """Against the runner-up; None for itself and without common cases."""


def rows_of(results: Sequence[Result], checkpoint: str, methods: Sequence[str], class_name: str = "") -> list[Row]:
    """Rows of a table, by labelled fraction in the order of the results, then in the order of ``methods``.

    Args:
        results: of one suite.
        checkpoint: "final" or "best".
        methods: those that the table compares; without a result they are left out.
        class_name: one class; default: the mean over the classes.
    """
    folds = dict.fromkeys(result["job"]["fold_name"] for result in sorted(results, key=lambda r: r["job"]["fold"]))
    rows = []
    for fold in folds:
        of_fold = {method: _runs(results, method, fold) for method in methods}
        block = [_row(method, fold, runs, checkpoint, class_name) for method, runs in of_fold.items() if runs]
        rows += _with_tests(block, of_fold, checkpoint)
    return rows


def _runs(results: Sequence[Result], method: str, fold: str) -> list[Result]:
    found = [r for r in results if (r["job"]["method"], r["job"]["fold_name"]) == (method, fold)]
    return sorted(found, key=lambda result: result["job"]["seed"])


def _row(method: str, fold: str, runs: Sequence[Result], checkpoint: str, class_name: str) -> Row:
    of_seeds = [measured_cases(run, checkpoint, class_name) for run in runs]
    means = [summarize(cases)["overall"] for cases in of_seeds]
    return Row(
        method=method,
        fold=fold,
        labeled=runs[0]["labeled"],
        unlabeled=runs[0]["unlabeled"],
        seeds=tuple(run["job"]["seed"] for run in runs),
        settings=runs[0]["settings_in_force"],
        statistics={metric: over_seeds([mean[metric]["mean"] for mean in means]) for metric in METRICS},
        without_distance=sum(bool(c["empty"]) for cases in of_seeds for case in cases.values() for c in case.values()),
        class_name=class_name,
    )


def measured_cases(result: Result, checkpoint: str, class_name: str = "") -> Cases:
    """The cases that a run is judged by: the test cases if the suite has some, else the validation cases."""
    cases = result["metrics"][checkpoint]["test" if result["job"]["test"] else "validation"]
    return {
        case: {
            name: {key: math.nan if value is None else value for key, value in scores.items()}
            for name, scores in classes.items()
            if class_name in ("", name)
        }
        for case, classes in cases.items()
    }


def class_names(results: Sequence[Result]) -> list[str]:
    """The classes that were measured, in the order of dataset.json."""
    return list(next(iter(measured_cases(results[0], "final").values())))


def over_seeds(values: Sequence[float | None]) -> Statistic:
    """Mean and sample SD of the values that are defined.

    Example:
        >>> over_seeds([1.0, 3.0, None])
        Statistic(mean=2.0, sd=1.4142135623730951, n=2)
    """
    defined = [value for value in values if value is not None]
    sd = stdev(defined) if len(defined) > 1 else None
    return Statistic(fmean(defined) if defined else None, sd, len(defined))


def case_values(
    runs: Sequence[Result], checkpoint: str, metric: str = "Dice", class_name: str = ""
) -> dict[str, float]:
    """Each case's value: mean over the defined classes, then over the runs where it is defined; others are left out."""
    values: dict[str, list[float]] = {}
    for run in runs:
        for case, classes in measured_cases(run, checkpoint, class_name).items():
            defined = [scores[metric] for scores in classes.values() if not math.isnan(scores[metric])]
            values.setdefault(case, []).extend([fmean(defined)] if defined else [])
    return {case: fmean(each) for case, each in sorted(values.items()) if each}


def paired_test(ours: Mapping[str, float], theirs: Mapping[str, float], seeds: int = 1) -> Test | None:
    """Wilcoxon's signed-rank test, two-sided, over the cases that both have; None if there are none.

    Cases without a difference are left out of the ranks (scipy's "wilcox"); with no difference at all p is 1.

    Example:
        >>> paired_test({"a": 0.9, "b": 0.8, "c": 0.7}, {"a": 0.6, "b": 0.6, "c": 0.6}).p
        0.25
    """
    cases = [case for case in ours if case in theirs]
    if not cases:
        return None
    differences = [ours[case] - theirs[case] for case in cases]
    p = float(wilcoxon(differences).pvalue) if any(differences) else 1.0
    return Test(p, len(cases), seeds, sum(difference > 0 for difference in differences))


def ranked(rows: Sequence[Row], metric: str) -> list[float]:
    """The different means of a block's rows, best first."""
    means = {mean for row in rows if (mean := row.statistics[metric].mean) is not None}
    return sorted(means, reverse=HIGHER_IS_BETTER[metric])


def _with_tests(block: list[Row], runs: Mapping[str, Sequence[Result]], checkpoint: str) -> list[Row]:
    """The rows of one fraction, each compared with the second best by Dice."""
    scored = [row for row in block if row.statistics["Dice"].mean is not None]
    by_dice = sorted(scored, key=lambda row: row.statistics["Dice"].mean or 0.0, reverse=True)
    if len(by_dice) < 2:
        return block
    second = by_dice[1]
    return [_compared(row, second, runs[row.method], runs[second.method], checkpoint) for row in block]


def _compared(row: Row, second: Row, ours: Sequence[Result], theirs: Sequence[Result], checkpoint: str) -> Row:
    """The row with its test against the runner-up, over the seeds that both have."""
    common = set(row.seeds) & set(second.seeds)
    test = None
    if row is not second and common:
        values = [
            case_values([run for run in runs if run["job"]["seed"] in common], checkpoint, "Dice", row.class_name)
            for runs in (ours, theirs)
        ]
        test = paired_test(values[0], values[1], len(common))
    return replace(row, runner_up=second.method, test=test)
