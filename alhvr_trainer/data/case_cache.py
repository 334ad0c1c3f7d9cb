"""Preprocessed cases as the loader on the training's device reads them: from its memory, the host's, or the disk."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
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
    """Bytes that this process may still take: what the machine has available, within the limits of its control groups.

    A container or a job of a cluster has such limits.
    """
    return min([psutil.virtual_memory().available, *map(_free_in_group, _control_groups())])


def _control_groups(listing: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[Path]:
    """Folders of this process's control groups of memory and of the groups around them; none but on Linux."""
    lines = listing.read_text().splitlines() if listing.is_file() else []
    for _, controllers, place in (line.split(":", 2) for line in lines):
        if controllers in ("", "memory"):  # version 2 has one group for all, version 1 one of its own
            top = root / controllers
            folder = top / place.lstrip("/")
            yield from (each for each in (folder, *folder.parents) if each.is_relative_to(top))


def _free_in_group(folder: Path) -> float:
    """Bytes up to the limit of a control group; what the files cached for it take can be had back."""
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with suppress(OSError, ValueError, KeyError):  # no such group, or "max": no limit
            most, now = (int((folder / name).read_text()) for name in (limit, used))
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            return most - now + int(statistics[cached])
    return math.inf
