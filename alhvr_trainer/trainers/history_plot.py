"""Plots of a training's history, beside nnU-Net's ``progress.png``."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from alhvr_trainer.trainers.history import DISAGREEMENT, History, HistoryKeys, label_key, pseudo_label_key

matplotlib.use("agg")  # no display in training; nnU-Net chooses the same
from matplotlib import pyplot as plt

Panels = tuple[tuple[str, tuple[str, ...]], ...]
"""Title of each plot, and the names in the history that it shows."""

PLOT_NAME = "progress_alhvr.png"
CLASS_PANEL = "share of voxels, pseudo-labels (labels: dashed)"
MOST_CLASSES_IN_LEGEND = 10
MOST_WARNINGS = 4
"""Above the plots; the log has all."""
LINE_HEIGHT = 0.2
"""Of a line of warnings, in inches."""


def all_panels(keys: HistoryKeys, of_the_method: Panels = ()) -> Panels:
    """The plots of a method.

    Args:
        keys: names in its history.
        of_the_method: plots of its terms and observed values; empty: one of the terms, one for each observed value.
    """
    own = of_the_method or (("unsupervised terms", keys.terms), *((name, (name,)) for name in keys.observed))
    last: Panels = (("share of voxels, networks' pseudo-labels differ", (DISAGREEMENT,)),) if keys.co_trained else ()
    return (("supervised loss", keys.supervised), ("unsupervised weight w(t)", ("weight",)), *own, *last)


def plot_history(
    history: History,
    folder: str | Path,
    panels: Panels,
    classes: Mapping[int, str],
    warnings: Sequence[str] = (),
) -> Path:
    """Write the curves of all epochs as one PNG into ``folder``.

    Args:
        history: epoch means by name.
        folder: the fold's output folder.
        panels: title of each plot, and the names that it shows.
        classes: names of the foreground classes or regions by number; their shares are one more plot.
        warnings: the figure's title, in red.
    """
    with plt.style.context("default"):  # nnU-Net's own plot leaves fonts behind that are too large for the warnings
        figure = _figure(history, panels, classes, warnings)
        path = Path(folder) / PLOT_NAME
        figure.savefig(path, dpi=80)
        plt.close(figure)
    return path


def _figure(
    history: History,
    panels: Panels,
    classes: Mapping[int, str],
    warnings: Sequence[str],
) -> Any:
    more = [f"{len(warnings) - MOST_WARNINGS} more: see the log"] if len(warnings) > MOST_WARNINGS else []
    lines = [line for text in (*warnings[:MOST_WARNINGS], *more) for line in textwrap.wrap(f"WARNING: {text}", 150)]
    rows = (len(panels) + 2) // 2
    height = 3 * rows + LINE_HEIGHT * len(lines)
    figure, axes = plt.subplots(rows, 2, figsize=(14, height), squeeze=False, sharex=True)
    for ax, (title, keys) in zip(axes.flat, panels, strict=False):
        for key in keys:
            ax.plot(history[key], label=key)
        ax.set_title(title)
        ax.legend(loc="best", fontsize="small")
    _plot_classes(axes.flat[len(panels)], history, classes)
    for ax in axes.flat:
        ax.grid(alpha=0.3)
    for ax in axes[-1]:
        ax.set_xlabel("epoch")
    figure.suptitle("\n".join(lines), color="red", fontweight="bold", fontsize="medium", y=1 - 0.1 / height)
    figure.tight_layout()  # leaves room for the title
    return figure


def _plot_classes(ax: Any, history: History, classes: Mapping[int, str]) -> None:
    for number, name in classes.items():
        color = f"C{(number - 1) % 10}"
        ax.plot(history[pseudo_label_key(number)], color=color, label=f"{number} {name}")
        ax.plot(history[label_key(number)], color=color, linestyle="--")
    ax.set_yscale("symlog", linthresh=1e-4)  # large and small structures in one plot, and 0 as well
    ax.set_title(CLASS_PANEL)
    if len(classes) <= MOST_CLASSES_IN_LEGEND:
        ax.legend(loc="best", fontsize="small")
