"""Box plots of a benchmark: how the methods do case by case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alhvr_trainer.experiments.benchmark.aggregate import Result, case_values
from alhvr_trainer.experiments.benchmark.tables import HEADINGS

METRICS = ("Dice", "HD95")
_PERCENT = {"Dice": 100}


def values_by_fold(
    results: Sequence[Result], checkpoint: str, methods: Sequence[str], metric: str
) -> dict[str, dict[str, list[float]]]:
    """Fold -> method -> one value per case: mean over classes, then seeds (:func:`case_values`)."""
    found: dict[str, dict[str, list[float]]] = {}
    for fold in dict.fromkeys(r["job"]["fold_name"] for r in sorted(results, key=lambda r: r["job"]["fold"])):
        for method in methods:
            runs = [r for r in results if (r["job"]["method"], r["job"]["fold_name"]) == (method, fold)]
            values = list(case_values(runs, checkpoint, metric).values())
            if values:
                found.setdefault(fold, {})[method] = [_PERCENT.get(metric, 1) * value for value in values]
    return found


def box_plots(results: Sequence[Result], checkpoint: str, methods: Sequence[str], file: Path) -> None:
    """One panel per metric and labeled fraction, one box per method.

    Boxes: quartiles; whiskers: 1.5 times their distance at most; points: the other cases; triangle: mean.

    Args:
        results: of one suite.
        checkpoint: "final" or "best".
        methods: in this order.
        file: picture to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    by_metric = {metric: values_by_fold(results, checkpoint, methods, metric) for metric in METRICS}
    folds = list(by_metric["Dice"])
    width = max(4.0, 0.6 * len(methods) + 1.5)
    figure = Figure(figsize=(width * len(folds), 3.6 * len(METRICS)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(METRICS), len(folds), squeeze=False)
    for row, metric in enumerate(METRICS):
        for column, fold in enumerate(folds):
            _panel(axes[row][column], by_metric[metric].get(fold, {}))
            axes[row][column].set_title(fold)
            axes[row][column].set_ylabel(HEADINGS[metric][:-2])
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)


def _panel(axes: Any, values: Mapping[str, list[float]]) -> None:
    axes.boxplot(list(values.values()), showmeans=True, widths=0.6, flierprops={"markersize": 3})
    axes.set_xticks(range(1, len(values) + 1), list(values), rotation=35, ha="right")
    axes.grid(axis="y", alpha=0.3)
