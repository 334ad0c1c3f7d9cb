"""Does it matter which cases are annotated next? 5 labeled Hippocampus cases, then 5 and 5 more by each method. ::

    alhvr benchmark --suite hippocampus-cpu --methods Supervised --seeds 0 --device cpu      # prepares the data
    python benchmarks/annotation.py --work SCRATCH --output benchmarks/results/annotation_hippocampus.json

``SupervisedTrainer`` trains on the labeled cases; annotating a case means that its hidden label is no longer hidden.
Interrupted, the same command goes on.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import fire
import torch
from step_cost import versions

DATASET, PLANS, CONFIGURATION = "Dataset004_Hippocampus", "ALHVRPlansHippocampusSmall", "2d"
TRAINER = "SupervisedTrainer"


@dataclass
class Study:
    """One seed: folders of its own, so that splits can grow."""

    work: Path
    seed: int

    @property
    def preprocessed(self) -> Path:
        return self.work / f"seed{self.seed}" / "preprocessed" / DATASET

    @property
    def environment(self) -> dict[str, str]:
        names = ("raw", "preprocessed", "results")
        folders = {f"nnUNet_{name}": str(self.work / f"seed{self.seed}" / name) for name in names}
        return {**os.environ, **folders, "OMP_NUM_THREADS": "1", "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1"}

    def prepare(self) -> None:
        """Images and preprocessed data as links; plans with the seed."""
        raw = self.work / f"seed{self.seed}" / "raw" / DATASET
        raw.parent.mkdir(parents=True, exist_ok=True)
        if not raw.exists():
            raw.symlink_to(Path(os.path.expandvars("$nnUNet_raw"), DATASET).resolve())
        source = Path(os.path.expandvars("$nnUNet_preprocessed"), DATASET)
        self.preprocessed.mkdir(parents=True, exist_ok=True)
        for entry in source.iterdir():
            link = self.preprocessed / entry.name
            if entry.is_dir() and not link.exists():
                link.symlink_to(entry.resolve())
        for name in ("dataset.json", "dataset_fingerprint.json"):
            (self.preprocessed / name).write_bytes((source / name).read_bytes())
        plans = json.loads((source / f"{PLANS}.json").read_text())
        plans["configurations"][CONFIGURATION]["alhvr"]["seed"] = self.seed
        (self.preprocessed / f"{PLANS}.json").write_text(json.dumps(plans))

    def run(self, *words: object) -> None:
        log = self.work / f"seed{self.seed}" / "log.txt"
        with log.open("a") as file:
            command = [sys.executable, "-m", "alhvr_trainer", *map(str, words)]
            subprocess.run(command, env=self.environment, stdout=file, stderr=file, check=True)

    def dice(self, fold: int) -> float:
        """Mean validation Dice in %, after training unless it is done."""
        folder = self.work / f"seed{self.seed}" / "results" / DATASET / f"{TRAINER}__{PLANS}__{CONFIGURATION}"
        summary = folder / f"fold_{fold}" / "validation" / "summary.json"
        if not summary.exists():
            self.run("train", "-d", 4, "-c", CONFIGURATION, "-f", fold, "-p", PLANS, "-t", TRAINER, "--device", "cpu")
        return round(100 * float(json.loads(summary.read_text())["foreground_mean"]["Dice"]), 2)

    def suggested(self, fold: int, method: str, number: int) -> list[str]:
        output = self.work / f"seed{self.seed}" / "suggestions" / f"fold_{fold}"
        model = ("-d", 4, "-c", CONFIGURATION, "-f", fold, "-p", PLANS, "-t", TRAINER, "--device", "cpu")
        options = ("--method", method, "--seed", self.seed, "--num_processes", 1)
        self.run("suggest", *model, "-n", number, *options, "--output", output)
        with (output / "suggestions.csv").open() as file:
            return [row["case"] for row in csv.DictReader(file)]


def main(
    work: str,
    methods: tuple[str, ...] = ("random", "foreground", "entropy", "disagreement"),
    seeds: tuple[int, ...] = (0, 1, 2),
    added: int = 5,
    times: int = 2,
    output: str | None = None,
) -> None:
    """Print and write the Dice after each addition.

    Args:
        work: scratch folder.
        methods: of ``alhvr suggest``.
        seeds: of training and chance.
        added: cases annotated at a time.
        times: how often.
        output: JSON file.
    """
    split = json.loads((files("alhvr_trainer.experiments.benchmark") / "splits" / "hippocampus.json").read_text())
    start = next(fold for fold in (split["splits"] if isinstance(split, dict) else split) if len(fold["train"]) == 5)
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        study, folds = Study(Path(work).resolve(), seed), [start]
        study.prepare()
        for method in methods:
            current, fold = start, 0
            for step in range(times + 1):
                if step:
                    chosen = study.suggested(fold, method, added)
                    unlabeled = [case for case in current["unlabeled"] if case not in chosen]
                    current = {**current, "train": [*current["train"], *chosen], "unlabeled": unlabeled}
                    folds.append(current)
                    fold = len(folds) - 1
                (study.preprocessed / "splits_final.json").write_text(json.dumps(folds))
                row = {"seed": seed, "method": method, "labeled": len(current["train"]), "Dice": study.dice(fold)}
                print(json.dumps(row), flush=True)
                rows.append({**row, "cases": current["train"]})
        if output:
            how = {"command": " ".join(["python", *sys.argv]), **versions(torch.device("cpu")), "trainer": TRAINER}
            Path(output).write_text(json.dumps({**how, "runs": rows}, indent=1) + "\n")


if __name__ == "__main__":
    fire.Fire(main)
