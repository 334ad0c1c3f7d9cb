"""Do the scores of ``alhvr predict --uncertainty`` find the bad segmentations of validation cases? ::

    alhvr benchmark --suite hippocampus-cpu --methods Supervised,CPS,ALHVR --folds "5 labelled" --output RUNS
    python benchmarks/uncertainty.py --runs RUNS --output benchmarks/results/uncertainty_hippocampus.json

Spearman's correlation of the score with the real Dice over the cases, and how many of the worst tenth of the cases by
Dice are in the tenth that the score flags. The checkpoints of the runs must be there. Interrupted, the same command
goes on.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
from scipy.stats import spearmanr
from step_cost import versions

from alhvr_trainer import predict
from alhvr_trainer.compatibility import nnunet_folder
from alhvr_trainer.data.dataset import find_dataset
from alhvr_trainer.data.linking import linked_cases

SCORES = {"expected_dice": 1, "entropy": -1}
"""The scores, and their sign in a perfect world: the better the segmentation, the higher or the lower."""


def predicted_scores(run: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """Case -> scores of the validation cases, predicted anew."""
    job = run["job"]
    data, model = find_dataset(job["dataset"]), f"{job['trainer']}__{run['plans_name']}__{job['configuration']}"
    cases = {case: data.images[case] for case in run["metrics"]["final"]["validation"]}
    with linked_cases(cases, data.dataset_json["file_ending"]) as images:
        output = predict(
            input=images,
            output=folder,
            model_folder=Path(nnunet_folder("nnUNet_results"), job["dataset"], model),
            fold=job["fold"],
            uncertainty=True,
            device="cpu",
            num_processes=1,
            verify=False,
        )
    return {file.stem: json.loads(file.read_text()) for file in (output / "uncertainty").glob("*.json")}


def agreement(score: np.ndarray, dice: np.ndarray, sign: int) -> dict[str, float]:
    """Correlation, and the share of the worst tenth that is in the flagged tenth."""
    tenth = max(1, round(len(dice) / 10))
    worst, flagged = set(np.argsort(dice)[:tenth].tolist()), set(np.argsort(sign * score)[:tenth].tolist())
    return {
        "spearman": round(sign * float(spearmanr(score, dice).statistic), 3),
        "of_the_worst_tenth": round(len(worst & flagged) / tenth, 3),
    }


def main(runs: str, output: str | None = None) -> None:
    """Predict the validation cases of all runs, and print and write how scores and Dice agree.

    Args:
        runs: output folder of ``alhvr benchmark``.
        output: JSON file.
    """
    found = json.loads(Path(output).read_text())["runs"] if output and Path(output).exists() else []
    done = [(row["method"], row["seed"], row["labeled"]) for row in found]
    for file in sorted(Path(runs, "runs").glob("*.json")):
        run = json.loads(file.read_text())
        if (run["job"]["method"], run["job"]["seed"], run["job"]["fold_name"]) in done:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            scores = predicted_scores(run, Path(scratch))
        real = run["metrics"]["final"]["validation"]
        dice = np.array([np.nanmean([each["Dice"] for each in real[case].values()]) for case in sorted(scores)])
        row: dict[str, Any] = {"method": run["job"]["method"], "seed": run["job"]["seed"], "cases": len(dice)}
        for name, sign in SCORES.items():
            values = np.array([scores[case][name] for case in sorted(scores)], float)
            row[name] = agreement(np.nan_to_num(values, nan=-sign * np.inf), dice, sign)
        print(json.dumps(row), flush=True)
        found.append({**row, "labeled": run["job"]["fold_name"], "Dice": round(100 * float(dice.mean()), 2)})
        if output:
            command = f"python benchmarks/uncertainty.py --runs RUNS --output {output}"
            how = {"command": command, **versions(torch.device("cpu"))}
            Path(output).write_text(json.dumps({**how, "runs": found}, indent=2) + "\n")


if __name__ == "__main__":
    fire.Fire(main)
