"""What 10, 100, 1 000 or 10 000 unlabeled cases cost: planning, the start of a training, memory, a training step.

The cases are hard links to a few generated phantoms, small enough that their number and not their size is measured; the
package still reads, digests and preprocesses each of them. Each phase runs in a process of its own:

- planning: ``plan_and_preprocess``, then once more, when no unlabeled case is left to do;
- a training in one process and one with two workers: from the trainer's construction to the end of the first step, the
  memory at that time, and the median time of the steps after it.

Times are given twice, as they pass and as CPU time, which other work on the machine hardly changes.

    python benchmarks/scale.py --output benchmarks/results/scale.json
    python benchmarks/scale.py --sizes 10,100,1000
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import fire

LABELED, TEMPLATES = 5, 8
"""Cases with labels; phantoms that the unlabeled ones are links to."""
SHAPE, PATCH = (3, 24, 24), [24, 24]
STEPS, PROCESSES = 40, 2
WORKERS = (0, 2)
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
DATASET = "Dataset901_Phantom"
PLANS = "ScalePlans"
PANELS = {
    "plan_and_preprocess (CPU s)": ["plan_cpu_seconds"],
    "plan_and_preprocess, nothing to do (CPU s)": ["plan_again_cpu_seconds"],
    "start of a training to its first step (CPU s)": ["start_cpu_seconds_0_workers"],
    "memory after the first step (MiB)": [f"memory_mib_{workers}_workers" for workers in WORKERS],
    "training step (CPU ms)": ["step_cpu_ms_0_workers"],
    "making a batch (CPU ms)": ["batch_cpu_ms_0_workers"],
}


def make_dataset(root: Path, cases: int) -> None:
    """A raw dataset with ``cases`` unlabeled ones, and ready plans of a tiny 2D network."""
    from alhvr_trainer.config.names import UNLABELED_FOLDER
    from alhvr_trainer.experiments.demo.phantom import write_dataset
    from alhvr_trainer.resources import plans_folder

    for folder in FOLDERS:
        (root / folder).mkdir(parents=True)
    dataset = write_dataset(root / FOLDERS[0], LABELED, min(cases, TEMPLATES), test=0, shape=SHAPE)
    templates = sorted((dataset / UNLABELED_FOLDER).iterdir())
    for number in range(len(templates), cases):
        os.link(templates[number % TEMPLATES], dataset / UNLABELED_FOLDER / f"scan_{number:05d}_0000.nii.gz")
    plans = json.loads((plans_folder() / "demo.json").read_text())
    plans["configurations"]["2d"]["patch_size"] = PATCH
    (root / "plans.json").write_text(json.dumps(plans))


def plan(root: str) -> dict[str, float]:
    """Seconds of ``plan_and_preprocess``; CPU seconds are those of its worker processes, too."""
    import alhvr_trainer.planning.planner  # noqa: F401  its import is not measured
    from alhvr_trainer import plan_and_preprocess

    start, cpu = time.perf_counter(), sum(os.times()[:4])
    plan_and_preprocess(DATASET, "2d", f"{root}/plans.json", overwrite_plans_name=PLANS, num_processes=PROCESSES)
    return {"seconds": time.perf_counter() - start, "cpu_seconds": sum(os.times()[:4]) - cpu}


def train(root: str) -> dict[str, float]:
    """Start a training on the CPU, and take a few steps."""
    import torch
    from inference import _tree

    from alhvr_trainer.trainers.alhvr import ALHVRTrainer

    folder = Path(root) / FOLDERS[1] / DATASET
    plans, dataset = (json.loads((folder / name).read_text()) for name in (f"{PLANS}.json", "dataset.json"))
    Path("/proc/self/clear_refs").write_text("5")  # Linux: start the peak anew, importing may have been higher
    start, cpu = time.perf_counter(), time.process_time()
    trainer = ALHVRTrainer({**plans, "continue_training": False}, "2d", 0, dataset, torch.device("cpu"))
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    started, started_cpu = time.perf_counter() - start, time.process_time() - cpu
    # without the files of libraries, which other programs may share
    memory = sum(_kib(f"/proc/{process}/smaps_rollup", "Pss_Anon") for process in _tree(os.getpid())) >> 10
    peak = _kib("/proc/self/status", "VmHWM") >> 10
    steps = []
    for _ in range(STEPS):
        start, cpu = time.perf_counter(), time.process_time()
        batch = next(trainer.dataloader_train)
        made = time.process_time()
        trainer.train_step(batch)
        steps.append((time.perf_counter() - start, time.process_time() - cpu, made - cpu))
    step, step_cpu, batch_cpu = (1000 * median(column) for column in zip(*steps, strict=True))
    trainer._in_epoch = False
    trainer.on_train_end()
    return {
        "start_seconds": started,
        "start_cpu_seconds": started_cpu,
        "memory_mib": memory,
        "peak_mib": peak,
        "step_ms": step,
        "step_cpu_ms": step_cpu,
        "batch_cpu_ms": batch_cpu,
    }


def _kib(file: str, key: str) -> int:
    return next(int(line.split()[1]) for line in Path(file).read_text().splitlines() if line.startswith(f"{key}:"))


def in_own_process(phase: str, root: Path, workers: int = 0) -> dict[str, float]:
    """What a phase returns."""
    environment = {**os.environ, **{folder: str(root / folder) for folder in FOLDERS}}
    # one thread: with networks as small as this one, waiting for other threads would hide everything else
    environment |= {"nnUNet_n_proc_DA": str(workers), "nnUNet_compile": "f", "OMP_NUM_THREADS": "1"}
    result = root / "result.json"
    done = subprocess.run(
        [sys.executable, __file__, phase, str(root), str(result)], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{phase}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    content: dict[str, float] = json.loads(result.read_text())
    return content


def measure(cases: int) -> dict[str, Any]:
    """One row of the table."""
    root = Path(tempfile.mkdtemp(prefix="alhvr_scale_"))
    try:
        make_dataset(root, cases)
        row = {}
        for name in ("plan", "plan_again"):
            row |= {f"{name}_{key}": value for key, value in in_own_process("plan", root).items()}
        row["plan_cpu_seconds_per_case"] = row["plan_cpu_seconds"] / cases
        for workers in WORKERS:
            values = in_own_process("train", root, workers)
            row |= {f"{key}_{workers}_workers": value for key, value in values.items()}
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return {"cases": cases, **{key: round(value, 4) for key, value in row.items()}}


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Each quantity against the number of unlabeled cases."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(2, 3, figsize=(12, 6), layout="constrained")
    for axes, (title, keys) in zip(grid.flat, PANELS.items(), strict=True):
        for key in keys:
            label = key.rsplit("_", 2)[1] + " workers" if len(keys) > 1 else None
            axes.plot([row["cases"] for row in rows], [row[key] for row in rows], marker="o", label=label)
        highest = max(row[key] for row in rows for key in keys)
        axes.set(title=title, xlabel="unlabeled cases", xscale="log", ylim=(0, 1.15 * highest))
        if len(keys) > 1:
            axes.legend()
    figure.savefig(file, dpi=100)
    plt.close(figure)


def scale(sizes: str | int | tuple[int, ...] = "10,100,1000,10000", output: str | None = None) -> None:
    """Print a row for each number of unlabeled cases, and write them as JSON with a plot beside it.

    Args:
        sizes: numbers of unlabeled cases, comma-separated.
        output: JSON file; the plot is a PNG of the same name.
    """
    import torch
    from step_cost import versions

    rows = []
    for cases in sizes if isinstance(sizes, tuple) else str(sizes).split(","):
        rows.append(measure(int(cases)))
        print(json.dumps(rows[-1]), flush=True)
    if output:
        content = {"command": " ".join(sys.argv), **versions(torch.device("cpu")), "shape": SHAPE, "rows": rows}
        Path(output).write_text(json.dumps(content, indent=2) + "\n")
        plot(rows, Path(output).with_suffix(".png"))


if __name__ == "__main__":
    if sys.argv[1:2] in (["plan"], ["train"]):
        phase, root, result = sys.argv[1:]
        Path(result).write_text(json.dumps({"plan": plan, "train": train}[phase](root)))
    else:
        fire.Fire(scale)
