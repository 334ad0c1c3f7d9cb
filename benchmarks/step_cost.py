"""Time and peak memory of a training step of ALHVR against its floor or against nnU-Net's, in one process.

The floor is what any method of two networks with a second decoder pass must do: clean pass on L+U samples, perturbed
pass on U, a trivial loss, backward, optimizer. nnU-Net's step is one network's, on L+U samples, with the same trivial
loss. The two alternate step by step, so that drifts of the machine hit both alike; the ratio of the medians is quoted.

    python benchmarks/step_cost.py --output benchmarks/results/step_cost.json
    python benchmarks/step_cost.py --against nnunet --output benchmarks/results/step_cost_nnunet.json

On a GPU, ``--graph`` replays each step as a CUDA graph, as the setting ``cuda_graph`` does; nnU-Net's step is compiled,
as nnU-Net has it there.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from alhvr_trainer.losses import ALHVRLoss, FeaturePerturbation
from alhvr_trainer.trainers.two_passes import TwoPass

CASES: dict[str, dict[str, Any]] = {
    "2d": {"patch": (256, 256), "features": (16, 32, 64, 128, 256), "labeled": 8, "unlabeled": 8},
    "3d": {"patch": (96, 96, 96), "features": (16, 32, 64, 128, 256), "labeled": 2, "unlabeled": 2},
    "2d_small": {"patch": (56, 40), "features": (16, 32, 64, 128), "labeled": 16, "unlabeled": 16},
    "2d_acdc": {"patch": (256, 224), "features": (32, 64, 128, 256, 512, 512), "labeled": 8, "unlabeled": 8},
    "3d_small": {"patch": (40, 56, 40), "features": (16, 32, 64, 128), "labeled": 2, "unlabeled": 2},
}
CLASSES = 4
MIN_PAIRS = 6


def build(case: dict[str, Any], seed: int) -> torch.nn.Module:
    """nnU-Net's PlainConvUNet as its plans would give it, without deep supervision (the floor's loss is trivial)."""
    dimensions, stages = len(case["patch"]), len(case["features"])
    torch.manual_seed(seed)
    return get_network_from_plans(
        "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        {
            "n_stages": stages,
            "features_per_stage": list(case["features"]),
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": [[3] * dimensions] * stages,
            "strides": [[1] * dimensions] + [[2] * dimensions] * (stages - 1),
            "n_conv_per_stage": [2] * stages,
            "n_conv_per_stage_decoder": [2] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        ("conv_op", "norm_op", "dropout_op", "nonlin"),
        1,
        CLASSES,
        allow_init=True,
        deep_supervision=False,
    )


class Step:
    """One training step: "alhvr", "floor" (ALHVR without its terms) or "nnunet" (one network, all samples alike).

    Args:
        case: one of CASES.
        device: CUDA or CPU.
        graph: whether the step is captured once and replayed then.
        compiled: whether networks and terms are, too.
        precision: of the networks, under autocast on CUDA.
    """

    def __init__(
        self,
        case: dict[str, Any],
        device: torch.device,
        graph: bool = False,
        compiled: bool = False,
        precision: torch.dtype = torch.float32,
    ) -> None:
        self.graph, self.graphs = graph, dict[str, Any]()
        self.autocast = partial(torch.autocast, device.type, precision, precision != torch.float32)
        self.labeled = case["labeled"]
        self.networks = [build(case, seed).to(device) for seed in (0, 1)]
        self.two_passes = [TwoPass(network, compiled=compiled) for network in self.networks]
        self.terms = torch.compile(ALHVRLoss(), dynamic=False) if compiled else ALHVRLoss()
        self.optimizers = [torch.optim.SGD(n.parameters(), 1e-2, momentum=0.99, nesterov=True) for n in self.networks]
        self.perturbations = [FeaturePerturbation(seed, device) for seed in (0, 1)]
        self.data = torch.randn(self.labeled + case["unlabeled"], 1, *case["patch"], device=device)
        self.nnunet = torch.compile(self.networks[0]) if device.type == "cuda" else self.networks[0]
        if device.type == "cuda":
            for optimizer in self.optimizers:
                optimizer.param_groups[0].update(fused=True, foreach=False)

    def __call__(self, kind: str) -> None:
        if not self.graph or kind == "nnunet":
            self._eagerly(kind)
            return
        if kind not in self.graphs:
            generators = [perturbation.generator for perturbation in self.perturbations]
            self.graphs[kind] = captured(partial(self._eagerly, kind), generators)
        self.graphs[kind]()

    def _eagerly(self, kind: str) -> None:
        optimizers = self.optimizers[:1] if kind == "nnunet" else self.optimizers
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self.nnunet(self.data).mean() if kind == "nnunet" else self._co_training(kind == "alhvr")
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    def _co_training(self, with_terms: bool) -> torch.Tensor:
        found = [run(self.data, self.labeled, p) for run, p in zip(self.two_passes, self.perturbations, strict=True)]
        loss = torch.stack([logits.mean() + passes.perturbed_logits.mean() for logits, passes in found]).sum()
        return loss + 0.1 * self.terms(*(passes for _, passes in found)) if with_terms else loss


def captured(step: Callable[[], None], generators: Sequence[torch.Generator] = ()) -> Callable[[], None]:
    """A step as a CUDA graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def timed(step: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def timed_pairs(step: Step, against: str, seconds: float, device: torch.device) -> np.ndarray:
    """Seconds of the other step and of ours, one pair per row; the two kinds alternate in going first."""
    rows: list[tuple[float, float]] = []
    end = np.inf
    while len(rows) <= MIN_PAIRS or time.perf_counter() < end:
        order = (against, "alhvr") if len(rows) % 2 else ("alhvr", against)
        elapsed = {kind: timed(partial(step, kind), device) for kind in order}
        rows.append((elapsed[against], elapsed["alhvr"]))
        if len(rows) == 1:
            end = time.perf_counter() + seconds
    return np.array(rows[1:])


def peak_memory(name: str, kind: str, device: torch.device, steps: int = 3) -> int:
    """Bytes: CUDA's own count, or on the CPU the growth of a fresh process (Linux)."""
    if device.type == "cuda":
        step = Step(CASES[name], device)
        step(kind)
        torch.cuda.reset_peak_memory_stats()
        step(kind)
        return torch.cuda.max_memory_allocated()
    words = ["memory", "--name", name, "--kind", kind, "--steps", str(steps)]
    # glibc would keep freed tensors, differently from run to run; mapped blocks go back at once
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, *words]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.split()[-1])


