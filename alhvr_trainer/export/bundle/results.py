"""Measured results of an exported model: nnU-Net's validation and ``alhvr evaluate``. No number is made up here."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alhvr_trainer.bundle.scripts.metrics import Spread
from alhvr_trainer.config.files import is_whole, read_object
from alhvr_trainer.errors import InputError, shown
from alhvr_trainer.export.bundle import facts
from alhvr_trainer.models import WEIGHTS_FILE, TrainedModel

KEYS = {"Dice": "dice", "Jaccard": "jaccard", "HD95": "hd95", "HD95_pooled": "hd95_pooled", "ASD": "asd"}
"""Metric -> its name in the metadata's eval_metrics; distances end in their unit."""
SUMMARY_FILE = Path("validation") / "summary.json"
_OF_NNUNET = {"Dice": "Dice", "Jaccard": "IoU"}


@dataclass(frozen=True)
class Results:
    """What was measured, and on what."""

    title: str
    summary: str
    """Sentences that say which network was measured, on which cases, and how the means are taken."""
    classes: dict[str, dict[str, Spread]]
    """Class -> metric -> spread; a metric that no case defines is missing."""
    overall: dict[str, float]
    """Metric -> mean over everything."""
    dice: dict[str, list[float]]
    """Class -> Dice of each case that defines it, in no telling order: sorted."""
    unit: str = "mm"
    """Of the distances."""


@dataclass(frozen=True)
class Measured:
    """All that is known of a model's quality."""

    results: list[Results]
    """The first one gives the metadata's numbers."""
    missing: str = ""
    """Why nnU-Net's validation is not among them; empty if it is."""

    @property
    def metrics(self) -> dict[str, float]:
        return eval_metrics(self.results[0]) if self.results else {}


def measured(model: TrainedModel, network: str, evaluation: str | Path | None = None) -> Measured:
    """The evaluation, if one is named, and nnU-Net's validation, if it says something of these networks.

    Args:
        model: and the folds taken from it.
        network: "a", "b" or "both".
        evaluation: a ``metrics.json`` of ``alhvr evaluate``.

    Raises:
        InputError: ``evaluation`` is not one of this model.
    """
    validation = validation_results(model, network)
    results = [] if evaluation is None else [evaluation_results(evaluation, model)]
    if isinstance(validation, str):
        return Measured(results, validation)
    return Measured([*results, validation])


def eval_metrics(results: Results) -> dict[str, float]:
    """``mean_dice``, …, and ``dice_<class>``, ``jaccard_<class>``, as the metadata keep them.

    Example:
        >>> eval_metrics(results)     # doctest: +SKIP
        {'mean_dice': 0.8011, 'mean_jaccard': 0.6711, 'dice_anterior': 0.8064, …}
    """
    suffixes = {metric: "" if metric in _OF_NNUNET else f"_{_slug(results.unit)}" for metric in KEYS}
    metrics = {f"mean_{KEYS[metric]}{suffixes[metric]}": round(v, 4) for metric, v in results.overall.items()}
    for metric in ("Dice", "Jaccard"):
        for name, spreads in results.classes.items():
            if metric in spreads:
                metrics[_unused(f"{KEYS[metric]}_{_slug(name)}", metrics)] = round(spreads[metric].mean, 4)
    return metrics


def _slug(name: str) -> str:
    return re.sub(r"\W+", "_", name.lower()).strip("_") or "class"


def _unused(key: str, taken: Mapping[str, Any]) -> str:
    """Two classes may differ in signs alone."""
    numbered = (key if number == 1 else f"{key}_{number}" for number in range(1, len(taken) + 2))
    return next(each for each in numbered if each not in taken)


def validation_results(model: TrainedModel, network: str) -> Results | str:
    """What nnU-Net measured at the end of training (``fold_X/validation/summary.json``), if it says something of
    the exported networks; otherwise a sentence that says why not.

    The means are over all cases of all folds, so a fold counts as its cases; for one fold they equal nnU-Net's.

    Args:
        model: and the folds taken from it.
        network: "a", "b" or "both".
    """
    if network != "a":
        return "nnU-Net's validation measures network a alone; of the networks in this bundle it says nothing."
    if "all" in model.folds:
        return "Fold all validates on the cases that it trains on; such numbers say nothing of new images."
    if model.weights_file != WEIGHTS_FILE:
        return f"nnU-Net's validation measures {WEIGHTS_FILE}; this bundle is made from {model.weights_file}."
    cases: dict[int | str, list[dict[str, dict[str, float]]]] = {}
    for fold in model.folds:
        file = model.folder / f"fold_{fold}" / SUMMARY_FILE
        if not file.is_file():
            return f"Fold {fold} has no results of nnU-Net's validation ({SUMMARY_FILE})."
        try:
            cases[fold] = _validated_cases(file, facts.foreground(model))
        except InputError:
            return f"The results of nnU-Net's validation of fold {fold} ({SUMMARY_FILE}) are damaged."
    return _validation(cases, list(facts.foreground(model)))


