"""Plots of a bundle's card. They show numbers alone, never an image."""

from __future__ import annotations

import shutil
from pathlib import Path

from alhvr_trainer.export.bundle.results import Results
from alhvr_trainer.models import TrainedModel

LARGEST_PLOT = 25 * 2**20
"""Bytes; the model zoo takes no larger file than 25 MB."""
TRAINING_PLOTS = {"progress.png": "training_fold_{}.png", "progress_alhvr.png": "training_alhvr_fold_{}.png"}
"""nnU-Net's plot and ours in a fold's folder -> their names in the bundle."""
_PNG = b"\x89PNG\r\n\x1a\n"


def plot_dice(results: Results, file: Path) -> Path | None:
    """Box plot of the cases' Dice, one box per class: median, quartiles, 1.5 of their distance, every case a dot.

    Returns:
        ``file``; None, and nothing written, if no class has a value.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    dice = {name: values for name, values in results.dice.items() if values}
    if not dice:
        return None
    figure = Figure(figsize=(max(4.0, 1.0 + 0.8 * len(dice)), 3.6), layout="constrained")
    FigureCanvasAgg(figure)  # no display, and no state that other plots of the process share
    axes = figure.add_subplot()
    axes.boxplot(list(dice.values()), showfliers=False)
    for position, values in enumerate(dice.values(), 1):
        axes.plot([position] * len(values), values, "o", color="tab:blue", alpha=0.35, markersize=4)
    names = [f"{name}\n(n = {len(values)})" for name, values in dice.items()]
    axes.set_xticks(range(1, len(dice) + 1), names, rotation=45 if len(dice) > 6 else 0)
    axes.set_ylabel("Dice")
    axes.set_ylim(-0.02, 1.02)
    axes.set_title(results.title)
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(file, dpi=120)
    return file


def copy_training_plots(model: TrainedModel, docs: Path) -> list[Path]:
    """The curves that nnU-Net (and ALHVR) drew while training, for every exported fold that has them."""
    copied = []
    for fold in model.folds:
        for source_name, name in TRAINING_PLOTS.items():
            source = model.folder / f"fold_{fold}" / source_name
            if _is_plot(source):
                copied.append(Path(shutil.copyfile(source, docs / name.format(fold))))
    return copied


def _is_plot(file: Path) -> bool:
    if not file.is_file() or file.stat().st_size > LARGEST_PLOT:
        return False
    with open(file, "rb") as opened:
        return opened.read(len(_PNG)) == _PNG
