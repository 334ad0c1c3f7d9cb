"""Results of runs made by hand, for the tests of tables and plots."""

from __future__ import annotations

from typing import Any

NAN = None  # as JSON has it


def scores(dice: float | None, hd95: float | None = 2.0, empty: str = "") -> dict[str, Any]:
    jaccard = None if dice is None else dice / (2 - dice)
    distances = {"HD95": hd95, "HD95_pooled": hd95, "ASD": None if hd95 is None else hd95 / 2}
    return {"Dice": dice, "Jaccard": jaccard, **distances, "empty": empty}


def result(
    method: str,
    cases: dict[str, dict[str, Any]],
    seed: int = 0,
    fold: tuple[str, int] = ("5 labeled", 0),
    settings: dict[str, Any] | None = None,
    best: dict[str, dict[str, Any]] | None = None,
    test: bool = False,
) -> dict[str, Any]:
    """What one run leaves; ``cases``: case -> class -> :func:`scores`, measured with the last checkpoint."""
    part = "test" if test else "validation"
    return {
        "job": {
            "suite": "made-up",
            "method": method,
            "fold_name": fold[0],
            "fold": fold[1],
            "seed": seed,
            "test": test,
        },
        "labeled": 5,
        "unlabeled": 155,
        "settings_in_force": settings or {},
        "iterations": 100,
        "seconds_of_training": 60.0,
        "seconds": 90.0,
        "continued": False,
        "device": "cpu, 1 threads",
        "versions": {"torch": "2.9"},
        "metrics": {"final": {part: cases}, "best": {part: best or cases}},
    }
