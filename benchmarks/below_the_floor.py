"""Ways to run two networks and their second decoder pass with fewer launches, against one after the other.

Each does the work of step_cost.py's floor: clean pass on L+U samples, perturbed pass on U, backward, optimizer step.

    python benchmarks/below_the_floor.py --output benchmarks/results/below_the_floor.json
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
from step_cost import CASES, build, captured, timed, versions
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

FACTOR = 0.9
"""The perturbation: what it is does not matter here."""


class TwoCalls(nn.Module):
    """One network: decoder on all samples, then on the perturbed features of the unlabeled ones."""

    def __init__(self, network: Any, labeled: int) -> None:
        super().__init__()
        self.network, self.labeled = network, labeled

    def forward(self, data: Tensor) -> Tensor:
        skips = self.network.encoder(data)
        clean, perturbed = self.decoded(skips, [skip[self.labeled :] * FACTOR for skip in skips])
        return clean.mean() + perturbed.mean()

    def decoded(self, skips: list[Tensor], perturbed: list[Tensor]) -> tuple[Tensor, Tensor]:
        return self.network.decoder(skips), self.network.decoder(perturbed)


class OneCall(TwoCalls):
    """Decoder once, on both."""

    def decoded(self, skips: list[Tensor], perturbed: list[Tensor]) -> tuple[Tensor, Tensor]:
        found = self.network.decoder([torch.cat(pair) for pair in zip(skips, perturbed, strict=True)])
        return found[: len(skips[0])], found[len(skips[0]) :]


def one_after_the_other(models: list[nn.Module], data: Tensor) -> Callable[[], None]:
    """A step of both networks, each called for itself."""
    return _step([p for model in models for p in model.parameters()], lambda: sum(model(data) for model in models))


def two_streams(models: list[nn.Module], data: Tensor) -> Callable[[], None]:
    """The second network on a CUDA stream of its own."""
    side = torch.cuda.Stream()

    def loss() -> Tensor:
        here = torch.cuda.current_stream()
        side.wait_stream(here)
        with torch.cuda.stream(side):
            second = models[1](data)
        first = models[0](data)
        here.wait_stream(side)
        return first + second

    return _step([p for model in models for p in model.parameters()], loss)


def stacked(models: list[nn.Module], data: Tensor) -> Callable[[], None]:
    """Equal layers as one: vmap over stacked parameters, which makes grouped convolutions."""
    parameters, buffers = stack_module_state(models)  # type: ignore[arg-type]

    def one(weights: Any, rest: Any) -> Tensor:
        return functional_call(models[0], (weights, rest), (data,))

    return _step(list(parameters.values()), lambda: torch.vmap(one)(parameters, buffers).sum())


def _step(parameters: list[Tensor], loss: Callable[[], Any]) -> Callable[[], None]:
    on_gpu = parameters[0].is_cuda
    optimizer = torch.optim.SGD(parameters, 1e-3, momentum=0.99, nesterov=True, fused=on_gpu, foreach=not on_gpu)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return step


WAYS: dict[str, tuple[type[TwoCalls], Callable[..., Callable[[], None]]]] = {
    "one after the other": (TwoCalls, one_after_the_other),
    "one decoder call": (OneCall, one_after_the_other),
    "stacked networks": (TwoCalls, stacked),
    "stacked networks, one decoder call": (OneCall, stacked),
    "two streams": (TwoCalls, two_streams),
}


def main(
    cases: str = "2d_small,3d_small,2d", seconds: float = 30, graph: bool = False, output: str | None = None
) -> None:
    """Print, and write as JSON, seconds per step of each way and its ratio to the first.

    Args:
        cases: names out of step_cost.CASES, comma-separated.
        seconds: of timing for each case; the ways take turns.
        graph: replay CUDA graphs.
        output: JSON file.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ways = {name: way for name, way in WAYS.items() if device.type == "cuda" or way[1] is not two_streams}
    rows = {}
    for name in cases.split(",") if isinstance(cases, str) else cases:
        case = CASES[name]
        data = torch.randn(case["labeled"] + case["unlabeled"], 1, *case["patch"], device=device)
        steps, memory = {}, {}
        for way, (kind, make) in ways.items():
            step = make([kind(build(case, seed).to(device), case["labeled"]) for seed in (0, 1)], data)
            step()
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                step()
                memory[way] = (torch.cuda.max_memory_allocated() - before) >> 20
            steps[way] = captured(step) if graph else step
        times: list[list[float]] = []
        end = time.perf_counter() + seconds
        while len(times) < 5 or time.perf_counter() < end:
            times.append([timed(step, device) for step in steps.values()])
        median = np.median(times, axis=0)
        rows[name] = {
            **case,
            "rounds": len(times),
            "seconds": dict(zip(steps, median.round(4).tolist(), strict=True)),
            "ratio": dict(zip(steps, (median / median[0]).round(3).tolist(), strict=True)),
            "mib_of_a_step": memory,
        }
        print(name, json.dumps(rows[name]), flush=True)
    if output:
        how = {"command": " ".join(sys.argv), **versions(device), "graph": graph}
        Path(output).write_text(json.dumps({**how, "cases": rows}, indent=2) + "\n")


if __name__ == "__main__":
    fire.Fire(main)
