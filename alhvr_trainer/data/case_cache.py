"""Preprocessed cases as the loader on the training's device reads them: from its memory, the host's, or the disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset

Place = Literal["device", "host", "disk"]
SHARE_OF_HOST = 0.5
SHARE_OF_DEVICE = 0.25
"""Of the memory that is free when training starts: the networks need the rest."""
LOOKED_AT = 20
"""Cases whose sizes are read; those of the others are taken to be like them."""


@dataclass(frozen=True)
class Case:
    """A preprocessed case: tensors in memory, or nnU-Net's arrays on disk."""

    images: Any
    """(C, *S)."""
    segmentations: list[Any]
    """Of nnU-Net (label and mask, or mask alone), and of the previous stage: (1, *S) each."""
    class_locations: Any


class CaseCache:
    """The cases of an nnU-Net data set, each read once.

    Args:
        dataset: nnU-Net's.
        place: where the cases stay once they were read; "disk": nowhere.
        device: of the training.
    """

    def __init__(self, dataset: nnUNetBaseDataset, place: Place, device: torch.device) -> None:
        self.dataset = dataset
        self.place = place
        self._device = device if place == "device" else torch.device("cpu")
        self._cases: dict[str, Case] = {}

    def __getitem__(self, identifier: str) -> Case:
        if identifier not in self._cases:
            images, segmentation, previous, properties = self.dataset.load_case(identifier)
            segmentations = [each for each in (segmentation, previous) if each is not None]
            segmentations = [each if each.ndim == images.ndim else each[None] for each in segmentations]
            case = Case(images, segmentations, properties.get("class_locations"))
            if self.place == "disk":
                return case
            parts = [self._held(part) for part in segmentations]
            self._cases[identifier] = Case(self._held(images).float(), parts, case.class_locations)
        return self._cases[identifier]

    def _held(self, array: Any) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array[:])).to(self._device)


def bytes_of(datasets: Sequence[nnUNetBaseDataset]) -> int:
    """About how much memory the cases of the data sets take, judged from the first ones of each."""
    total = 0
    for dataset in datasets:
        looked_at = dataset.identifiers[:LOOKED_AT]
        sizes = [_bytes_of_case(dataset, case) for case in looked_at]
        total += sum(sizes) * len(dataset.identifiers) // max(1, len(sizes))
    return total


def _bytes_of_case(dataset: nnUNetBaseDataset, identifier: str) -> int:
    images, segmentation, previous, _ = dataset.load_case(identifier)
    parts = [part for part in (images, segmentation, previous) if part is not None]
    return sum(int(np.prod(part.shape)) * (4 if part is images else np.dtype(part.dtype).itemsize) for part in parts)


def chosen_place(wanted: Place | None, needed: int, device: torch.device, processes: int = 1) -> Place:
    """Where the cases stay: as wanted, else on the device, else on the host, else on disk, wherever they fit.

    Args:
        wanted: the setting ``cache``; None: decided here.
        needed: bytes, see :func:`bytes_of`.
        device: of the training.
        processes: of this machine that train together, each with cases of its own.
    """
    if wanted is not None:
        return "host" if wanted == "device" and device.type == "cpu" else wanted
    if device.type == "cuda" and needed <= SHARE_OF_DEVICE * torch.cuda.mem_get_info(device)[0]:
        return "device"
    return "host" if needed * processes <= SHARE_OF_HOST * free_host_memory() else "disk"


def free_host_memory() -> int:
    """Bytes that Linux calls available, within the limit of the control group (a cluster's job, a container)."""
    with open("/proc/meminfo") as file:
        kibibytes = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    free = kibibytes * 1024
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            with open(limit) as most, open(used) as now:
                free = min(free, int(most.read()) - int(now.read()))
        except (OSError, ValueError):  # no such control group, or "max": no limit
            continue
    return free
