"""How many CPU threads a training takes."""

from __future__ import annotations

import os

import torch


def respect_thread_limit(device: torch.device) -> None:
    """Train on the CPU with ``OMP_NUM_THREADS`` threads, if that is set: nnU-Net takes one per core regardless.

    With small networks one thread is often the quickest, as the data loader's processes keep the other cores busy.
    """
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if device.type == "cpu" and limit.isdigit() and int(limit) > 0:
        torch.set_num_threads(int(limit))
