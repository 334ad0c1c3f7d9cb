"""A case as a picture: the slice with most foreground, once for each of its maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import SimpleITK as sitk
from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from alhvr_trainer.bundle.scripts.uncertainty import ENTROPY, REGIONS
from alhvr_trainer.reports.cases import IMAGE, PREDICTION, REFERENCE, REGIONS_AT
from alhvr_trainer.reports.figures import (
    REGION_COLORS,
    Figure,
    class_colors,
    draw_outlines,
    plt,
    show_scan,
    with_legend,
)
from alhvr_trainer.reports.volumes import Volume
from alhvr_trainer.trainers.history_plot import MOST_CLASSES_IN_LEGEND

REGION_VOLUMES = (REGIONS, *REGIONS_AT.values())
REGION_NAMES = {1: "Ω1: both networks sure", 2: "Ω2: one network sure", 3: "Ω3: no network sure"}


def fullest_slice(masks: Sequence[np.ndarray]) -> int:
    """The slice with most foreground in all masks together; the middle one where there is none.

    Args:
        masks: one at least, (z, y, x); foreground is not 0.

    Example:
        >>> fullest_slice([np.array([[[0, 0]], [[1, 2]], [[0, 1]]])])
        1
    """
    sums = np.sum([np.count_nonzero(mask, axis=(1, 2)) for mask in masks], axis=0)
    return int(np.argmax(sums)) if sums.any() else len(sums) // 2


def slice_figure(volumes: Mapping[str, Volume], classes: Mapping[str, Sequence[int]]) -> Figure:
    """One slice of a case: the scan, outlines of reference and prediction, entropy and regions where they are there.

    Args:
        volumes: of the case, cropped.
        classes: name -> label values.
    """
    with plt.style.context("dark_background"):  # scans are seen best on black, on a light page as well
        return _figure(volumes, classes)


def _figure(volumes: Mapping[str, Volume], classes: Mapping[str, Sequence[int]]) -> Figure:
    arrays = {name: sitk.GetArrayFromImage(each.image) for name, each in volumes.items()}
    masks = {name: each.foreground for name, each in volumes.items() if each.labels}
    number = fullest_slice([masks[name] for name in (REFERENCE, PREDICTION) if name in masks] or list(masks.values()))
    spacing = volumes[IMAGE].image.GetSpacing()
    aspect = spacing[1] / spacing[0]
    scan = arrays[IMAGE][number]
    high = scan.shape[0] * aspect / scan.shape[1]
    width = 2.6
    figure, axes = plt.subplots(
        1, len(arrays), figsize=(width * len(arrays), min(max(width * high, 1.2), 4.5) + 0.7), squeeze=False
    )
    colors = class_colors(list(classes))
    for ax, (name, values) in zip(axes.flat, arrays.items(), strict=True):
        show_scan(ax, scan, aspect)
        ax.set_title(name, fontsize=10)
        if name in (REFERENCE, PREDICTION):
            draw_outlines(ax, values[number], classes, colors)
        elif name == ENTROPY:
            ax.imshow(values[number], cmap="inferno", vmin=0, vmax=1, alpha=0.7, aspect=aspect)
        elif name in REGION_VOLUMES:
            for region, color in REGION_COLORS.items():
                mask = values[number] == region
                ax.imshow(np.ma.masked_where(~mask, mask), cmap=ListedColormap([color]), alpha=0.7, aspect=aspect)
    outlined = REFERENCE in arrays or PREDICTION in arrays
    listed = colors if outlined and len(colors) <= MOST_CLASSES_IN_LEGEND else {}
    handles: list[Line2D | Patch] = [Line2D([], [], color=color, label=name) for name, color in listed.items()]
    if not arrays.keys().isdisjoint(REGION_VOLUMES):
        handles += [Patch(facecolor=color, label=REGION_NAMES[region]) for region, color in REGION_COLORS.items()]
    return with_legend(figure, handles, columns=min(max(1, len(handles)), 2 * len(arrays)))
