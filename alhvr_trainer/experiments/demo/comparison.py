"""How the demo's two results compare, and what that shows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from alhvr_trainer.bundle.scripts.metrics import summarize
from alhvr_trainer.config.names import TRAINER_NAME
from alhvr_trainer.experiments.benchmark.aggregate import paired_test
from alhvr_trainer.experiments.demo.steps import BASELINE_NAME
from alhvr_trainer.trainers.alhvr import ALHVRSettings

TITLES = {BASELINE_NAME: "labeled scans only", TRAINER_NAME: "ALHVR"}
Scores = Mapping[str, dict[str, Any]]
"""Trainer -> what ``alhvr evaluate`` wrote of its predictions."""
OVERLAPS = ("Dice", "Jaccard")


def same_cases(scores: Scores) -> dict[str, dict[str, Any]]:
    """The results, with distances only where all methods have one; else the means would be over different scans."""

    def value(trainer: str, case: str, name: str, key: str) -> Any:
        of_all = {each: result["cases"][case][name][key] for each, result in scores.items()}
        compared = [of_all[trainer]] if key in OVERLAPS else of_all.values()
        return math.nan if None in compared else of_all[trainer]

    compared = {}
    for trainer, result in scores.items():
        compared[trainer] = summarize(
            {
                case: {name: {key: value(trainer, case, name, key) for key in each} for name, each in classes.items()}
                for case, classes in result["cases"].items()
            }
        )
    return compared


def result_in_words(scores: Scores, settings: Mapping[str, Any]) -> list[str]:
    """What the difference is worth, and what was set to get it.

    Args:
        scores: of both trainers.
        settings: those in force in ALHVR's training.
    """
    test = paired_test(case_means(scores[TRAINER_NAME]), case_means(scores[BASELINE_NAME]))
    changed = [
        f"{key} {settings[key]} (default {default})"
        for key, default in ALHVRSettings().as_dict().items()
        if default is not None and settings.get(key, default) != default
    ]
    difference = test and (
        f"Dice, {TITLES[TRAINER_NAME]} minus {TITLES[BASELINE_NAME]}: {test.difference:+.3f} on average over n = "
        f"{test.n} test scans, higher in {test.better} of them; p = {test.p:.3f} (Wilcoxon's signed-rank test, "
        "two-sided; it speaks of these two trainings, others may differ)."
    )
    set_otherwise = changed and f"Not {TITLES[TRAINER_NAME]}'s default settings: {', '.join(changed)}."
    return [sentence for sentence in (difference, set_otherwise) if sentence]


def case_means(result: Mapping[str, Any]) -> dict[str, float]:
    """Each case's Dice, the mean over its classes."""
    values = {
        case: [scores["Dice"] for scores in classes.values() if scores["Dice"] is not None]
        for case, classes in result["cases"].items()
    }
    return {case: float(np.mean(each)) for case, each in values.items() if each}
