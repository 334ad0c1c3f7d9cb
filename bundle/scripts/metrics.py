"""Dice, Jaccard and surface distances of segmentations, computed by MONAI's functions; their table and their files.

- **HD95** is the larger one of the two directed 95th percentiles of surface distances, MONAI's number. A false part
  counts from 5 % of the prediction's surface on.
- **HD95_pooled** is the 95th percentile of the distances of both directions together: medpy's ``hd95``, the "95HD" of
  the papers' tables. A false part counts from 5 % of both surfaces on.
- **ASD** is directed: the mean distance from the prediction's surface to the reference's, MONAI's default and medpy's
  ``asd``. It does not see parts of the reference that the prediction misses.

Exported bundles carry this module as ``scripts/metrics.py``: it must import nothing of
the package that contains it.
"""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

METRICS = ("Dice", "Jaccard", "HD95", "HD95_pooled", "ASD")
MOST_SURFACE_VOXELS = 500_000
"""Beyond them MONAI's search for the nearest surface voxel takes minutes, hours where many are equally near."""
UNITS = {"Dice": "", "Jaccard": "", "HD95": " mm", "HD95_pooled": " mm", "ASD": " mm"}
_DISTANCES = (
    "HD95: larger of both directions' 95th percentiles; HD95_pooled: of both directions together, the papers' 95HD; "
    "ASD: from the prediction's surface to the reference's"
)


