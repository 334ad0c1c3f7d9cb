"""Patches per second: augmentation in batches on the training's device against nnU-Net's loader with one worker.

Both augment the same generated cases with nnU-Net's training transforms. nnU-Net's worker is a process of its own; ours
runs in this one, on all its threads, or on the GPU. The two take turns, so that drifts of the machine hit both alike.

    python benchmarks/loader.py --output benchmarks/results/loader.json
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from step_cost import versions

from alhvr_trainer.data.batches import Draws
from alhvr_trainer.data.device_loader import OnDevice
from alhvr_trainer.data.loader import LabeledAndUnlabeled

CASES: dict[str, dict[str, Any]] = {
    "2d_small": {"patch": (56, 40), "batch": 16, "shape": (36, 50, 35), "rotation": 180},
    "2d": {"patch": (256, 224), "batch": 16, "shape": (9, 256, 216), "rotation": 180},
    "3d_small": {"patch": (40, 56, 40), "batch": 4, "shape": (36, 50, 35), "rotation": 30},
}
LABELS = {"background": 0, "RV": 1, "MLV": 2, "LVC": 3}
NUMBER = 12


def write_cases(folder: Path, shape: tuple[int, ...], patch: tuple[int, ...]) -> None:
    """Noise with three boxes; every second case is taken as unlabeled."""
    random = np.random.default_rng(0)
    for number in range(NUMBER):
        images = random.normal(size=(1, *shape)).astype(np.float32)
        labels = np.zeros((1, *shape), np.int8)
        for label in (1, 2, 3):
            low, high = [n // 4 + 2 * label for n in shape[1:]], [n // 2 + 4 * label for n in shape[1:]]
            labels[0, :, low[0] : high[0], low[1] : high[1]] = label
        voxels = {label: np.argwhere(labels == label)[::3] for label in (1, 2, 3)}
        blocks, chunks = comp_blosc2_params(images.shape, patch)
        properties = {"class_locations": voxels if number % 2 == 0 else {}}
        nnUNetDatasetBlosc2.save_case(
            images, labels if number % 2 == 0 else 0 * labels, properties, str(folder / f"case_{number:02d}"),
            chunks=chunks, blocks=blocks, chunks_seg=chunks, blocks_seg=blocks,
        )  # fmt: skip


def transforms(case: dict[str, Any]) -> Any:
    angle, dimensions = np.deg2rad(case["rotation"]), len(case["patch"])
    scales = [[2.0**-level] * dimensions for level in range(3)]
    axes = tuple(range(dimensions))
    return nnUNetTrainer.get_training_transforms(
        case["patch"], (-angle, angle), scales, axes, False, use_mask_for_norm=[False]
    )


def loaders(case: dict[str, Any], folder: Path, device: torch.device) -> dict[str, Iterator[Any]]:
    """nnU-Net's on all cases; ours on labeled cases alone, and on half labeled and half unlabeled ones."""
    angle = np.deg2rad(case["rotation"])
    rotation = (-angle, angle)
    initial, batch = get_patch_size(case["patch"], rotation, rotation, rotation, (0.85, 1.25)), case["batch"]
    labels = PlansManager({"dataset_name": "", "plans_name": ""}).get_label_manager({"labels": LABELS})
    stock = nnUNetDataLoader(
        nnUNetDatasetBlosc2(str(folder)), batch, initial, case["patch"], labels, 0.33, transforms=transforms(case)
    )
    worker = NonDetMultiThreadedAugmenter(
        stock, None, 1, num_cached=6, pin_memory=device.type == "cuda", wait_time=0.002
    )
    even, odd = (nnUNetDatasetBlosc2(str(folder), [f"case_{n:02d}" for n in range(k, NUMBER, 2)]) for k in (0, 1))
    even.draws = Draws((0,), 0, (0.0,) * (batch - batch // 3) + (1.0,) * (batch // 3))
    even.on_device = OnDevice(device, None, 1, lambda _line: None)
    both = LabeledAndUnlabeled(even, odd, batch - batch // 2, batch // 2)
    ours = {
        name: even.on_device.loader(
            data, batch, initial, case["patch"], labels, oversample_foreground_percent=0.33, transforms=transforms(case)
        )
        for name, data in (("labeled", even), ("labeled and unlabeled", both))
    }
    return {"nnU-Net": worker, **ours}


def rate(loader: Iterator[Any], batch: int, seconds: float, wait: Callable[[], None]) -> float:
    """Patches per second; what was prepared before the clock started is not counted."""
    for _ in range(8):
        next(loader)
    wait()
    start, batches = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(loader)
        batches += 1
    wait()
    return batches * batch / (time.perf_counter() - start)


def main(
    cases: str = "2d_small,2d,3d_small",
    rounds: int = 5,
    seconds: float = 5.0,
    threads: int = 0,
    output: str | None = None,
) -> None:
    """Print, and write as JSON, patches per second and their ratio to nnU-Net's.

    Args:
        cases: names out of CASES, comma-separated.
        rounds: in each, every loader runs once.
        seconds: of each run.
        threads: CPU threads (0: torch's default).
        output: JSON file.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if threads:
        torch.set_num_threads(threads)
    rows = {}
    for name in cases.split(",") if isinstance(cases, str) else cases:
        case = CASES[name]
        with tempfile.TemporaryDirectory() as folder:
            write_cases(Path(folder), case["shape"], case["patch"])
            made = loaders(case, Path(folder), device)
            found: dict[str, list[float]] = {kind: [] for kind in made}
            for _ in range(rounds):
                for kind, loader in made.items():
                    found[kind].append(rate(loader, case["batch"], seconds, wait_for(device)))
            made["nnU-Net"]._finish()  # type: ignore[attr-defined]
        ratios = {k: np.divide(v, found["nnU-Net"]) for k, v in found.items() if k != "nnU-Net"}
        rows[name] = {
            **case,
            "patches_per_second": {kind: round(float(np.median(values)), 1) for kind, values in found.items()},
            "ratio": {kind: round(float(np.median(values)), 2) for kind, values in ratios.items()},
            "ratio_of_rounds": {kind: values.round(2).tolist() for kind, values in ratios.items()},
        }
        print(name, json.dumps(rows[name]), flush=True)
    if output:
        how = {"command": " ".join(sys.argv), **versions(device), "rounds": rounds, "seconds": seconds}
        Path(output).write_text(json.dumps({**how, "cases": rows}, indent=2) + "\n")


def wait_for(device: torch.device) -> Callable[[], None]:
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


if __name__ == "__main__":
    fire.Fire(main)
