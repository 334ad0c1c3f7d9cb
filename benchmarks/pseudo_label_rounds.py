"""Do rounds of pseudo-labels help? Hippocampus with 5 and 20 labeled cases: ``alhvr rounds`` after ALHVR as teacher. ::

    alhvr benchmark --suite hippocampus-cpu --methods ALHVR --seeds 0 --device cpu           # prepares the data
    python benchmarks/pseudo_label_rounds.py --work SCRATCH --output benchmarks/results/rounds_hippocampus.json

The students are ``SupervisedTrainer``, nnU-Net with the length of the suite's trainings. Beside the validation Dice of
teacher and students: how good the pseudo-labels are, by the hidden labels, which no training reads. Interrupted, the
same command goes on.
"""

from __future__ import annotations

import json
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
from annotation import CONFIGURATION, DATASET, PLANS, TRAINER, Study
from step_cost import versions

FOLDS = {"5 labelled": 0, "20 labelled": 1}
THRESHOLDS = (0.0, 0.7, 0.8, 0.85, 0.9)
"""What each would keep is counted."""


def real_dice(raw: Path, source: Path) -> dict[str, dict[str, float]]:
    """For several thresholds, how many pseudo-labels are above, and the mean Dice in % of these and of the others."""
    from alhvr_trainer.bundle.scripts.metrics import case_metrics
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    labels = {"Anterior": 1, "Posterior": 2}
    rows = []
    for case, judged in json.loads((raw / "pseudo_labels.json").read_text())["cases"].items():
        prediction, truth = (
            SimpleITKIO().read_seg(str(folder / f"{case}.nii.gz"))[0][0].astype(int)
            for folder in (raw / "predicted", source / "labelsTr")
        )
        metrics = case_metrics(prediction, truth, labels, (1, 1, 1))
        agreement = [judged[key] for key in ("opinions", "rounds") if judged[key] is not None]
        rows.append((min(agreement, default=0.0), 100 * np.nanmean([m["Dice"] for m in metrics.values()])))
    score, dice = np.array(rows).T
    found: dict[str, dict[str, float]] = {}
    for threshold in THRESHOLDS:
        kept = score >= threshold
        parts = {"Dice of the kept": dice[kept], "Dice of the dropped": dice[~kept]}
        means = {name: round(float(part.mean()), 2) for name, part in parts.items() if part.size}
        found[str(threshold)] = {"kept": int(kept.sum()), **means}
    return found


def validation_dice(results: Path, dataset: str, trainer: str, fold: int) -> float:
    file = results / dataset / f"{trainer}__{PLANS}__{CONFIGURATION}" / f"fold_{fold}" / "validation" / "summary.json"
    return round(100 * float(json.loads(file.read_text())["foreground_mean"]["Dice"]), 2)


def main(
    work: str,
    labeled: tuple[str, ...] = ("5 labelled", "20 labelled"),
    seeds: tuple[int, ...] = (0, 1, 2),
    rounds: int = 2,
    threshold: float = 0.85,
    teacher: str = "ALHVRTrainer",
    output: str | None = None,
) -> None:
    """Print and write the Dice of teachers, pseudo-labels and students.

    Args:
        work: scratch folder.
        labeled: of :data:`FOLDS`.
        seeds: of the trainings.
        rounds, threshold: of ``alhvr rounds``.
        teacher: trainer of the first teacher.
        output: JSON file.
    """
    splits = json.loads((files("alhvr_trainer.experiments.benchmark") / "splits" / "hippocampus.json").read_text())
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        study = Study(Path(work).resolve(), seed)
        study.prepare()
        (study.preprocessed / "splits_final.json").write_text(json.dumps(splits))
        raw, results = (study.work / f"seed{seed}" / name for name in ("raw", "results"))
        for name in labeled:
            fold = FOLDS[name]
            model = ("-d", 4, "-c", CONFIGURATION, "-f", fold, "-p", PLANS, "--trainer", teacher, "--student", TRAINER)
            options = ("--rounds", rounds, "--threshold", threshold, "--device", "cpu", "--num_processes", 1)
            study.run("rounds", *model, *options)
            row: dict[str, Any] = {"seed": seed, "labeled": name}
            row["teacher"] = validation_dice(results, DATASET, teacher, fold)
            for number in range(1, rounds + 1):
                (folder,) = raw.glob(f"*_fold{fold}_round{number}")
                counts = json.loads((folder / "pseudo_labels.json").read_text())["cases_to_train_on"]
                found: dict[str, Any] = {"pseudo-labels by threshold": real_dice(folder, raw / DATASET)}
                found["student"] = validation_dice(results, folder.name, TRAINER, 0)
                row[f"round {number}"] = {**counts, **found}
            print(json.dumps(row), flush=True)
            rows.append(row)
        if output:
            how = {"command": " ".join(["python", *sys.argv]), **versions(torch.device("cpu")), "threshold": threshold}
            content = {**how, "teacher": teacher, "student": TRAINER, "runs": rows}
            Path(output).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    fire.Fire(main)
