"""Time and peak memory of a training step of every method of a suite, on the same batches, in turns.

``alhvr benchmark`` must have planned the suite. Beside the runs, the file gives their comparison one more column.

    MALLOC_MMAP_THRESHOLD_=65536 python benchmarks/method_cost.py --suite hippocampus-cpu \
        --output benchmarks/results/hippocampus-cpu/cost.json
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
from step_cost import versions
from whole_steps import peak, start_of_peak

from alhvr_trainer.config.files import read_object
from alhvr_trainer.data.dataset import find_dataset
from alhvr_trainer.experiments.benchmark.prepare import dataset_of, plans_file
from alhvr_trainer.experiments.benchmark.suites import Method, Suite, load_suite
from alhvr_trainer.trainers.variants import trainer_named

BATCHES = 3


class Training:
    """A training of a suite's method that is about to take its first step.

    Args:
        suite: the suite.
        method: of the suite.
        fold: of its split.
        device: of the training.
    """

    def __init__(self, suite: Suite, method: Method, fold: int, device: torch.device) -> None:
        dataset = find_dataset(dataset_of(suite))
        plan = read_object(plans_file(suite))
        plans = read_object(Path(dataset.preprocessed) / f"{plan.get('plans_name', plans_file(suite).stem)}.json")
        block = plans["configurations"][suite.configuration].setdefault("alhvr", {})
        block.update(suite.settings_of(method, 0))
        plans["continue_training"] = False
        kind: Any = trainer_named(method.trainer)
        self.trainer: Any = kind(plans, suite.configuration, fold, dataset.dataset_json, device)
        start = time.perf_counter()
        self.trainer.on_train_start()
        self.trainer.on_train_epoch_start()
        self.seconds_to_start = time.perf_counter() - start
        self.batches = [next(self.trainer.dataloader_train) for _ in range(BATCHES)]

    def steps(self, number: int) -> float:
        """Milliseconds per step."""
        start = time.perf_counter()
        for step in range(number):
            self.trainer.train_step(self.batches[step % BATCHES])
        if self.trainer.device.type == "cuda":
            torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - start) / number


def main(
    suite: str = "hippocampus-cpu",
    fold: int = 0,
    steps: int = 6,
    rounds: int = 9,
    threads: int = 1,
    output: str | None = None,
) -> None:
    """Print, and write as JSON, milliseconds per step (median over the rounds), and peak memory.

    Args:
        suite: whose comparison to measure.
        fold: of its split.
        steps: of each method in each round.
        rounds: in each, all methods have their turn.
        threads: of torch on the CPU.
        output: JSON file.
    """
    chosen = load_suite(suite)
    names = chosen.tables.get("comparison", [method.name for method in chosen.methods])
    rows = [method for method in chosen.methods if method.name in names]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    os.environ.update(nnUNet_n_proc_DA="0", OMP_NUM_THREADS=str(threads))
    memory, trainings = {}, {}
    with tempfile.TemporaryDirectory() as results:
        for number, method in enumerate([rows[0], *rows]):  # libraries take memory when they are first used
            os.environ.update(nnUNet_results=f"{results}/{number}")
            gc.collect()
            before = start_of_peak(device)
            training = Training(chosen, method, fold, device)
            start_of_peak(device)  # AAU's may have trained an autoencoder
            training.steps(BATCHES)
            memory[method.name], trainings[method.name] = (peak(device) - before) >> 20, training
        times = [{name: training.steps(steps) for name, training in trainings.items()} for _ in range(rounds)]
    first = rows[0].name
    found = {}
    for name, training in trainings.items():
        of_rounds = [each[name] for each in times]
        found[name] = {
            "ms": round(float(np.median(of_rounds)), 1),
            "ms_quartiles": np.round(np.percentile(of_rounds, (25, 75)), 1).tolist(),
            "relative": round(float(np.median([each[name] / each[first] for each in times])), 2),
            "peak_mib": memory[name],
            "seconds_to_start": round(training.seconds_to_start, 1),
        }
        print(name, found[name], flush=True)
    if output:
        how = {"command": " ".join(sys.argv), **versions(device), "suite": suite, "fold": fold, "threads": threads}
        how |= {"steps": steps, "rounds": rounds, "relative_to": first}
        Path(output).write_text(json.dumps({**how, "methods": found}, indent=2) + "\n")


if __name__ == "__main__":
    fire.Fire(main)
