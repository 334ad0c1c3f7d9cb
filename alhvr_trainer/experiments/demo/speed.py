"""How fast this machine is: the demo announces how long it will take."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from itertools import pairwise
from statistics import fmean

PROCESSES = 2
"""At once, as in training: one for the network, one for the loader. Alone, one may run much faster."""
REFERENCE_SECONDS = 4.8
"""What :func:`work` took, on average, on the two cores on which the seconds of the demo's steps were measured."""
STEPS = 80


def relative_time() -> float:
    """How many times as long as the reference this machine takes. In processes of their own: torch is slow to import.

    Example:
        >>> round(relative_time(), 1)     # doctest: +SKIP
        1.0
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "alhvr_trainer.experiments.demo.speed"]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)]
    return fmean(float(process.communicate()[0]) for process in running) / REFERENCE_SECONDS


def work() -> float:
    """Seconds of some training steps of a network of the demo's kind, on one thread."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    widths = (1, 16, 16, 32)
    layers = [
        layer
        for one, other in pairwise(widths)
        for layer in (nn.Conv2d(one, other, 3, padding=1), nn.InstanceNorm2d(other, affine=True), nn.LeakyReLU())
    ]
    network, images = nn.Sequential(*layers), torch.randn(8, 1, 96, 96)
    optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9)
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        optimizer.zero_grad()
        network(images).square().mean().backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    return STEPS * sorted(times)[STEPS // 4]  # steps that something else held up do not count


if __name__ == "__main__":
    print(work())
