"""Supervised-only nnU-Net against ALHVR on the Hippocampus set with 5 labelled and 155 unlabelled cases.

Real commands, same plans, same number of iterations and of labelled samples per step; per seed one training of each
trainer. Every finished run is added to the result file at once, so an interrupted benchmark goes on where it stopped.

    OMP_NUM_THREADS=1 nnUNet_n_proc_DA=0 python benchmarks/hippocampus.py train --data DATA --work_folder ~/benchmark
    python benchmarks/hippocampus.py compare --output FILE --run ALHVR --baseline "supervised, 8 labelled per step"

DATA holds Dataset004_Hippocampus and the split files. Networks this small are fastest with one thread.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import fire
import torch
from scipy.stats import wilcoxon
from step_cost import versions

from alhvr_trainer.evaluation.evaluate import evaluate
from alhvr_trainer.evaluation.metrics import METRICS
from alhvr_trainer.resources import ext_trainer_folder

HERE = Path(__file__).resolve().parent
DATASET = "Dataset004_Hippocampus"
PLANS = "ALHVRPlansHippocampusSmall"
ENVIRONMENT = ("OMP_NUM_THREADS", "nnUNet_n_proc_DA", "nnUNet_def_n_proc")
RUNS: dict[str, dict[str, Any]] = {
    "supervised, 8 labelled per step": {"trainer": "SupervisedTrainer"},
    "ALHVR": {"trainer": "ALHVRTrainer"},
    "supervised, 16 labelled per step": {"trainer": "SupervisedTrainer", "batch_size": 24},
}


def prepare(data: Path, work: Path, split: str) -> None:
    """Own nnU-Net folders below ``work``, the raw data linked, then planning and preprocessing by our command."""
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(work / name)
        (work / name).mkdir(parents=True, exist_ok=True)
    os.environ.update(nnUNet_extTrainer=str(ext_trainer_folder()))
    preprocessed = work / "preprocessed" / DATASET
    if not (work / "raw" / DATASET).exists():
        (work / "raw" / DATASET).symlink_to(data.resolve() / DATASET)
    preprocessed.mkdir(exist_ok=True)
    (preprocessed / "splits_final.json").write_text((data / split).read_text())
    references = work / "references"
    references.mkdir(exist_ok=True)
    for case in json.loads((data / split).read_text())[0]["val"]:
        if not (references / f"{case}.nii.gz").exists():
            (references / f"{case}.nii.gz").symlink_to((data / DATASET / "labelsTr" / f"{case}.nii.gz").resolve())
    if not (preprocessed / f"{PLANS}.json").is_file():
        command = ["alhvr", "plan_and_preprocess", "-d", "4", "-c", "2d"]
        run([*command, "--plans_file", str(HERE / "plans_hippocampus_2d.json")], work / "plan.log")


def run(command: list[str], log: Path) -> float:
    """Run a command of this environment, its output in ``log``; seconds that it took."""
    started = time.time()
    program = Path(sys.executable).parent / command[0]
    with open(log, "w") as file:
        subprocess.run([str(program), *command[1:]], check=True, stdout=file, stderr=subprocess.STDOUT)
    return time.time() - started


def variant_of_plans(work: Path, name: str, batch_size: int | None, settings: dict[str, Any]) -> None:
    """The benchmark's plans under another name, with other settings; the preprocessed data stay the same."""
    folder = work / "preprocessed" / DATASET
    plans = json.loads((folder / f"{PLANS}.json").read_text())
    plans["plans_name"] = name
    configuration = plans["configurations"]["2d"]
    configuration["batch_size"] = batch_size or configuration["batch_size"]
    configuration["alhvr"].update(settings)
    (folder / f"{name}.json").write_text(json.dumps(plans, indent=2))


def train_and_evaluate(work: Path, label: str, trainer: str, batch_size: int | None, settings: dict) -> dict:
    name = f"Benchmark_{label}_{settings['seed']}".replace(" ", "").replace(",", "_").replace("=", "")
    variant_of_plans(work, name, batch_size, settings)
    command = ["nnUNetv2_train", "4", "2d", "0", "-tr", trainer, "-p", name, "-device", "cpu"]
    seconds = run(command, work / f"{name}.log")
    output = work / "results" / DATASET / f"{trainer}__{name}__2d" / "fold_0"
    metrics = evaluate(
        str(output / "validation"), str(work / "references"), str(work / "raw" / DATASET / "dataset.json"), None
    )
    return {
        "run": label,
        "seed": settings["seed"],
        "command": shlex.join(command),
        "settings": settings,
        "batch_size": batch_size,
        "seconds": round(seconds),
        "classes": metrics["classes"],
        "overall": metrics["overall"],
        # in the order of the cases' names, for paired comparisons
        "case_dice": [fmean(c["Dice"] for c in classes.values()) for _, classes in sorted(metrics["cases"].items())],
    }


