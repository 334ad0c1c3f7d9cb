"""Will a volume fit? Estimated before anything is allocated."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from .input_error import InputError

GIB = 2**30
HALF, SINGLE = 2, 4  # bytes of a voxel
MARGIN = 0.9  # of what is free; the rest is for the network's own activations and the allocator's blocks


def logits_bytes(shape: Sequence[int], outputs: int, channels: int = 1, value: int = HALF) -> int:
    """Bytes of the sliding window's results: the image, logits of ``value`` bytes and the sum of the weights."""
    return math.prod(shape) * (SINGLE * channels + value * (outputs + 1))


def results_device(
    shape: Sequence[int],
    outputs: int,
    device: torch.device | str,
    channels: int = 1,
    value: int = HALF,
    free: int | None = None,
) -> torch.device:
    """Where to collect the results of the sliding window: on the GPU if they fit, else in main memory.

    Args:
        shape: voxels of the preprocessed volume per axis.
        outputs: channels that the network puts out.
        device: where the network runs.
        channels: of the image.
        value: bytes of one logit.
        free: bytes free on the GPU; default: asked of it.

    Example:
        >>> results_device((4000, 4000, 4000), 100, "cuda", free=80 * GIB)
        device(type='cpu')
    """
    device = torch.device(device)
    if device.type != "cuda":
        return device
    if free is None:
        free = torch.cuda.mem_get_info(device)[0]
    return device if logits_bytes(shape, outputs, channels, value) < MARGIN * free else torch.device("cpu")


def check_memory(
    shape: Sequence[int],
    original_shape: Sequence[int],
    outputs: int,
    channels: int = 1,
    available: int | None = None,
) -> None:
    """See that main memory holds a case: its image, its logits, and the logits on the image's own grid.

    Args:
        shape: voxels per axis as the network sees them.
        original_shape: voxels per axis as stored.
        available: bytes; default: what this machine or its container has left.

    Raises:
        InputError: it would not fit.

    Example:
        >>> check_memory((100, 100, 100), (100, 100, 100), outputs=3, available=GIB)
    """
    if available is None:
        available = available_memory()
    # resampling works in single precision and holds its input and its output
    needed = logits_bytes(shape, outputs, 2 * channels) + SINGLE * outputs * (
        math.prod(shape) + math.prod(original_shape)
    )
    if needed > available:
        size = " x ".join(str(int(voxels)) for voxels in original_shape)
        raise InputError(
            f"a volume of {size} voxels needs about {needed / GIB:.1f} GiB of memory for {outputs} channels of "
            f"results, {available / GIB:.1f} GiB are free: crop it, or use a machine with more memory"
        )


def available_memory() -> int:
    """Bytes that can still be used: the smaller one of what Linux reports and the container's limit."""
    limits = [_meminfo(), _container()]
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def _container() -> int | None:
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used, stat = (
            (folder / f"memory.{name}").read_text(encoding="ascii") for name in ("max", "current", "stat")
        )
        cached = dict(line.split() for line in stat.splitlines())["file"]  # given back when it is needed
        return None if limit.strip() == "max" else max(int(limit) - int(used) + int(cached), 0)
    except (OSError, ValueError, KeyError):
        return None
