"""Ways to find gamma's voxels, the least confident ones, among all: milliseconds on the CPU or a GPU::

python benchmarks/threshold.py --output benchmarks/results/threshold.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import fire
import numpy as np
import torch
from step_cost import timed, versions
from torch import Tensor

BINS = 2**16


def by_histogram(values: Tensor, count: int) -> Tensor:
    """The mean up to the width of a bin."""
    edges = torch.linspace(0, 1, BINS + 1, device=values.device)
    counts = torch.histc(values, BINS, 0, 1)
    last = torch.searchsorted(counts.cumsum(0), torch.tensor(float(count), device=values.device))
    below = values <= edges[last + 1]
    return (values * below).sum() / below.sum()


WAYS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "topk": lambda values, count: torch.topk(values, count, largest=False, sorted=False).values.mean(),
    "kthvalue": lambda values, count: values[values <= values.kthvalue(count).values].mean(),
    "sort": lambda values, count: values.sort().values[:count].mean(),
    "histogram": by_histogram,
    "NumPy's partition": lambda values, count: torch.as_tensor(np.partition(values.cpu(), count)[:count]).mean(),
}


def main(voxels: int = 8 * 256 * 224, share: float = 0.8, rounds: int = 30, output: str | None = None) -> None:
    """Print, and write as JSON, the median milliseconds of each way.

    Args:
        voxels: their number.
        share: of them that are averaged, beta.
        rounds: in each, every way runs once.
        output: JSON file.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    values = torch.rand(voxels, generator=torch.Generator().manual_seed(0)).to(device)
    times = [
        [timed(partial(way, values, int(share * voxels)), device) for way in WAYS.values()]  # type: ignore[arg-type]
        for _ in range(rounds + 1)
    ]
    found = dict(zip(WAYS, (1000 * np.median(times[1:], axis=0)).round(2).tolist(), strict=True))
    print(json.dumps(found))
    if output:
        how = {"command": " ".join(sys.argv), **versions(device), "voxels": voxels, "share": share}
        Path(output).write_text(json.dumps({**how, "milliseconds": found}, indent=2) + "\n")


if __name__ == "__main__":
    fire.Fire(main)
