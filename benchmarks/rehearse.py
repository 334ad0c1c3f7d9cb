"""A rehearsal of a 3D suite without its data: phantoms in their place, the suite's own plans and methods, a few steps.

The phantoms have the data set's spacing, intensities and number of classes and are as large as one patch, so that a CPU
can validate them. Every method trains in full patches, with its own settings, is validated and lands in the tables. A
training of the suite's length is then extrapolated from a measured step of ALHVR on a card, by the methods' steps
here: an estimate, as a card's ratios are not a CPU's.

    python benchmarks/rehearse.py --suite brats2019 --output benchmarks/results/rehearsal_brats2019.json
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
import yaml
from step_cost import versions

from alhvr_trainer.config.names import UNLABELED_FOLDER
from alhvr_trainer.errors import InputError
from alhvr_trainer.experiments.benchmark.command import benchmark
from alhvr_trainer.experiments.benchmark.suites import Suite, load_suite
from alhvr_trainer.experiments.demo.phantom import make_phantom, write_volume
from alhvr_trainer.resources import plans_folder

HERE = Path(__file__).resolve().parent
SPACING = {"brats2019": (1.0, 1.0, 1.0), "abdomenct1k": (2.5, 0.8, 0.8)}
CHANNEL = {"brats2019": "FLAIR", "abdomenct1k": "CT"}
LABELS = {
    "brats2019": {"background": 0, "whole_tumor": 1},
    "abdomenct1k": {"background": 0, "liver": 1, "kidney": 2, "spleen": 3, "pancreas": 4},
}
PARTS = {"train": 3, "unlabeled": 3, "val": 1, "test": 1}
MEASURED = "3d"
"""The case of step_cost_gpu.json that has the suites' network: 96 x 96 x 96, features 16 to 256, 2 + 2 samples."""


def phantom(suite: str, seed: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A scan and its labels in the data set's classes and units."""
    image, labels = make_phantom(seed, shape, SPACING[suite])
    if CHANNEL[suite] == "CT":  # Hounsfield units, and a fourth organ
        upper = (np.arange(shape[0]) < shape[0] // 2)[:, None, None]
        labels = np.where((labels == 3) & upper, 4, labels)
        image = 300 * (image - image.mean()) / image.std() - 100
    else:
        labels = np.minimum(labels, 1)
    return image.astype(np.float32), labels.astype(np.uint8)


def write_dataset(raw: Path, suite: Suite, shape: tuple[int, int, int]) -> list[dict[str, list[str]]]:
    """The raw data set; returns its split, one fold for all fractions."""
    name, folder = suite.name, raw / f"Dataset903_{suite.dataset}"
    names = iter(f"case_{number:02d}" for number in range(sum(PARTS.values())))
    parts = {part: [next(names) for _ in range(number)] for part, number in PARTS.items()}
    for images in ("imagesTr", "labelsTr", "imagesTs", "labelsTs", UNLABELED_FOLDER):
        (folder / images).mkdir(parents=True)
    cases = [(part, case) for part, members in parts.items() for case in members]
    for number, (part, case) in enumerate(cases):
        image, labels = phantom(name, number, shape)
        end = "Ts" if part == "test" else "Tr"
        images = UNLABELED_FOLDER if part == "unlabeled" else f"images{end}"
        write_volume(image, folder / images / f"{case}_0000.nii.gz", SPACING[name])
        if part != "unlabeled":
            write_volume(labels, folder / f"labels{end}" / f"{case}.nii.gz", SPACING[name])
    content = {
        "channel_names": {"0": CHANNEL[name]},
        "labels": LABELS[name],
        "numTraining": PARTS["train"] + PARTS["val"],
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return [{part: parts[part] for part in ("train", "val")}]


def rehearsed(suite: Suite, folder: Path, steps: int) -> Path:
    """The suite's file with the phantoms, one fold, one seed and a few steps."""
    entries = suite.model_dump(exclude_defaults=True)
    short = {"num_epochs": 1, "num_iterations_per_epoch": steps, "num_val_iterations_per_epoch": 1}
    entries |= {
        "splits": str(folder / "splits.json"),
        "folds": {"rehearsal": 0},
        "seeds": [0],
        "settings": {**suite.settings, **short},
        "environment": {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1"},
    }
    file = folder / f"{suite.name}.yaml"
    file.write_text(yaml.safe_dump(entries))
    return file


def seconds_on_card(configuration: dict[str, Any]) -> tuple[float, str]:
    """Of a step of ALHVR with the suite's patch, from the measured one by the number of voxels; and the card."""
    run = json.loads((HERE / "results" / "step_cost_gpu.json").read_text())["runs"]["CUDA graphs"]
    case = run["cases"][MEASURED]
    voxels = np.prod(configuration["patch_size"]) * configuration["batch_size"]
    of_measured = np.prod(case["patch"]) * (case["labeled"] + case["unlabeled"])
    return float(case["seconds_alhvr"] * voxels / of_measured), run["device"]


def main(suite: str, output: str, steps: int = 2) -> None:
    """Rehearse a suite.

    Args:
        suite: brats2019 or abdomenct1k.
        output: JSON file of the result.
        steps: training steps of each method.

    Raises:
        InputError: another suite, or a method failed.
    """
    if suite not in SPACING:
        raise InputError(f"--suite is {suite}; give one of {', '.join(SPACING)}")
    rehearsal = load_suite(suite)
    plan = json.loads((plans_folder() / f"{rehearsal.plans}.json").read_text())
    configuration = plan["configurations"][rehearsal.configuration]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            os.environ[variable] = str(folder / variable)
            (folder / variable).mkdir()
        shape = tuple(configuration["patch_size"])
        (folder / "splits.json").write_text(json.dumps(write_dataset(folder / "nnUNet_raw", rehearsal, shape)))
        results = folder / "results"
        benchmark(str(rehearsed(rehearsal, folder, steps)), str(results), device="cpu", remove_checkpoints=True)
        runs = [json.loads(file.read_text()) for file in (results / "runs").glob("*.json")]
    seconds = {run["job"]["method"]: run["seconds_of_training"] / steps for run in runs}
    iterations = configuration["alhvr"]["num_epochs"] * configuration["alhvr"]["num_iterations_per_epoch"]
    step, card = seconds_on_card(configuration)
    hours = {method: step * iterations * own / seconds["ALHVR"] / 3600 for method, own in seconds.items()}
    jobs = len(rehearsal.folds) * len(rehearsal.seeds)
    result = {
        "command": f"benchmarks/{' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])}",
        **versions(torch.device("cpu")),
        "patch_size": configuration["patch_size"],
        "steps": steps,
        "methods_run": len(runs),
        "seconds_per_step_on_the_cpu": {method: round(value, 1) for method, value in sorted(seconds.items())},
        "extrapolated": {
            "card": card,
            "from": "a step of ALHVR measured there at 96 x 96 x 96, by voxels; other methods by their steps here",
            "iterations": iterations,
            "hours_of_one_run": {method: round(value, 1) for method, value in sorted(hours.items())},
            "hours_of_the_suite": round(sum(hours.values()) * jobs),
        },
    }
    Path(output).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    fire.Fire(main)