def _validated_cases(file: Path, classes: dict[str, frozenset[int]]) -> list[dict[str, dict[str, float]]]:
    """Of each case: class -> metric -> value, NaN where undefined."""
    names = {values: name for name, values in classes.items()}
    content = read_object(file)
    cases = []
    try:
        for case in content["metric_per_case"]:
            keyed = {names[_label_values(key)]: scores for key, scores in case["metrics"].items()}
            cases.append(
                {
                    name: {metric: _share(keyed[name][of_nnunet]) for metric, of_nnunet in _OF_NNUNET.items()}
                    for name in classes
                }
            )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{file} is not a summary of nnU-Net's for these labels") from error
    if not cases:
        raise InputError(f"{file} has no case")
    return cases


def _label_values(key: str) -> frozenset[int]:
    """nnU-Net's name of a label or region: ``"2"`` or ``"(1, 2)"``."""
    return frozenset(int(digits) for digits in re.findall(r"[0-9]{1,9}", key))


def _share(value: Any) -> float:
    number = float(value)
    if not (math.isnan(number) or 0 <= number <= 1):
        raise ValueError(f"{shown(value)} is not a share")
    return number


def _validation(by_fold: dict[int | str, list[dict[str, dict[str, float]]]], classes: list[str]) -> Results:
    cases = [case for of_fold in by_fold.values() for case in of_fold]
    spreads, dice = {}, {}
    for name in classes:
        defined = {
            metric: [case[name][metric] for case in cases if not math.isnan(case[name][metric])]
            for metric in _OF_NNUNET
        }
        spreads[name] = {metric: Spread.of(values) for metric, values in defined.items() if values}
        dice[name] = sorted(defined["Dice"])
    overall = {}
    for metric in _OF_NNUNET:
        means = [spreads[name][metric].mean for name in classes if metric in spreads[name]]
        if means:
            overall[metric] = statistics.fmean(means)
    folds = ", ".join(f"fold {fold}: {len(of_fold)}" for fold, of_fold in by_fold.items())
    ensemble = (
        " Each fold's network was measured by itself, on the cases that it did not train on; "
        "the ensemble of them in this bundle was not measured."
        if len(by_fold) > 1
        else ""
    )
    said = (
        f"Measured by nnU-Net at the end of training: network a, mirroring as the training allows, windows overlapping "
        f"by half, on the validation cases ({folds}).{ensemble} Mean ± standard deviation over the cases in which the "
        "class is defined; the mean of all is that of the classes' means. Choices made by looking at these cases, "
        "such as the number of epochs, make the numbers too good for new images."
    )
    return Results("nnU-Net's validation", said, spreads, overall, dice)


def evaluation_results(file: str | Path, model: TrainedModel) -> Results:
    """What ``alhvr evaluate`` wrote (``metrics.json``) about predictions of the model.

    Raises:
        InputError: the file is missing, no such file, or measures other classes than the model has.
    """
    content = read_object(file, "name the metrics.json that alhvr evaluate --output writes")
    try:
        cases = content["cases"]
        spreads = {name: _read_spreads(scores) for name, scores in content["classes"].items()}
        overall = {metric: spread.mean for metric, spread in _read_spreads(content["overall"]).items()}
        unit = {"mm": "mm", "voxels": "voxels"}[content.get("unit", "mm")]
        dice = {name: sorted(_defined(cases, name)) for name in spreads}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"evaluation {file} is not a metrics.json of alhvr evaluate") from error
    expected = list(facts.foreground(model))
    if sorted(spreads) != sorted(expected):
        raise InputError(
            f"evaluation {file} measures {', '.join(spreads) or 'nothing'}, but the model's classes are "
            f"{', '.join(expected)}; name the evaluation of this model"
        )
    said = (
        f"Measured by `alhvr evaluate` on predictions of {len(cases)} cases; the file does not say with which settings "
        f"they were made. Distances in {unit}: HD95 is the larger of both directions' 95th percentiles, HD95_pooled "
        "that of both together, ASD the mean from the prediction's surface to the reference's. Mean ± standard "
        "deviation over the cases in which the class is defined; the mean of all takes each case's mean over its "
        "classes first."
    )
    return Results("Evaluation", said, spreads, overall, dice, unit)


def _read_spreads(scores: dict[str, Any]) -> dict[str, Spread]:
    """By metric, without those that no case defines; files from before ``HD95_pooled`` was measured lack it."""
    there = [metric for metric in KEYS if metric in scores or metric != "HD95_pooled"]
    return {metric: _read_spread(scores[metric], metric) for metric in there if scores[metric]["mean"] is not None}


def _read_spread(scores: dict[str, Any], metric: str) -> Spread:
    check: Callable[[Any], float] = _share if metric in _OF_NNUNET else _distance
    mean, sd, n = scores["mean"], scores["sd"], scores["n"]
    if not is_whole(n, 1, 10**9) or math.isnan(mean):  # where nothing is defined there is no number, not NaN
        raise ValueError(f"{shown(mean)} of {shown(n)} cases is not a mean")
    return Spread(check(mean), None if sd is None else _distance(sd), n)


def _distance(value: Any) -> float:
    number = float(value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{shown(value)} is not a distance")
    return number


def _defined(cases: dict[str, Any], name: str) -> list[float]:
    return [_share(case[name]["Dice"]) for case in cases.values() if case[name]["Dice"] is not None]
