"""What the pages' pictures have in common: scans in gray, outlines of structures, legends below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

__all__ = ["COLORS", "REGION_COLORS", "Figure", "class_colors", "draw_outlines", "plt", "show_scan", "with_legend"]

COLORS = ("#e69f00", "#56b4e9", "#cc79a7", "#009e73", "#f0e442", "#0072b2", "#d55e00")
"""Of the classes, in turn. Source: Okabe & Ito, told apart with any color vision."""
REGION_COLORS = {2: "#26c6da", 3: "#ef5350"}
"""Of ALHVR's regions; Ω1, of which nothing is left to learn, has none."""


def class_colors(names: Sequence[str]) -> dict[str, str]:
    """A color for each class.

    Example:
        >>> class_colors(["shell", "core"])
        {'shell': '#e69f00', 'core': '#56b4e9'}
    """
    return {name: COLORS[number % len(COLORS)] for number, name in enumerate(names)}


def show_scan(ax: Any, scan: np.ndarray, aspect: float = 1.0) -> None:
    """A slice in gray, without axes; the darkest and brightest hundredth are cut off.

    Args:
        ax: matplotlib's.
        scan: (rows, columns).
        aspect: height of a row in widths of a column.
    """
    low, high = np.percentile(scan, (1, 99))
    ax.imshow(scan, cmap="gray", vmin=low, vmax=high, interpolation="nearest", aspect=aspect)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def draw_outlines(
    ax: Any, segmentation: np.ndarray, labels: Mapping[str, int | Sequence[int]], colors: Mapping[str, str]
) -> None:
    """Outlines of structures on a slice.

    Args:
        ax: matplotlib's, which shows the scan.
        segmentation: label values, (rows, columns).
        labels: structure -> value, or values of a region.
        colors: of the structures; white where there is none.
    """
    for name, value in labels.items():
        mask = np.isin(segmentation, value)
        if mask.any():
            padded = np.pad(mask, 1).astype(float)  # closes outlines at the border
            axes = [np.arange(-1, size - 1) for size in padded.shape]
            ax.contour(axes[1], axes[0], padded, [0.5], colors=[colors.get(name, "white")], linewidths=1.4)


def with_legend(figure: Figure, handles: Sequence[Any], columns: int | None = None) -> Figure:
    """The figure with a legend below its axes; one row, or as many as ``columns`` asks for."""
    columns = columns or len(handles)
    figure.legend(handles=list(handles), loc="lower center", ncol=columns, fontsize=9, frameon=False)
    inches = 0.15 + 0.22 * -(-len(handles) // columns)
    figure.tight_layout(rect=(0, inches / figure.get_figheight(), 1, 1))
    return figure
