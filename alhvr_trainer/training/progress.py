"""What ALHVR logs per epoch, and its plot beside nnU-Net's ``progress.png``."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from alhvr_trainer.methods.alhvr import ALHVRTerms
from alhvr_trainer.methods.ranks import total
from alhvr_trainer.methods.voxels import count_classes
from alhvr_trainer.training.collapse import DISAGREEMENT, label_key, pseudo_label_key

matplotlib.use("agg")  # no display in training; nnU-Net chooses the same
from matplotlib import pyplot as plt

PLOT_NAME = "progress_alhvr.png"
HISTORY_KEYS = (
    "supervised_a", "supervised_b", "dtct_a", "dtct_b", "ce_a", "ce_b", "cos_a", "cos_b",
    "weight", "gamma", "share_omega1", "share_omega2a", "share_omega2b", "share_omega3", DISAGREEMENT,
)  # fmt: skip

History = dict[str, list[float]]

PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("supervised loss", ("supervised_a", "supervised_b")),
    ("DTCT", ("dtct_a", "dtct_b")),
    ("CG-CPCL cross-entropy", ("ce_a", "ce_b")),
    ("CG-CPCL cosine", ("cos_a", "cos_b")),
    ("unsupervised weight w(t)", ("weight",)),
    ("confidence threshold gamma", ("gamma",)),
    ("share of voxels, Omega1", ("share_omega1",)),
    ("share of voxels, Omega2 and Omega3", ("share_omega2a", "share_omega2b", "share_omega3")),
    ("share of voxels, networks' pseudo-labels differ", (DISAGREEMENT,)),
)
CLASS_PANEL = "share of voxels, pseudo-labels (labels: dashed)"
MOST_CLASSES_IN_LEGEND = 10
MOST_WARNINGS = 4
"""Above the plots; the log has all."""
LINE_HEIGHT = 0.2
"""Of a line of warnings, in inches."""


# --- classes ------------------------------------------------------------------------------------------------------


def foreground_names(labels: Mapping[str, Any], regions: bool) -> dict[int, str]:
    """Names of the foreground classes by number, or of the regions, which count from 1 in the order of their channels.

    Args:
        labels: ``"labels"`` of dataset.json.
        regions: whether training is region-based.

    Example:
        >>> foreground_names({"background": 0, "core": 2, "shell": 1, "ignore": 3}, regions=False)
        {1: 'shell', 2: 'core'}
        >>> foreground_names({"background": 0, "all": [1, 2], "core": 2}, regions=True)
        {1: 'all', 2: 'core'}
    """
    foreground = {name: np.atleast_1d(value) for name, value in labels.items() if name != "ignore" and np.any(value)}
    if regions:
        return dict(enumerate(foreground, start=1))
    return dict(sorted((int(value[0]), name) for name, value in foreground.items()))


def class_keys(numbers: Sequence[int]) -> tuple[str, ...]:
    """The history's names of each class's share in the pseudo-labels and in the labels."""
    return (*map(pseudo_label_key, numbers), *map(label_key, numbers))


def label_voxels(
    labels: Tensor, inside: int, classes: int, regions: bool, ignore_label: int | None
) -> tuple[Tensor, Tensor | int]:
    """How often each foreground class stands in the labels, and how many voxels were annotated.

    Args:
        labels: of the labelled samples, (L, 1, *S), or (L, R, *S), one channel per region; after these, one for the
            ignore label if there is one. Background outside the image.
        inside: voxels of these samples inside the image.
        classes: foreground classes or regions.
        regions: whether training is region-based.
        ignore_label: the label after the last class; None if there is none.

    Returns:
        Voxels of each class or region, (classes,), and all annotated voxels inside the image.
    """
    if regions:
        counts = (labels > 0).transpose(0, 1).flatten(1).sum(dim=1)
    else:
        counts = count_classes(labels, 1 + classes + (ignore_label is not None))[1:]
    return counts[:classes], inside if ignore_label is None else inside - counts[classes]


# --- one step -----------------------------------------------------------------------------------------------------


def step_values(
    supervised: tuple[Tensor, Tensor],
    labeled_logits: tuple[Tensor, Tensor],
    labels: tuple[Tensor, Tensor | int],
    terms: ALHVRTerms,
    valid: Tensor | None,
    process_group: dist.ProcessGroup | None = None,
) -> dict[str, float]:
    """The history's values of one training step, all but the weight, brought to the CPU in one transfer.

    ``labeled_logits_a`` and ``_b`` come on top, sums that show whether a logit is NaN or Inf: a loss may stay finite.

    Args:
        supervised: supervised loss of network a and of b, scalars.
        labeled_logits: of network a and of b, for the labelled samples.
        labels: :func:`label_voxels` of these samples.
        terms: of the unlabelled samples.
        valid: (U, *S) bool, the voxels that the shares refer to; None means all.
        process_group: the ranks that the batch is spread over; losses, terms and counts are shares, whose sum is
            wanted.

    With sigmoid heads, gamma and the shares of the Omegas are means over the channels.
    """
    named = dict(zip(("supervised_a", "supervised_b"), supervised, strict=True))
    named |= {key: getattr(terms, key) for key in ("dtct_a", "dtct_b", "ce_a", "ce_b", "cos_a", "cos_b")}
    # the only one that is the same on all ranks
    named["gamma"] = terms.gamma.mean() / (1 if process_group is None else process_group.size())
    for network, logits in zip("ab", labeled_logits, strict=True):
        named[f"labeled_logits_{network}"] = logits.detach().sum(dtype=torch.float32)

    # shares: counts of voxels, each with the number that it is a share of
    (label_counts, annotated), channels = labels, terms.gamma.numel()
    voxels = _over_ranks(terms.omega1.numel() // channels if valid is None else valid.sum(), terms, process_group)
    annotated = _over_ranks(annotated, terms, process_group)
    for region in ("omega1", "omega2a", "omega2b", "omega3"):
        named[f"share_{region}"] = _share(getattr(terms, region).sum(), voxels * channels)
    named[DISAGREEMENT] = _share(terms.disagreement, voxels)
    numbers = range(1, len(label_counts) + 1)
    pseudo_counts = (terms.voxels_a + terms.voxels_b)[-len(numbers) :]  # softmax counts the background, too
    named |= zip(map(pseudo_label_key, numbers), _share(pseudo_counts, 2 * voxels).unbind(), strict=True)
    named |= zip(map(label_key, numbers), _share(label_counts, annotated).unbind(), strict=True)
    values = total(torch.stack([value.detach().float() for value in named.values()]), process_group)
    return dict(zip(named, values.tolist(), strict=True))


def _over_ranks(count: Tensor | int, terms: ALHVRTerms, process_group: dist.ProcessGroup | None) -> Tensor | int:
    return count if process_group is None else total(torch.as_tensor(count, device=terms.gamma.device), process_group)


def _share(count: Tensor, of: Tensor | int) -> Tensor:
    """0 where nothing could be counted: a patch may lie in the padding, or in what nobody annotated."""
    return count / (of.clamp_min(1) if isinstance(of, Tensor) else max(of, 1))


# --- one epoch ----------------------------------------------------------------------------------------------------


def summary_line(history: History, classes: Mapping[int, str]) -> str:
    """The last epoch in one line of the training log; of each class the share in the pseudo-labels (in the labels)."""
    shown = {key: values for key, values in history.items() if key not in class_keys(list(classes))}
    shares = [
        f"{number} {name} {history[pseudo_label_key(number)][-1]:.4f} ({history[label_key(number)][-1]:.4f})"
        for number, name in classes.items()
    ]
    values = ", ".join(f"{key} {values[-1]:.4f}" for key, values in shown.items())
    return f"{values}; pseudo-labels (labels): {', '.join(shares)}"


def plot_history(
    history: History,
    folder: str | Path,
    panels: Sequence[tuple[str, tuple[str, ...]]],
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
    panels: Sequence[tuple[str, tuple[str, ...]]],
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
