"""Peak memory of a training step: what the planner predicts, against what a step takes; and what it makes of a target.

python benchmarks/memory.py measure --output benchmarks/results/memory.json
python benchmarks/memory.py propose --output benchmarks/results/memory_targets.json
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import fire
import numpy as np
import SimpleITK as sitk
import torch
from step_cost import _status_bytes, versions

from alhvr_trainer.losses import ALHVRLoss, FeaturePerturbation
from alhvr_trainer.planning.memory import network_of, nnunet_loss, output_shapes, predicted_peak, typical_architecture
from alhvr_trainer.trainers.two_passes import TwoPass

CASES: dict[str, dict[str, Any]] = {
    "2d": {"patch": (160, 160), "labeled": 2, "unlabeled": 2, "classes": 4},
    "2d, 15 classes": {"patch": (160, 160), "labeled": 2, "unlabeled": 2, "classes": 15},
    "2d, larger": {"patch": (256, 224), "labeled": 4, "unlabeled": 4, "classes": 4},
    "2d, ResEnc M": {"patch": (160, 160), "labeled": 2, "unlabeled": 2, "classes": 4, "residual": True},
    "3d": {"patch": (48, 64, 64), "labeled": 1, "unlabeled": 1, "classes": 4},
    "3d, 15 classes": {"patch": (48, 64, 64), "labeled": 1, "unlabeled": 1, "classes": 15},
    "3d, larger": {"patch": (64, 96, 96), "labeled": 1, "unlabeled": 1, "classes": 2},
    "3d, ResEnc M": {"patch": (48, 64, 64), "labeled": 1, "unlabeled": 1, "classes": 4, "residual": True},
}
DATASETS = {  # spacing in mm and median shape, as nnU-Net orders the axes
    "ACDC": ((10.0, 1.5625, 1.5625), (9, 237, 208), ("2d", "3d_fullres")),
    "BraTS": ((1.0, 1.0, 1.0), (138, 170, 138), ("2d", "3d_fullres")),
}
TARGETS = (8, 11, 24, 40, 80)


TINY: dict[str, dict[str, Any]] = {
    "2d": {"patch": (32, 32), "labeled": 1, "unlabeled": 1, "classes": 2},
    "3d": {"patch": (32, 32, 32), "labeled": 1, "unlabeled": 1, "classes": 2},
}


def steps(name: str) -> None:
    """Print by how many bytes training steps raise this process's peak resident set size.

    A tiny training comes first, for libraries take some 200 MiB when they are first used.
    """
    train(TINY[name[:2]])
    before = _status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew
    train(CASES[name])
    print(_status_bytes("VmHWM") - before)


def train(case: dict[str, Any], number: int = 2) -> None:
    """Training steps of ALHVR, as its trainer takes them."""
    architecture, labeled = typical_architecture(len(case["patch"]), case.get("residual", False)), case["labeled"]
    networks = [network_of(architecture, 1, case["classes"]) for _ in range(2)]
    runs = [TwoPass(network) for network in networks]
    perturbations = [FeaturePerturbation(seed) for seed in (0, 1)]
    optimizers = [torch.optim.SGD(n.parameters(), 1e-2, momentum=0.99, nesterov=True) for n in networks]
    data = torch.randn(labeled + case["unlabeled"], 1, *case["patch"])
    labels = [torch.zeros(labeled, 1, *shape) for shape in output_shapes(architecture, case["patch"])]
    loss = nnunet_loss(len(labels))
    for _ in range(number):
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        found = [run(data, labeled, p) for run, p in zip(runs, perturbations, strict=True)]
        total = sum(loss([output[:labeled] for output in outputs], labels) for outputs, _ in found)
        total = total + ALHVRLoss()(*(passes for _, passes in found))
        del found
        total.backward()
        for network, optimizer in zip(networks, optimizers, strict=True):
            torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
            optimizer.step()


def measure(cases: str = ",".join(CASES), output: str | None = None) -> None:
    """Predicted and measured peaks on the CPU, in float32; each measured in a process of its own.

    Args:
        cases: names out of CASES, separated by semicolons.
        output: JSON file.
    """
    rows = {}
    for name in CASES if cases == ",".join(CASES) else cases.split(";"):
        case = CASES[name]
        architecture = typical_architecture(len(case["patch"]), case.get("residual", False))
        samples = case["labeled"], case["unlabeled"]
        predicted = predicted_peak(architecture, case["patch"], 1, case["classes"], *samples, half_precision=False)
        # glibc would keep freed tensors; mapped blocks go back at once
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        command = [sys.executable, __file__, "steps", "--name", name]
        printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        measured = int(printed.split()[-1])
        ratio = round(predicted / measured, 3)
        rows[name] = {**case, "predicted_mib": predicted >> 20, "measured_mib": measured >> 20, "ratio": ratio}
        print(name, json.dumps(rows[name]), flush=True)
    write(output, {"cases": rows})


def propose(output: str | None = None) -> None:
    """What ALHVRPlanner and nnU-Net's planner propose for ACDC's and BraTS's sizes at several memory targets.

    Args:
        output: JSON file.
    """
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for name in DATASETS for row in proposals(Path(folder) / name, name)]
    write(output, {"proposals": rows})


def proposals(folder: Path, name: str) -> list[dict[str, Any]]:
    spacing, shape, configurations = DATASETS[name]
    make_dataset(folder)
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    from alhvr_trainer.planning.planner import ALHVRPlanner, ALHVRPlannerResEncM

    rows = []
    for configuration in configurations:
        flat = configuration == "2d"
        arguments = (np.array(spacing[flat:]), np.array(shape[flat:]), configuration, 1e12)
        for target in TARGETS:
            for planner in (ALHVRPlanner, ALHVRPlannerResEncM, ExperimentPlanner):  # ours makes the fingerprint
                chosen = planner("Dataset999_Sizes", target)
                made = chosen.get_plans_for_configuration(*arguments, {})
                if planner is not ExperimentPlanner:
                    chosen.fit_batch(made)
                rows.append(
                    {
                        "data set": name,
                        "configuration": configuration,
                        "target_gb": target,
                        "planner": planner.__name__,
                        "patch_size": [int(n) for n in made["patch_size"]],
                        "batch_size": int(made["batch_size"]),
                        "predicted_gib": round(peak_of(made, planner is not ExperimentPlanner) / 2**30, 2),
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
    return rows


def peak_of(plan: dict[str, Any], co_training: bool) -> int:
    batch = int(plan["batch_size"])
    unlabeled = batch // 2 if co_training else 0
    patch = [int(n) for n in plan["patch_size"]]
    return predicted_peak(plan["architecture"], patch, 1, 4, batch - unlabeled, unlabeled, co_training)


def make_dataset(folder: Path) -> None:
    """A data set for the planners' sake: they ask for one, though spacing and shape are given."""
    for variable in ("raw", "preprocessed", "results"):
        (folder / variable).mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{variable}"] = str(folder / variable)
    raw = folder / "raw" / "Dataset999_Sizes"
    for part in ("imagesTr", "labelsTr", "imagesTr_unlabeled"):
        (raw / part).mkdir(parents=True)
    voxels = np.random.default_rng(0).normal(size=(8, 32, 32)).astype(np.float32)
    for case, part in (("a", "imagesTr"), ("b", "imagesTr"), ("c", "imagesTr_unlabeled")):
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(raw / part / f"{case}_0000.nii.gz"))
        label = sitk.GetImageFromArray((voxels > 1).astype(np.uint8))
        if part == "imagesTr":
            sitk.WriteImage(label, str(raw / "labelsTr" / f"{case}.nii.gz"))
    labels = {"background": 0, "RV": 1, "MLV": 2, "LVC": 3}
    content = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 2, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(content))


def write(output: str | None, content: dict[str, Any]) -> None:
    if output:
        command = {"command": " ".join(sys.argv), **versions(torch.device("cpu"))}
        Path(output).write_text(json.dumps({**command, **content}, indent=2) + "\n")


if __name__ == "__main__":
    fire.Fire({"measure": measure, "propose": propose, "steps": steps})
