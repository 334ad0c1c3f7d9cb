"""Dice, Jaccard, HD95 and ASD of a folder of segmentations, computed by MONAI's metric functions."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alhvr_trainer.evaluation.files import match_cases, read_dataset_json, read_pair

if TYPE_CHECKING:
    import torch

METRICS = ("Dice", "Jaccard", "HD95", "ASD")
UNITS = {"Dice": "", "Jaccard": "", "HD95": " mm", "ASD": " mm"}


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
        ignore: value of the reference's voxels that nobody annotated. There both masks count as empty.

    Returns:
        class -> {"Dice", "Jaccard", "HD95", "ASD": float, NaN where undefined; "empty": "", "prediction",
        "reference" or "both"}

    Example:
        >>> cube = np.zeros((8, 8, 8), int)
        >>> cube[2:6, 2:6, 2:6] = 1
        >>> case_metrics(cube, cube, {"organ": 1}, (1, 1, 1))["organ"]["Dice"]
        1.0
    """
    annotated = np.ones(reference.shape, bool) if ignore is None else reference != ignore
    return {
        name: _class_metrics(np.isin(prediction, values) & annotated, np.isin(reference, values) & annotated, spacing)
        for name, values in labels.items()
    }


def _class_metrics(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> dict[str, Any]:
    from monai.metrics import (
        compute_average_surface_distance,
        compute_dice,
        compute_hausdorff_distance,
        compute_iou,
    )

    empty = {
        (False, True): "prediction",
        (True, False): "reference",
        (False, False): "both",
        (True, True): "",
    }[bool(prediction.any()), bool(reference.any())]
    if empty:
        overlap = math.nan if empty == "both" else 0.0
        return {"Dice": overlap, "Jaccard": overlap, "HD95": math.nan, "ASD": math.nan, "empty": empty}
    p, r = _channel(prediction), _channel(reference)
    mm = list(spacing)
    values = {
        "Dice": compute_dice(p, r),
        "Jaccard": compute_iou(p, r),
        "HD95": compute_hausdorff_distance(p, r, include_background=True, percentile=95, spacing=mm),
        "ASD": compute_average_surface_distance(p, r, include_background=True, symmetric=False, spacing=mm),
    }
    return {**{name: value.item() for name, value in values.items()}, "empty": ""}


def _channel(mask: np.ndarray) -> torch.Tensor:
    import torch

    return torch.from_numpy(mask[None, None].astype(np.float32))


def evaluate(
    predictions: str | Path,
    references: str | Path,
    dataset_json: str | Path | dict[str, Any],
    output: str | Path | None = None,
    only_predicted: bool = False,
) -> dict[str, Any]:
    """Compare a folder of segmentations with a folder of references; print mean ± SD per class and overall.

    What the numbers mean:

    - Every class or region of ``dataset.json`` except the background is measured on its own, per case, on the
      whole volume, in mm; voxels that the reference marks as *ignore* count as empty in both.
    - **Dice**, **Jaccard** (IoU): shares from 0 to 1. Both masks empty: undefined and left out (nnU-Net's
      NaN). One empty: 0.
    - **HD95**: the larger one of the two directed 95th percentiles of surface distances. medpy's ``hd95``
      takes the percentile of both directions pooled; the two differ slightly.
    - **ASD**: mean distance from the prediction's surface to the reference's, *directed*: the default of
      MONAI and the same number as medpy's ``asd``, which SSL4MIS-style papers report. It does not see
      parts of the reference that the prediction misses.
    - HD95 and ASD of a class that is empty on one or both sides are undefined: left out of the means and
      counted.
    - **mean ± SD** of a class: over its cases. "overall": every case's mean over its defined classes
      first, then over the cases. ``sd`` is the sample standard deviation (n - 1, as most papers'
      statistics), ``sd_population`` divides by n (``numpy.std``).

    Args:
        predictions: folder with one file per case, named as the references.
        references: folder with the reference segmentations, e.g. ``labelsTs``.
        dataset_json: path of the ``dataset.json`` that names the classes and the file ending, or its content.
        output: folder for ``metrics.csv`` (one row per case and class) and ``metrics.json`` (everything);
            default: write nothing.
        only_predicted: leave out references without a prediction; else they are an error.

    Returns:
        What ``metrics.json`` holds: ``cases[case][class][metric]`` (None where undefined),
        ``classes[class][metric]`` and ``overall[metric]`` with ``mean``, ``sd``, ``sd_population``, ``n``,
        and ``empty[class]``, the number of cases in which the prediction, the reference or both had no voxel.

    Raises:
        InputError: no matching files, a reference without prediction, an unreadable file, different shape or
            geometry, or a label that dataset.json doesn't have.

    Example:
        alhvr evaluate --predictions OUT --references labelsTs --dataset_json dataset.json --output scores
    """
    from tqdm import tqdm

    labels, ending = read_dataset_json(dataset_json)
    pairs = match_cases(Path(predictions), Path(references), ending, only_predicted)
    cases = {}
    for case, (prediction_file, reference_file) in tqdm(pairs.items(), desc="evaluate", unit="case"):
        prediction, reference, spacing = read_pair(prediction_file, reference_file, labels)
        cases[case] = case_metrics(prediction, reference, labels.classes, spacing, labels.ignore)
    result = summarize(cases)
    print(table(result), flush=True)
    if output is not None:
        _write(result, Path(output))
    return result


def summarize(cases: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Means and SDs over what :func:`case_metrics` returned for every case; NaN becomes None."""
    classes = list(next(iter(cases.values())))
    per_class = {
        name: {metric: _statistics([case[name][metric] for case in cases.values()]) for metric in METRICS}
        for name in classes
    }
    overall = {
        metric: _statistics([_mean([scores[metric] for scores in case.values()]) for case in cases.values()])
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
    return {"cases": written, "classes": per_class, "overall": overall, "empty": empty}


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def _statistics(values: Sequence[float]) -> dict[str, float | int | None]:
    defined = np.array([value for value in values if not math.isnan(value)], float)
    n = len(defined)
    return {
        "mean": float(defined.mean()) if n else None,
        "sd": float(defined.std(ddof=1)) if n > 1 else None,
        "sd_population": float(defined.std()) if n else None,
        "n": n,
    }


def _json_value(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def table(result: dict[str, Any]) -> str:
    """The summary as text: mean ± sample SD per class and overall, and what was left out."""
    rows = [["class", *(metric + UNITS[metric] for metric in METRICS), "cases", "no distance"]]
    cases = str(len(result["cases"]))
    for name, scores in [*result["classes"].items(), ("overall", result["overall"])]:
        undefined = str(sum(result["empty"][name].values())) if name in result["empty"] else ""
        rows.append([name, *(cell(scores[metric]) for metric in METRICS), cases, undefined])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join(lines + _said(result))


def cell(statistics: Mapping[str, Any]) -> str:
    """``mean ± SD`` of one entry of ``classes`` or ``overall``; a dash where nothing was defined."""
    if statistics["mean"] is None:
        return "-"
    spread = "" if statistics["sd"] is None else f" ± {statistics['sd']:.3f}"
    return f"{statistics['mean']:.3f}{spread}"


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


def _write(result: dict[str, Any], output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    (output / "metrics.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    with open(output / "metrics.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "class", *METRICS, "empty"])
        for case, of_case in result["cases"].items():
            for name, scores in of_case.items():
                writer.writerow([case, name, *(scores[metric] for metric in METRICS), scores["empty"]])