def memory(name: str, kind: str, steps: int = 3) -> int:
    """Print by how many bytes ``steps`` training steps on the CPU raise this process's peak resident set size."""
    step = Step(CASES[name], torch.device("cpu"))
    Path("/proc/self/clear_refs").write_text("5")  # Linux: start the peak anew, importing may have been higher
    before = _status_bytes("VmRSS")
    for _ in range(steps):
        step(kind)
    return _status_bytes("VmHWM") - before


def _status_bytes(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def compare(
    cases: str = "2d_small,3d_small,2d,3d",
    against: str = "floor",
    seconds: float = 60,
    threads: int = 0,
    graph: bool = False,
    compiled: bool = False,
    precision: str = "float32",
    output: str | None = None,
) -> None:
    """Print, and write as JSON, ratios of our step to another.

    Args:
        cases: names out of CASES, comma-separated.
        against: "floor" or "nnunet".
        seconds: how long to time each case, after a pair of steps that is not counted; at least MIN_PAIRS pairs.
        threads: CPU threads (0: torch's default).
        graph: replay CUDA graphs; memory is that of the steps as they are.
        compiled: compile networks and terms; on a GPU, nnU-Net's network always is.
        precision: "float32" or "bfloat16".
        output: JSON file.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if threads:
        torch.set_num_threads(threads)
    rows = {}
    for name in cases.split(",") if isinstance(cases, str) else cases:
        step = Step(CASES[name], device, graph, compiled, getattr(torch, precision))
        pairs = timed_pairs(step, against, seconds, device)
        del step
        other, ours = np.median(pairs, axis=0)
        memory_other, memory_ours = (peak_memory(name, kind, device) for kind in (against, "alhvr"))
        rows[name] = {
            **CASES[name],
            "pairs": len(pairs),
            f"seconds_{against}": round(float(other), 4),
            "seconds_alhvr": round(float(ours), 4),
            "time_ratio": round(float(ours / other), 3),
            "time_ratio_quartiles": np.percentile(pairs[:, 1] / pairs[:, 0], (25, 50, 75)).round(3).tolist(),
            f"peak_mib_{against}": memory_other >> 20,
            "peak_mib_alhvr": memory_ours >> 20,
            "memory_ratio": round(memory_ours / memory_other, 3),
        }
        print(name, json.dumps(rows[name]), flush=True)
    if output:
        how = {"command": " ".join(sys.argv), **versions(device), "precision": precision}
        Path(output).write_text(json.dumps({**how, "cases": rows}, indent=2) + "\n")


def versions(device: torch.device) -> dict[str, Any]:
    """What a reader needs to judge the numbers."""
    from importlib.metadata import version

    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return {
        "device": name,
        "machine": platform.machine(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "nnunetv2", "numpy")},
    }


if __name__ == "__main__":
    fire.Fire({"compare": compare, "memory": memory}) if len(sys.argv) > 1 and sys.argv[1] == "memory" else fire.Fire(
        compare
    )
