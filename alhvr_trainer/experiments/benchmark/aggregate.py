"""From the results of runs to the numbers of the tables: means over seeds, and paired tests over cases.

Pure functions of what :func:`alhvr_trainer.experiments.benchmark.jobs.read_results` returns. What the numbers mean:

- Of a run: ``alhvr evaluate``'s rule. Each case's mean over its classes, then the mean over the cases. Distances of a
  class that the prediction or the reference lacks are undefined: left out and counted (Dice is 0 then).
- Of a method: mean and sample standard deviation (n - 1) over the seeds. A metric that a run did not measure, as the
  package did not know it then, has no mean.
- Test: Wilcoxon's signed-rank test, two-sided, over cases. A case's value is its mean over classes, then over the seeds
  that both methods have. It asks whether the trainings that were run differ on cases like these; it does not ask what
  other seeds would give. Cases of one group (the frames of a patient) resemble each other, so the test takes their mean
  as one value; groups count as independent. p is not corrected for the number of methods, nor for the choice of the
  runner-up on the same cases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from alhvr_trainer.bundle.scripts.metrics import METRICS, Spread, summarize
from alhvr_trainer.data.splits import groups_of

HIGHER_IS_BETTER = {"Dice": True, "Jaccard": True, "HD95": False, "HD95_pooled": False, "ASD": False}
Result = Mapping[str, Any]
Cases = dict[str, dict[str, dict[str, Any]]]
"""case -> class -> metric, NaN where undefined, and "empty"."""


@dataclass(frozen=True)
class Test:
    """A paired comparison of two methods."""

    p: float
    n: int
    """Independent values of each method: cases, or groups of cases."""
    seeds: int
    better: int
    """How many of the n are higher than the other method's."""
    difference: float
    """Mean of the n differences from the other method."""


@dataclass(frozen=True)
class Row:
    """One method with one labeled fraction, for the mean over the classes or for one class."""

    method: str
    fold: str
    labeled: int
    unlabeled: int
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]
    statistics: Mapping[str, Spread]
    """Over the seeds, of the metrics that all runs of the row measured."""
    without_distance: int
    """How many classes of cases, over all seeds, have no distances."""
    class_name: str = ""
    """Empty: the mean over the classes."""
    runner_up: str = ""
    """Second best method (Dice) of the same fraction and class; "" if there is only one."""
    test: Test | None = None
    """Against the runner-up; None for itself and without common cases."""


def rows_of(
    results: Sequence[Result], checkpoint: str, methods: Sequence[str], class_name: str = "", group: str | None = None
) -> list[Row]:
    """Rows of a table, by labeled fraction in the order of the results, then in the order of ``methods``.

    Args:
        results: of one suite.
        checkpoint: "final" or "best".
        methods: those that the table compares; without a result they are left out.
        class_name: one class; default: the mean over the classes.
        group: regular expression; cases in whose names it finds the same text count as one in the tests.
    """
    folds = dict.fromkeys(result["job"]["fold_name"] for result in sorted(results, key=lambda r: r["job"]["fold"]))
    rows = []
    for fold in folds:
        of_fold = {method: _runs(results, method, fold) for method in methods}
        block = [_row(method, fold, runs, checkpoint, class_name) for method, runs in of_fold.items() if runs]
        rows += _with_tests(block, of_fold, checkpoint, group)
    return rows


def _runs(results: Sequence[Result], method: str, fold: str) -> list[Result]:
    found = [r for r in results if (r["job"]["method"], r["job"]["fold_name"]) == (method, fold)]
    return sorted(found, key=lambda result: result["job"]["seed"])


def _row(method: str, fold: str, runs: Sequence[Result], checkpoint: str, class_name: str) -> Row:
    of_seeds = [measured_cases(run, checkpoint, class_name) for run in runs]
    means = [summarize(cases)["overall"] for cases in of_seeds]
    known = [metric for metric in METRICS if all(_measured(run, checkpoint, metric) for run in runs)]
    return Row(
        method=method,
        fold=fold,
        labeled=runs[0]["labeled"],
        unlabeled=runs[0]["unlabeled"],
        seeds=tuple(run["job"]["seed"] for run in runs),
        settings=runs[0]["settings_in_force"],
        statistics={metric: Spread.of(mean[metric]["mean"] for mean in means) for metric in known},
        without_distance=sum(bool(c["empty"]) for cases in of_seeds for case in cases.values() for c in case.values()),
        class_name=class_name,
    )


