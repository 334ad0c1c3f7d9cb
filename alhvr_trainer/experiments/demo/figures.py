"""The pictures of the demo's report: outlines on scans, regions on unlabeled scans, curves of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from alhvr_trainer.reports.figures import Figure, draw_outlines, plt, show_scan, with_legend

CLASS_COLORS = {"RV": "#4fc3f7", "MYO": "#ffd54f", "LV": "#ff7043"}
REGIONS = {
    "omega1": ("stable-reliable (Ω1): no unsupervised loss", "none"),
    "omega2a": ("reliable-unstable (Ω2): b teaches a", "#26c6da"),
    "omega2b": ("reliable-unstable (Ω2): a teaches b", "#ffca28"),
    "omega3": ("unreliable-stable (Ω3): the more confident teaches", "#ef5350"),
}


def outlines(
    scans: Mapping[str, np.ndarray],
    segmentations: Mapping[str, Mapping[str, np.ndarray]],
    labels: Mapping[str, int],
    notes: Mapping[str, Mapping[str, str]],
) -> Figure:
    """One row per test scan, one column per segmentation, the structures outlined.

    Args:
        scans: case -> slice (rows, columns).
        segmentations: title of the column -> case -> labels of that slice.
        labels: structure -> value.
        notes: title of the column -> case -> text below the picture, e.g. its Dice.
    """
    columns = ["scan", *segmentations]
    figure, axes = plt.subplots(
        len(scans), len(columns), figsize=(2.7 * len(columns), 2.95 * len(scans)), squeeze=False
    )
    for row, (case, scan) in zip(axes, scans.items(), strict=True):
        for ax, column in zip(row, columns, strict=True):
            show_scan(ax, scan)
            if column in segmentations:
                draw_outlines(ax, segmentations[column][case], labels, CLASS_COLORS)
                ax.set_xlabel(notes.get(column, {}).get(case, ""), fontsize=9)
        row[0].set_xlabel(case, fontsize=9)
    for ax, column in zip(axes[0], columns, strict=True):
        ax.set_title(column, fontsize=11)
    handles = [Line2D([], [], color=CLASS_COLORS.get(name, "white"), label=name) for name in labels]
    return with_legend(figure, handles)


@dataclass(frozen=True)
class RegionView:
    """The regions on one batch of unlabeled slices, at one moment of training."""

    title: str
    gamma: float
    maps: Mapping[str, np.ndarray]
    """Region -> (slices, rows, columns) bool."""


def regions(scans: np.ndarray, names: Sequence[str], views: Sequence[RegionView]) -> Figure:
    """Scans in the first row, below them one row per view with the regions in color.

    Args:
        scans: (slices, rows, columns).
        names: one per slice.
        views: e.g. early and late in training.
    """
    count = len(scans)
    figure, axes = plt.subplots(len(views) + 1, count, figsize=(2.7 * count, 2.8 * (len(views) + 1)), squeeze=False)
    for column, (scan, name) in enumerate(zip(scans, names, strict=True)):
        for ax in axes[:, column]:
            show_scan(ax, scan)
        axes[0, column].set_title(name, fontsize=10)
    for row, view in zip(axes[1:], views, strict=True):
        row[0].set_ylabel(f"{view.title}\nγ = {view.gamma:.3f}", fontsize=10)
        for index, ax in enumerate(row):
            shares = []
            for key, (_, color) in REGIONS.items():
                mask = view.maps[key][index]
                shares.append(f"{100 * mask.mean():.1f}")
                if color != "none":
                    ax.imshow(np.ma.masked_where(~mask, mask), cmap=ListedColormap([color]), alpha=0.75)
            ax.set_xlabel(f"Ω1 {shares[0]} %, Ω2 {shares[1]} + {shares[2]} %, Ω3 {shares[3]} %", fontsize=8)
    handles = [Patch(facecolor=color, edgecolor="gray", label=text) for text, color in REGIONS.values()]
    return with_legend(figure, handles, columns=2 if count > 2 else 1)


def curves(
    history: Mapping[str, Sequence[float]], validation: Mapping[str, Sequence[float]], early_epoch: int
) -> Figure:
    """What the trainer logged per epoch.

    Args:
        history: ``checkpoint["alhvr"]["history"]``.
        validation: trainer -> nnU-Net's pseudo Dice on validation patches per epoch.
        early_epoch: number of the epoch that the regions' "early" picture shows, marked by a line.
    """
    figure, axes = plt.subplots(2, 3, figsize=(13, 6.6))
    panels = {
        "supervised loss": ("supervised_a", "supervised_b"),
        "unsupervised terms (before weighting)": ("dtct_a", "dtct_b", "ce_a", "ce_b", "cos_a", "cos_b"),
        "confidence threshold γ": ("gamma",),
        "share of voxels": ("share_omega2a", "share_omega2b", "share_omega3"),
        "weight w of the unsupervised terms": ("weight",),
    }
    for ax, (title, keys) in zip(axes.flat, panels.items(), strict=False):
        for key in keys:
            ax.plot(np.arange(1, len(history[key]) + 1), history[key], label=key.removeprefix("share_"))
        if len(keys) > 1:
            ax.legend(fontsize=8)
        ax.set_title(title, fontsize=11)
    for name, values in validation.items():
        axes[1, 2].plot(np.arange(1, len(values) + 1), values, label=name)
    axes[1, 2].legend(fontsize=8)
    axes[1, 2].set_title("pseudo Dice on validation patches", fontsize=11)
    for ax in axes.flat:
        ax.axvline(early_epoch, color="gray", linewidth=0.8, linestyle=":")
        ax.grid(alpha=0.3)
        ax.set_xlabel("epoch")
    figure.tight_layout()
    return figure
