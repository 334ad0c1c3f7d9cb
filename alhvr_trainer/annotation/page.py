"""The page of ``alhvr suggest``: each case's slice that most needs a look."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alhvr_trainer.config.names import UNCERTAINTY_FOLDER
from alhvr_trainer.reports.figures import Figure, plt
from alhvr_trainer.reports.page import encoded, render

if TYPE_CHECKING:
    from alhvr_trainer.models import TrainedModel


def write_page(rows: Sequence[dict[str, Any]], model: TrainedModel, folder: Path, method: str) -> Path:
    """``suggestions.html`` with one picture per case, which needs no other file.

    Args:
        rows: of the table.
        model: that predicted; its reader reads the images.
        folder: of the table; ``predicted`` in it holds segmentations and maps, unless the method is "random".
        method: how the cases were chosen.
    """
    cases = [{**row, "picture": _picture(row, model, folder / "predicted", method)} for row in rows]
    page = render("suggestions.html.j2", Path(__file__).parent, cases=cases, method=method, model=model.folder.name)
    file = folder / "suggestions.html"
    file.write_text(page, encoding="utf-8")
    return file


def _picture(row: dict[str, Any], model: TrainedModel, predicted: Path, method: str) -> dict[str, str]:
    """PNG as base64 text, and its description."""
    reader = model.plans_manager.image_reader_writer_class()
    image = reader.read_images(row["images"])[0][0]
    if method == "random":
        index, overlays = len(image) // 2, None
        what = f"middle slice, {index + 1} of {len(image)}"
    else:
        ending = model.dataset_json["file_ending"]
        labels = reader.read_seg(str(predicted / f"{row['case']}{ending}"))[0][0]
        name = "disagreement" if method == "disagreement" else "entropy"
        unsure = reader.read_images([str(predicted / UNCERTAINTY_FOLDER / f"{row['case']}_{name}{ending}")])[0][0]
        index = least_sure_slice(unsure)
        overlays = labels[index], unsure[index]
        what = f"slice {index + 1} of {len(image)}, where the {name} is largest in sum"
    return {"data": encoded(slice_figure(image[index], overlays)), "description": f"{row['case']}: {what}"}


def least_sure_slice(values: np.ndarray) -> int:
    """Index of the slice of a map (z, y, x) with the largest sum.

    Example:
        >>> least_sure_slice(np.array([[[0.1]], [[0.7]], [[0.2]]]))
        1
    """
    return int(np.argmax(values.reshape(len(values), -1).sum(axis=1)))


def slice_figure(image: np.ndarray, overlays: tuple[np.ndarray, np.ndarray] | None) -> Figure:
    """A slice, and beside it the slice with the outline of each label and the map in color.

    Args:
        image: (rows, columns).
        overlays: labels and map, alike.
    """
    columns = 2 if overlays else 1
    figure, grid = plt.subplots(1, columns, figsize=(3.2 * columns, 3.2), layout="constrained", squeeze=False)
    axes = grid[0]
    low, high = np.percentile(image, (1, 99))
    for ax in axes:
        ax.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
        ax.set_axis_off()
    if overlays:
        labels, values = overlays
        axes[1].imshow(values, cmap="inferno", vmin=0, vmax=1, alpha=np.clip(2 * values, 0, 0.8))
        for label in np.unique(labels[labels > 0]):
            axes[1].contour(labels == label, levels=[0.5], colors=[f"C{int(label) % 10}"], linewidths=1)
    return figure
