"""Autocast and torch.compile on a GPU, in 2D and 3D: do the losses stay finite and close to float32's?

Trains ALHVRTrainer itself on generated phantoms, with the same batches and weights in every mode.

    python benchmarks/mixed_precision.py --output benchmarks/results/mixed_precision.json
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
from step_cost import versions

MODES: dict[str, dict[str, Any]] = {
    "float32": {"autocast": False},
    "float16": {},
    "bfloat16": {"mixed_precision": "bfloat16"},
    "float32 compiled": {"autocast": False, "compiled": True},
    "float16 compiled": {"compiled": True},
}
TOLERANCE = {"float16": 0.01, "bfloat16": 0.03, "float32": 0.002}
"""Of the losses of the first step, relative to float32's; the last is for the order of sums in compiled code."""
PATCHES = {"2d": [192, 192], "3d_fullres": [16, 128, 128]}
COMPARED = ("supervised_a", "supervised_b", "dtct_a", "dtct_b", "ce_a", "ce_b", "cos_a", "cos_b", "gamma")


def prepare(work: Path, patches: dict[str, list[int]]) -> None:
    """Phantoms, planned and preprocessed for both configurations."""
    from alhvr_trainer.experiments.demo.phantom import write_dataset
    from alhvr_trainer.planning.plan_and_preprocess import plan_and_preprocess

    shape = (patches["3d_fullres"][0], *patches["2d"])
    write_dataset(work / "raw", labeled=3, unlabeled=3, test=0, shape=shape)
    plan_and_preprocess(901, "2d,3d_fullres", num_processes=1)


def run(work: Path, configuration: str, patch_size: list[int], mode: str, steps: int, device: str) -> dict[str, Any]:
    """Losses of every step, milliseconds and memory of one mode."""
    from alhvr_trainer.trainers.alhvr import ALHVRTrainer

    class InFloat32(ALHVRTrainer):
        def autocast(self) -> nullcontext:
            return nullcontext()

    options = MODES[mode]
    folder = work / "preprocessed" / "Dataset901_Phantom"
    plans = json.loads((folder / "ALHVRPlans.json").read_text()) | {"continue_training": False}
    settings = {"seed": 0, "mixed_precision": options.get("mixed_precision", "float16")}
    plans["configurations"][configuration].update(batch_size=4, patch_size=patch_size, alhvr=settings)
    dataset_json = json.loads((folder / "dataset.json").read_text())
    os.environ.update(nnUNet_compile=str(options.get("compiled", False)))
    kind = ALHVRTrainer if options.get("autocast", True) else InFloat32
    trainer = kind(plans, configuration, 0, dataset_json, torch.device(device))
    trainer.initialize()
    trainer.num_epochs, trainer.num_iterations_per_epoch = 1, steps
    loader, _ = trainer.get_dataloaders()
    trainer.on_train_epoch_start()
    losses, seconds = [], []
    for step in range(steps):
        if step == 1 and device == "cuda":  # the first step compiles
            torch.cuda.reset_peak_memory_stats()
        batch = next(loader)
        start = time.perf_counter()
        losses.append(trainer.train_step(batch)["record"].values)
        seconds.append(time.perf_counter() - start)
    skipped = trainer.grad_scaler is not None and trainer.grad_scaler.get_scale() < 2.0**16
    return {
        "first losses": {key: losses[0][key] for key in COMPARED},
        "last supervised loss": losses[-1]["supervised_a"],
        "finite": bool(np.isfinite([list(values.values()) for values in losses]).all()),
        "steps skipped by the scaler": skipped,
        "median milliseconds": round(1000 * float(np.median(seconds[steps // 2 :])), 1),
        "peak MiB": torch.cuda.max_memory_allocated() >> 20 if device == "cuda" else None,
    }


def deviation(found: dict[str, float], expected: dict[str, float]) -> float:
    """Largest difference relative to the larger of the value and 0.1."""
    return max(abs(found[key] - expected[key]) / max(abs(expected[key]), 0.1) for key in expected)


def main(steps: int = 30, device: str = "cuda", output: str | None = None, tiny: bool = False) -> None:
    """Run all modes in 2D and 3D; exits with status 1 if a loss is not finite or not within tolerance.

    Args:
        steps: training steps of each mode.
        device: "cuda"; on "cpu" autocast and compile are off, as in nnU-Net: a rehearsal.
        output: JSON file.
        tiny: small patches, for the rehearsal.
    """
    patches = {"2d": [32, 32], "3d_fullres": [4, 32, 32]} if tiny else PATCHES
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name in ("raw", "preprocessed", "results"):
            (work / name).mkdir()
            os.environ[f"nnUNet_{name}"] = str(work / name)
        os.environ.update(nnUNet_n_proc_DA="0", nnUNet_def_n_proc="1")
        prepare(work, patches)
        for configuration, patch_size in patches.items():
            for mode in MODES:
                found = run(work, configuration, patch_size, mode, steps, device)
                reference = rows.get(f"{configuration}, float32", found)
                found["deviation from float32"] = deviation(found["first losses"], reference["first losses"])
                found["tolerance"] = TOLERANCE[mode.split()[0]]
                rows[f"{configuration}, {mode}"] = found
                print(configuration, mode, json.dumps(found), flush=True)
    good = all(row["finite"] and row["deviation from float32"] <= row["tolerance"] for row in rows.values())
    content = {"command": " ".join(sys.argv), **versions(torch.device(device)), "steps": steps, "good": good}
    if output:
        Path(output).write_text(json.dumps({**content, "modes": rows}, indent=2) + "\n")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    fire.Fire(main)