def _cases(result: Result, checkpoint: str) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    return result["metrics"][checkpoint]["test" if result["job"]["test"] else "validation"]


def _measured(result: Result, checkpoint: str, metric: str) -> bool:
    return all(metric in scores for classes in _cases(result, checkpoint).values() for scores in classes.values())


def measured_cases(result: Result, checkpoint: str, class_name: str = "") -> Cases:
    """The cases that a run is judged by: the test cases if the suite has some, else the validation cases.

    A metric that an earlier version of the package did not measure counts as undefined.
    """
    return {
        case: {name: _numbers(scores) for name, scores in classes.items() if class_name in ("", name)}
        for case, classes in _cases(result, checkpoint).items()
    }


def _numbers(scores: Mapping[str, Any]) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in {**dict.fromkeys(METRICS), **scores}.items()}


def class_names(results: Sequence[Result]) -> list[str]:
    """The classes that were measured, in the order of dataset.json."""
    return list(next(iter(measured_cases(results[0], "final").values())))


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


def paired_test(
    ours: Mapping[str, float], theirs: Mapping[str, float], seeds: int = 1, group: str | None = None
) -> Test | None:
    """Wilcoxon's signed-rank test, two-sided, over the cases that both have; None if there are none.

    Values without a difference are left out of the ranks (scipy's "wilcox"); with no difference at all p is 1.

    Args:
        ours: case -> value.
        theirs: the other method's.
        seeds: how many trainings each value is the mean of.
        group: regular expression; the values of cases in whose names it finds the same text are averaged first.

    Raises:
        InputError: the expression finds nothing in the name of a case.

    Example:
        >>> ours, theirs = {"p1_a": 0.9, "p1_b": 0.8, "p2_a": 0.7}, {"p1_a": 0.6, "p1_b": 0.6, "p2_a": 0.6}
        >>> paired_test(ours, theirs).p, paired_test(ours, theirs, group=r"p\\d+").n
        (0.25, 2)
    """
    from scipy.stats import wilcoxon

    differences = {case: ours[case] - theirs[case] for case in ours if case in theirs}
    if not differences:
        return None
    values = [fmean(differences[case] for case in cases) for cases in groups_of(list(differences), group).values()]
    p = float(wilcoxon(values).pvalue) if any(values) else 1.0
    return Test(p, len(values), seeds, sum(value > 0 for value in values), fmean(values))


def ranked(rows: Sequence[Row], metric: str) -> list[float]:
    """The different means of a block's rows, best first."""
    means = {mean for row in rows if metric in row.statistics and (mean := row.statistics[metric].mean) is not None}
    return sorted(means, reverse=HIGHER_IS_BETTER[metric])


def _with_tests(
    block: list[Row], runs: Mapping[str, Sequence[Result]], checkpoint: str, group: str | None
) -> list[Row]:
    """The rows of one fraction, each compared with the second best by Dice."""
    scored = [row for row in block if row.statistics["Dice"].mean is not None]
    by_dice = sorted(scored, key=lambda row: row.statistics["Dice"].mean or 0.0, reverse=True)
    if len(by_dice) < 2:
        return block
    second = by_dice[1]
    return [_compared(row, second, (runs[row.method], runs[second.method]), checkpoint, group) for row in block]


def _compared(
    row: Row, second: Row, both: tuple[Sequence[Result], Sequence[Result]], checkpoint: str, group: str | None
) -> Row:
    """The row with its test against the runner-up, over the seeds that both have."""
    common = set(row.seeds) & set(second.seeds)
    test = None
    if row is not second and common:
        values = [
            case_values([run for run in runs if run["job"]["seed"] in common], checkpoint, "Dice", row.class_name)
            for runs in both
        ]
        test = paired_test(values[0], values[1], len(common), group)
    return replace(row, runner_up=second.method, test=test)
