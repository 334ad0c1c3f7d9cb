"""What a fold's checkpoint and log tell of its training: curves, shares of the classes, warnings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.ticker import MaxNLocator

from alhvr_trainer.config.methods import semi_supervised_method_of
from alhvr_trainer.config.names import SETTINGS_KEY
from alhvr_trainer.models import TrainedModel
from alhvr_trainer.reports.figures import Figure, plt
from alhvr_trainer.trainers.checkpoints import read_checkpoint
from alhvr_trainer.trainers.history import HistoryKeys, foreground_names, label_key, pseudo_label_key
from alhvr_trainer.trainers.history_plot import CLASS_PANEL, MOST_CLASSES_IN_LEGEND, all_panels

LOGS = "training_log_*.txt"
_WARNING = re.compile(r"ALHVR:? WARNING: (.+)")
Curves = dict[str, dict[str, list[float]]]
"""Title of each plot -> name of each curve -> value per epoch."""
NNUNET_CURVES = {
    "loss": {"training": "train_losses", "validation": "val_losses"},
    "pseudo Dice on validation patches": {"epoch": "mean_fg_dice", "moving average": "ema_fg_dice"},
}
"""What nnU-Net's checkpoints hold under "logging"."""


@dataclass(frozen=True)
class Training:
    """A finished training."""

    epochs: int
    curves: Curves
    classes: dict[int, str]
    """Names of the foreground classes or regions by number."""
    shares: dict[str, list[float]]
    """Of the classes per epoch, under the history's names; empty for trainers that use no unlabeled images."""
    warnings: list[tuple[str, int]]
    """Each in the words of the last epoch that had it, and how many epochs had it."""


def read_training(model: TrainedModel, fold: int | str) -> Training:
    """What the checkpoint and the logs of a fold tell.

    Raises:
        InputError: the checkpoint cannot be read.
    """
    checkpoint = read_checkpoint(model.checkpoint_path(fold))
    manager = model.plans_manager.get_label_manager(model.dataset_json)
    classes = foreground_names(model.dataset_json["labels"], manager.has_regions)
    history = _numbers(_part(checkpoint, SETTINGS_KEY).get("history"))
    found = semi_supervised_method_of(model.trainer)
    curves = curves_of(NNUNET_CURVES, _numbers(checkpoint.get("logging")))
    if found:
        trainer = found.trainer
        keys = HistoryKeys(trainer.supervised, trainer.terms, trainer.observed, trainer.co_trained, tuple(classes))
        panels = {title: {name: name for name in names} for title, names in all_panels(keys, trainer.panels)}
        curves |= curves_of(panels, history)
    names = [key(number) for number in classes for key in (pseudo_label_key, label_key)]
    shares = {name: history[name] for name in names} if all(history.get(name) for name in names) else {}
    epochs = checkpoint.get("current_epoch")
    warnings = warnings_in(model.checkpoint_path(fold).parent)
    return Training(epochs if isinstance(epochs, int) else 0, curves, classes, shares, warnings)


def _part(checkpoint: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = checkpoint.get(key)
    return found if isinstance(found, dict) else {}


def _numbers(named: object) -> dict[str, list[float]]:
    """The lists of numbers in a part of a checkpoint, which anyone may have written."""
    found = {}
    for name, values in named.items() if isinstance(named, dict) else ():
        try:
            found[str(name)] = [float(value) for value in values]
        except (TypeError, ValueError):  # e.g. nnU-Net's Dice of each class, a list per epoch
            continue
    return found


def curves_of(panels: Mapping[str, Mapping[str, str]], values: Mapping[str, Sequence[float]]) -> Curves:
    """The plots of which there are values.

    Args:
        panels: title of each plot -> name of each curve -> key of its values.
        values: per epoch, by key.

    Example:
        >>> curves_of({"loss": {"training": "train", "validation": "val"}}, {"train": [0.5, 0.4]})
        {'loss': {'training': [0.5, 0.4]}}
    """
    found = {
        title: {name: list(values[key]) for name, key in curves.items() if values.get(key)}
        for title, curves in panels.items()
    }
    return {title: curves for title, curves in found.items() if curves}


def warnings_in(folder: Path) -> list[tuple[str, int]]:
    """The warnings in a fold's training logs, in the words of the last epoch, and in how many epochs each came.

    Each epoch repeats a warning with other numbers; what comes before these tells the warnings apart.
    """
    last: dict[str, str] = {}
    times: dict[str, int] = {}
    for log in sorted(folder.glob(LOGS)):
        for text in _WARNING.findall(log.read_text(encoding="utf-8", errors="replace")):
            kind = text.partition(":")[0]
            last[kind] = text.strip()
            times[kind] = times.get(kind, 0) + 1
    return [(text, times[kind]) for kind, text in last.items()]


def curve_figure(training: Training, dark: bool = False) -> Figure:
    """All curves, three plots to a row.

    Args:
        training: with one plot at least.
        dark: for a dark page.
    """
    with plt.style.context("dark_background" if dark else "default"):
        count = len(training.curves) + bool(training.shares)
        rows, columns = -(-count // 3), min(count, 3)
        figure, axes = plt.subplots(rows, columns, figsize=(4.3 * columns, 3.1 * rows), squeeze=False)
        for ax, (title, curves) in zip(axes.flat, training.curves.items(), strict=False):
            for name, values in curves.items():
                _plot(ax, values, label=name)
            ax.set_title(title, fontsize=10)
            if len(curves) > 1:
                ax.legend(fontsize=8)
        if training.shares:
            _plot_shares(axes.flat[count - 1], training)
        for ax in axes.flat[count:]:
            ax.set_visible(False)
        for ax in axes.flat[:count]:
            ax.grid(alpha=0.3)
            ax.set_xlabel("epoch", fontsize=9)
        figure.tight_layout()
        return figure


def _plot(ax: Any, values: Sequence[float], **style: Any) -> None:
    ax.plot(range(1, len(values) + 1), values, marker="o" if len(values) == 1 else "", **style)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _plot_shares(ax: Any, training: Training) -> None:
    for number, name in training.classes.items():
        color = f"C{(number - 1) % 10}"
        _plot(ax, training.shares[pseudo_label_key(number)], color=color, label=f"{number} {name}")
        _plot(ax, training.shares[label_key(number)], color=color, linestyle="--")
    ax.set_yscale("symlog", linthresh=1e-4)  # large and small structures in one plot, and 0 as well
    ax.set_title(CLASS_PANEL, fontsize=10)
    if len(training.classes) <= MOST_CLASSES_IN_LEGEND:
        ax.legend(fontsize=8)


def curves_in_words(training: Training) -> str:
    """What the picture of the curves shows, for those who do not see it.

    Example:
        >>> curves_in_words(Training(2, {"loss": {"training": [0.5, 0.25]}}, {}, {}, []))
        'Training curves. loss: training from 0.5 to 0.25.'
    """
    parts = [
        f"{title}: " + ", ".join(f"{name} from {values[0]:.3g} to {values[-1]:.3g}" for name, values in curves.items())
        for title, curves in training.curves.items()
    ]
    if training.shares:
        parts.append(f"{CLASS_PANEL}: the table below has the last epoch")
    return f"Training curves. {'; '.join(parts)}."