def compare(output: str, run: str, baseline: str) -> dict[str, Any]:
    """Paired comparison of two runs: Dice per case, mean over the seeds that both have; Wilcoxon's test."""
    entries = [entry for entry in json.loads(Path(output).read_text())["runs"] if "case_dice" in entry]
    dice = {
        name: {entry["seed"]: entry["case_dice"] for entry in entries if entry["run"] == name}
        for name in (run, baseline)
    }
    seeds = sorted(set(dice[run]) & set(dice[baseline]))
    ours, theirs = (
        [fmean(of_case) for of_case in zip(*(dice[name][seed] for seed in seeds), strict=True)]
        for name in (run, baseline)
    )
    return {
        "run": run,
        "baseline": baseline,
        "seeds": seeds,
        "cases": len(ours),
        "dice_difference": fmean(ours) - fmean(theirs),
        "cases_better": sum(a > b for a, b in zip(ours, theirs, strict=True)),
        "wilcoxon_p": float(wilcoxon(ours, theirs).pvalue),
    }


def table(output: str) -> str:
    """Mean ± sample SD over the seeds of each run's mean over cases and classes, as Markdown."""
    entries = json.loads(Path(output).read_text())["runs"]
    lines = ["| run | seeds | Dice | Jaccard | HD95 (mm) | ASD (mm) | seconds |", "|---|---|---|---|---|---|---|"]
    for name in dict.fromkeys(entry["run"] for entry in entries):
        chosen = [entry for entry in entries if entry["run"] == name]
        cells = [mean_and_sd([e["overall"][metric]["mean"] for e in chosen]) for metric in METRICS]
        seconds = round(sum(e["seconds"] for e in chosen) / len(chosen))
        seeds = ", ".join(str(e["seed"]) for e in chosen)
        lines.append(f"| {name} | {seeds} | {' | '.join(cells)} | {seconds} |")
    return "\n".join(lines)


def mean_and_sd(values: list[float]) -> str:
    spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
    return f"{fmean(values):.4f}{spread}"


def main(
    data: str,
    work_folder: str,
    seeds: str = "0,1,2",
    runs: str | None = None,
    split: str = "splits_5_labeled.json",
    output: str = str(HERE / "results" / "hippocampus_5_labeled.json"),
    label: str | None = None,
    **settings: Any,
) -> None:
    """Train, validate and evaluate; write the results as JSON.

    Args:
        data: folder that holds Dataset004_Hippocampus and the split files.
        work_folder: where nnU-Net's folders and the logs go.
        seeds: comma-separated.
        runs: names out of RUNS, separated by semicolons; default all.
        split: file in ``data``.
        output: JSON file; finished runs in it are not repeated.
        label: name of a variation of ALHVR's settings, given as further flags, e.g. --threshold_proportion 0.9.
    """
    work = Path(work_folder).resolve()
    prepare(Path(data), work, split)
    results = json.loads(Path(output).read_text()) if Path(output).is_file() else {"runs": []}
    results |= {"script": "benchmarks/hippocampus.py", "split": split, **versions(torch.device("cpu"))}
    results["environment"] = {key: os.environ[key] for key in ENVIRONMENT if key in os.environ}
    done = {(entry["run"], entry["seed"]) for entry in results["runs"]}
    chosen = runs.split(";") if runs else list(RUNS)
    for seed in map(int, str(seeds).strip("()").replace(" ", "").split(",")):
        for kind in chosen:
            name = f"{kind}, {label}" if label else kind
            if (name, seed) in done:
                continue
            spec = RUNS[kind]
            entry = train_and_evaluate(work, name, spec["trainer"], spec.get("batch_size"), {"seed": seed, **settings})
            results["runs"].append(entry)
            Path(output).write_text(json.dumps(results, indent=2) + "\n")
    print(table(output))


if __name__ == "__main__":
    fire.Fire({"train": main, "compare": compare})
