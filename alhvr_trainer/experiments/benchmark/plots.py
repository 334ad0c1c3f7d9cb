"""Box plots of a benchmark: how the methods do case by case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from alhvr_trainer.experiments.benchmark.aggregate import Result, case_values
from alhvr_trainer.experiments.benchmark.tables import HEADINGS
from alhvr_trainer.reports.figures import Figure, plt

METRICS = ("Dice", "HD95")
_PERCENT = {"Dice": 100}
Values = dict[str, dict[str, list[float]]]
"""Fold -> method -> one value per case."""


def values_by_fold(results: Sequence[Result], checkpoint: str, methods: Sequence[str], metric: str) -> Values:
    """Fold -> method -> one value per case: mean over classes, then seeds (:func:`case_values`)."""
    found: Values = {}
    for fold in dict.fromkeys(r["job"]["fold_name"] for r in sorted(results, key=lambda r: r["job"]["fold"])):
        for method in methods:
            runs = [r for r in results if (r["job"]["method"], r["job"]["fold_name"]) == (method, fold)]
            values = list(case_values(runs, checkpoint, metric).values())
            if values:
                found.setdefault(fold, {})[method] = [_PERCENT.get(metric, 1) * value for value in values]
    return found


def box_plots(values: Mapping[str, Values], dark: bool = False) -> Figure:
    """One panel per metric and labeled fraction, one below the other, as wide as a page; one box per method.

    Boxes: quartiles; whiskers: 1.5 times their distance at most; points: the other cases; triangle: mean.

    Args:
        values: metric -> what :func:`values_by_fold` gives.
        dark: for a dark page.
    """
    panels = _panels(values)
    with plt.style.context("dark_background" if dark else "default"):
        size = (9, 3.2 * len(panels))
        figure, axes = plt.subplots(len(panels), figsize=size, layout="constrained", squeeze=False)
        for ax, (title, boxes) in zip(axes.flat, panels.items(), strict=True):
            ax.boxplot(list(boxes.values()), showmeans=True, widths=0.6, flierprops={"markersize": 3})
            ax.set_xticks(range(1, len(boxes) + 1), list(boxes), rotation=35, ha="right", parse_math=False)
            ax.grid(axis="y", alpha=0.3)
            ax.set_title(title)
        return figure


def boxes_in_words(values: Mapping[str, Values]) -> str:
    """What the box plots show, for those who do not see them.

    Example:
        >>> boxes_in_words({"Dice": {"5 labeled": {"A": [70.0, 80.0, 100.0], "B": [60.0]}}})
        'Box plots of the cases, medians. Dice (%), 5 labeled: A 80.00, B 60.00.'
    """
    parts = [
        f"{title}: {', '.join(f'{method} {median(each):.2f}' for method, each in boxes.items())}"
        for title, boxes in _panels(values).items()
    ]
    return f"Box plots of the cases, medians. {'; '.join(parts)}."


def _panels(values: Mapping[str, Values]) -> dict[str, dict[str, list[float]]]:
    """Title -> method -> values."""
    return {
        f"{HEADINGS[metric][:-2]}, {fold}": boxes
        for metric, by_fold in values.items()
        for fold, boxes in by_fold.items()
    }