def case_metrics(
    prediction: np.ndarray,
    reference: np.ndarray,
    labels: Mapping[str, int | Sequence[int]],
    spacing: Sequence[float],
    ignore: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Metrics of one segmentation.

    Args:
        prediction: integer labels, 2D or 3D.
        reference: the same shape.
        labels: class name -> value, or values of a region, without the background.
        spacing: mm per array axis.
        ignore: value of unannotated voxels in the reference, where both masks count as empty.

    Returns:
        class -> {each of :data:`METRICS`: float, NaN where undefined; "empty": "", "prediction", "reference" or
        "both"}

    Example:
        >>> cube = np.zeros((8, 8, 8), int)
        >>> cube[2:6, 2:6, 2:6] = 1
        >>> case_metrics(cube, cube, {"organ": 1}, (1, 1, 1))["organ"]["Dice"]
        1.0
    """
    prediction, reference, spacing = _without_flat_axes(prediction, reference, spacing)
    annotated = np.ones(reference.shape, bool) if ignore is None else reference != ignore
    return {
        name: _class_metrics(np.isin(prediction, values) & annotated, np.isin(reference, values) & annotated, spacing)
        for name, values in labels.items()
    }


def _without_flat_axes(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """A volume of one slice is an image: in 3D all of its voxels would be surface."""
    flat = [axis for axis, size in enumerate(reference.shape) if size == 1][: max(0, reference.ndim - 2)]
    kept = [size for axis, size in enumerate(spacing) if axis not in flat]
    return prediction.squeeze(tuple(flat)), reference.squeeze(tuple(flat)), kept


def _class_metrics(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> dict[str, Any]:
    from monai.metrics import compute_dice, compute_iou

    empty = {
        (False, True): "prediction",
        (True, False): "reference",
        (False, False): "both",
        (True, True): "",
    }[bool(prediction.any()), bool(reference.any())]
    if empty:
        overlap = math.nan if empty == "both" else 0.0
        return {**dict.fromkeys(METRICS, math.nan), "Dice": overlap, "Jaccard": overlap, "empty": empty}
    p, r = _channel(prediction), _channel(reference)
    forward, backward = surface_distances(prediction, reference, spacing)
    return {
        "Dice": compute_dice(p, r).item(),
        "Jaccard": compute_iou(p, r).item(),
        "HD95": max(float(np.percentile(forward, 95)), float(np.percentile(backward, 95))),
        "HD95_pooled": float(np.percentile(np.concatenate([forward, backward]), 95)),
        "ASD": float(forward.mean(dtype=float)),
        "empty": "",
    }


def surface_distances(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """How far each surface voxel of either mask is from the other mask's surface.

    Args:
        prediction: mask of any number of axes, not empty.
        reference: the same shape, not empty.
        spacing: mm per array axis.

    Returns:
        Distances in mm, from the prediction to the reference and from the reference to the prediction.

    Example:
        >>> line = np.eye(1, 7, dtype=bool)[0]
        >>> [distances.tolist() for distances in surface_distances(line, np.roll(line, 2), (1.5,))]
        [[3.0], [3.0]]
    """
    from monai.metrics.utils import get_mask_edges, get_surface_distance

    edges = get_mask_edges(prediction, reference)
    large = max(np.count_nonzero(edge) for edge in edges) > MOST_SURFACE_VOXELS
    there, back = (
        _by_transform(one, other, spacing) if large else get_surface_distance(one, other, spacing=list(spacing))
        for one, other in (edges, edges[::-1])
    )
    return there, back


def _by_transform(surface: np.ndarray, other: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """What MONAI's search tree gives, with time and memory that grow with the volume alone."""
    from scipy.ndimage import distance_transform_edt

    return distance_transform_edt(~other, sampling=spacing)[surface].astype(np.float32)


def _channel(mask: np.ndarray) -> torch.Tensor:
    import torch

    return torch.from_numpy(mask[None, None].astype(np.float32))


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1) of values; undefined ones are left out.

    Example:
        >>> print(Spread.of([0.8, 0.9, math.nan]), Spread.of([0.8]), Spread.of([]), sep=", ")
        0.850 ± 0.071, 0.800, –
    """

    mean: float | None
    """None if no value is defined."""
    sd: float | None
    """None for fewer than two values."""
    n: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread:
        """Of values that are undefined where they are None or NaN."""
        defined = [value for value in values if value is not None and not math.isnan(value)]
        mean = statistics.fmean(defined) if defined else None
        return cls(mean, statistics.stdev(defined) if len(defined) > 1 else None, len(defined))

    def text(self, decimals: int = 3, factor: float = 1.0) -> str:
        """``mean ± SD``, both times a factor; a dash if nothing is defined."""
        if self.mean is None:
            return "–"
        spread = "" if self.sd is None else f" ± {factor * self.sd:.{decimals}f}"
        return f"{factor * self.mean:.{decimals}f}{spread}"

    def __str__(self) -> str:
        return self.text()


def summarize(cases: dict[str, dict[str, dict[str, Any]]], unit: str = "mm") -> dict[str, Any]:
    """Means and SDs over what :func:`case_metrics` returned for every case; NaN becomes None.

    ``unit`` is that of the distances. A metric that a case lacks, such as one measured before there was
    ``HD95_pooled``, is undefined there.
    """
    classes = list(next(iter(cases.values())))
    per_class = {
        name: {metric: _statistics([case[name].get(metric) for case in cases.values()]) for metric in METRICS}
        for name in classes
    }
    overall = {
        metric: _statistics([Spread.of(scores.get(metric) for scores in case.values()).mean for case in cases.values()])
        for metric in METRICS
    }
    empty = {
        name: {
            side: sum(case[name]["empty"] == side for case in cases.values())
            for side in ("prediction", "reference", "both")
        }
        for name in classes
    }
    written = {
        case: {name: {key: _json_value(v) for key, v in scores.items()} for name, scores in of_case.items()}
        for case, of_case in cases.items()
    }
    return {"cases": written, "classes": per_class, "overall": overall, "empty": empty, "unit": unit}


def _statistics(values: Sequence[float | None]) -> dict[str, float | int | None]:
    spread = Spread.of(values)
    of_population = None if spread.mean is None else (spread.sd or 0.0) * math.sqrt((spread.n - 1) / spread.n)
    return {"mean": spread.mean, "sd": spread.sd, "sd_population": of_population, "n": spread.n}


def _json_value(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def table(result: dict[str, Any]) -> str:
    """The summary as text: mean ± sample SD per class and overall, and what was left out."""
    units = {metric: unit.replace("mm", result.get("unit", "mm")) for metric, unit in UNITS.items()}
    rows = [["class", *(metric + units[metric] for metric in METRICS), "cases", "no distance"]]
    cases = str(len(result["cases"]))
    for name, scores in [*result["classes"].items(), ("overall", result["overall"])]:
        undefined = str(sum(result["empty"][name].values())) if name in result["empty"] else ""
        rows.append([name, *(cell(scores[metric]) for metric in METRICS), cases, undefined])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, _DISTANCES, *_said(result)])


def cell(entry: Mapping[str, Any]) -> str:
    """``mean ± SD`` of one entry of ``classes`` or ``overall``."""
    return str(Spread(entry["mean"], entry["sd"], entry["n"]))


def _said(result: dict[str, Any]) -> list[str]:
    texts = {
        "prediction": "empty in the prediction of {} case(s): Dice and Jaccard 0, distances left out",
        "reference": "predicted in {} case(s) without it: Dice and Jaccard 0, distances left out",
        "both": "empty in both prediction and reference of {} case(s): left out",
    }
    return [
        f"{name} is {texts[side].format(count)}"
        for name, sides in result["empty"].items()
        for side, count in sides.items()
        if count
    ]


def metrics_files(output: Path) -> tuple[Path, Path]:
    """What :func:`write_metrics` writes."""
    return output / "metrics.json", output / "metrics.csv"


def write_metrics(result: dict[str, Any], output: Path) -> None:
    """``metrics.json``, everything, and ``metrics.csv``, one row per case and class.

    Cases under ``failed`` (case -> reason) were not measured; their rows are empty and say so.
    """
    output.mkdir(parents=True, exist_ok=True)
    everything, rows = metrics_files(output)
    everything.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    with open(rows, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "class", *METRICS, "empty"])
        for case, of_case in result["cases"].items():
            for name, scores in of_case.items():
                writer.writerow([case, name, *(scores[metric] for metric in METRICS), scores["empty"]])
        for case in result.get("failed", {}):
            for name in result["classes"]:
                writer.writerow([case, name, *("" for _ in METRICS), "not measured"])
