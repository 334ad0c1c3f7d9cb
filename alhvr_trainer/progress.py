"""What ALHVR logs per epoch, and its plot beside nnU-Net's ``progress.png``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch
from torch import Tensor
from torch import distributed as dist

from alhvr_trainer.method import ALHVRTerms
from alhvr_trainer.method.ranks import total
from alhvr_trainer.method.terms import valid_voxels

matplotlib.use("agg")  # no display in training; nnU-Net chooses the same
from matplotlib import pyplot as plt

PLOT_NAME = "progress_alhvr.png"
HISTORY_KEYS = (
    "supervised_a", "supervised_b", "dtct_a", "dtct_b", "ce_a", "ce_b", "cos_a", "cos_b",
    "weight", "gamma", "share_omega1", "share_omega2a", "share_omega2b", "share_omega3",
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
)


def step_values(
    supervised_a: Tensor,
    supervised_b: Tensor,
    terms: ALHVRTerms,
    valid: Tensor | None,
    process_group: dist.ProcessGroup | None = None,
) -> dict[str, float]:
    """The history's values of one training step, all but the weight, brought to the CPU in one transfer.

    Args:
        supervised_a, supervised_b: supervised loss of each network, scalars.
        terms: of the unlabelled samples.
        valid: (U, *S) bool, the voxels that the regions' shares refer to; None means all.
        process_group: the ranks that the batch is spread over; losses and terms are shares, whose sum is wanted.

    With sigmoid heads, gamma and shares are means over the channels.
    """
    voxels = valid_voxels(terms.omega1, valid, process_group)
    named = {"supervised_a": supervised_a, "supervised_b": supervised_b}
    named |= {key: getattr(terms, key) for key in ("dtct_a", "dtct_b", "ce_a", "ce_b", "cos_a", "cos_b")}
    # the only one that is the same on all ranks
    named["gamma"] = terms.gamma.mean() / (1 if process_group is None else process_group.size())
    for region in ("omega1", "omega2a", "omega2b", "omega3"):
        named[f"share_{region}"] = getattr(terms, region).sum() / voxels
    values = total(torch.stack([value.detach().float() for value in named.values()]), process_group)
    return dict(zip(named, values.tolist(), strict=True))


def summary_line(history: History) -> str:
    """The last epoch in one line of the training log."""
    return ", ".join(f"{key} {values[-1]:.4f}" for key, values in history.items())


def plot_history(history: History, folder: str | Path, panels: Sequence[tuple[str, tuple[str, ...]]]) -> Path:
    """Write the curves of all epochs as one PNG into ``folder``.

    Args:
        history: epoch means by name.
        folder: the fold's output folder.
        panels: title of each plot, and the names that it shows.
    """
    rows = (len(panels) + 1) // 2
    figure, axes = plt.subplots(rows, 2, figsize=(14, 3 * rows), squeeze=False, sharex=True)
    for ax, (title, keys) in zip(axes.flat, panels, strict=False):
        for key in keys:
            ax.plot(history[key], label=key)
        ax.set_title(title)
        ax.legend(loc="best", fontsize="small")
        ax.grid(alpha=0.3)
    for ax in axes[-1]:
        ax.set_xlabel("epoch")
    figure.tight_layout()
    path = Path(folder) / PLOT_NAME
    figure.savefig(path, dpi=80)
    plt.close(figure)
    return path
