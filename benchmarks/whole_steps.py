"""Milliseconds per step of real trainings, batches included, and their peak memory: any methods, augmentation by
nnU-Net's workers or on the training's device, the step as it is, compiled, or as one CUDA graph.

Trains in one process on a data set that ``alhvr plan_and_preprocess`` has prepared; what it writes is thrown away.

    python benchmarks/whole_steps.py --dataset 27 --plans ALHVRPlansACDC --output benchmarks/results/whole_steps.json

On the CPU, peak memory is what the training's process holds beyond what it held before, without nnU-Net's workers; set
MALLOC_MMAP_THRESHOLD_=65536, or glibc keeps what one training has freed and the next one takes.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
from step_cost import _status_bytes, versions

from alhvr_trainer.config.methods import methods
from alhvr_trainer.data.dataset import find_dataset

VARIANTS: dict[str, dict[str, Any]] = {
    "stock": {"augmentation": "stock"},
    "stock, compiled": {"augmentation": "stock", "compile": True},
    "device": {"augmentation": "device"},
    "device, compiled": {"augmentation": "device", "compile": True},
    "device, graph": {"augmentation": "device", "cuda_graph": True},
    "stock, graph": {"augmentation": "stock", "cuda_graph": True},
}
WARM_UP = 20
ON_CPU = ("stock", "device")


def milliseconds(trainer: Any, steps: int, rounds: int) -> tuple[list[float], float]:
    """Of a step, one number per round; and the seconds that the warm-up took."""
    start = time.perf_counter()
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    train(trainer, WARM_UP)
    warm_up, found = time.perf_counter() - start, []
    for _ in range(rounds):
        start = time.perf_counter()
        train(trainer, steps)
        found.append(1000 * (time.perf_counter() - start) / steps)
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        if hasattr(loader, "_finish"):
            loader._finish()
    return found, warm_up


def train(trainer: Any, steps: int) -> None:
    for _ in range(steps):
        trainer.train_step(next(trainer.dataloader_train))
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()


def start_of_peak(device: torch.device) -> int:
    """Let the peak start anew; bytes held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # Linux
    return _status_bytes("VmRSS")


def peak(device: torch.device) -> int:
    """Bytes held at most since :func:`start_of_peak`."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else _status_bytes("VmHWM")


def main(
    dataset: str,
    plans: str,
    configuration: str = "2d",
    fold: int = 0,
    trainers: str = "SupervisedTrainer,ALHVRTrainer",
    variants: str | None = None,
    steps: int = 100,
    rounds: int = 3,
    precision: str = "float16",
    output: str | None = None,
) -> None:
    """Print, and write as JSON, milliseconds per step and peak memory.

    Args:
        dataset: its number or name, planned and preprocessed.
        plans: identifier of its plans.
        configuration: of these.
        fold: of its split.
        trainers: names, comma-separated.
        variants: out of VARIANTS, separated by semicolons; default: all, on the CPU the first two without compiling.
        steps: timed, in each of the rounds.
        rounds: their number.
        precision: the setting ``mixed_precision``.
        output: JSON file.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found_dataset = find_dataset(dataset)
    content = json.loads((Path(found_dataset.preprocessed) / f"{plans}.json").read_text())
    chosen = variants.split(";") if variants else (VARIANTS if device.type == "cuda" else ON_CPU)
    how = {"command": " ".join(sys.argv), **versions(device), "cores": os.cpu_count(), "precision": precision}
    rows: dict[str, dict[str, Any]] = {}
    for name in trainers if isinstance(trainers, (list, tuple)) else trainers.split(","):
        for variant in chosen:
            settings = {**VARIANTS[variant], "mixed_precision": precision, "seed": 0}
            os.environ.update(nnUNet_compile=str(settings.pop("compile", False)))
            own = deepcopy(content) | {"continue_training": False}
            own["configurations"][configuration].setdefault("alhvr", {}).update(settings)
            with tempfile.TemporaryDirectory() as results:
                os.environ.update(nnUNet_results=results)
                kind = methods()[name].trainer
                trainer = kind(own, configuration, fold, found_dataset.dataset_json, device)
                before = start_of_peak(device)
                try:
                    took, warm_up = milliseconds(trainer, steps, rounds)
                except Exception as error:  # one that does not run must not cost the others their time
                    rows.setdefault(name, {})[variant] = {"failed": f"{type(error).__name__}: {error}"[:500]}
                else:
                    row = {"ms": round(float(np.median(took)), 2), "ms_of_rounds": np.round(took, 2).tolist()}
                    rows.setdefault(name, {})[variant] = {**row, "seconds_to_step_20": round(warm_up, 1)}
                    rows[name][variant]["peak_mib"] = (peak(device) - before) >> 20
                del trainer
                gc.collect()
                torch._dynamo.reset()
            print(name, variant, rows[name][variant], flush=True)
            if output:
                Path(output).write_text(json.dumps({**how, "steps": rows}, indent=2) + "\n")


if __name__ == "__main__":
    fire.Fire(main)
