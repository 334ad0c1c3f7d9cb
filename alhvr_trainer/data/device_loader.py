"""nnU-Net's loader for augmentation on the training's device: one process, whole batches, cases in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from alhvr_trainer.augmentation.patches import Patches
from alhvr_trainer.augmentation.pipeline import BatchedAugmentation
from alhvr_trainer.augmentation.spatial import (
    OUTSIDE,
    coordinates,
    cut,
    draw_affine,
    overlap,
    resample_box,
    resample_images,
    resample_labels,
)
from alhvr_trainer.data.batches import NumberedLoader
from alhvr_trainer.data.case_cache import Case, CaseCache, bytes_of, chosen_place
from alhvr_trainer.data.loader import LabeledAndUnlabeled, SemiSupervisedDataLoader


class OnDevice:
    """How batches are made on the training's device: a trainer leaves it in ``data.on_device`` for the loader.

    Args:
        device: of the training.
        cache: the setting; None: chosen by free memory.
        processes: of this machine that train together.
        log: gets a line on what was chosen.
    """

    def __init__(self, device: torch.device, cache: Any, processes: int, log: Callable[[str], None]) -> None:
        self.device = device
        self.cache = cache
        self.processes = processes
        self.log = log

    def loader(self, data: Any, *args: Any, **kwargs: Any) -> DeviceLoader:
        """In place of nnU-Net's loader of training data."""
        kind = SemiSupervisedDeviceLoader if isinstance(data, LabeledAndUnlabeled) else SupervisedDeviceLoader
        return kind(data, *args, **kwargs)


class DeviceLoader(nnUNetDataLoader):
    """Patches of cases in memory, cut, rotated, scaled and augmented as whole batches on the training's device.

    Cases and places are drawn as in nnU-Net's loader.
    """

    _data: Any
    patch_size: Sequence[int]
    final_patch_size: Sequence[int]
    patch_size_was_2d: bool
    get_do_oversample: Callable[[int], bool]

    def __init__(
        self, data: Any, batch_size: int, patch_size: Any, final_patch_size: Any, labels: LabelManager, **kwargs: Any
    ) -> None:
        super().__init__(data, batch_size, patch_size, final_patch_size, labels, **kwargs)
        self._unlabeled_too = isinstance(data, LabeledAndUnlabeled)
        self._labeled = data.labeled_batch_size if self._unlabeled_too else batch_size
        self._device = data.on_device.device
        self._generator = torch.Generator(self._device)
        self._values = (OUTSIDE, *sorted({0, *labels.all_labels, *_ignore(labels)}))
        self.augment = BatchedAugmentation(self.transforms)
        self._cases = self._caches(data.on_device)

    def _caches(self, how: OnDevice) -> list[CaseCache]:
        parts = [self._data.labeled, self._data.unlabeled] if self._unlabeled_too else [self._data]
        needed = bytes_of(parts)
        place = chosen_place(how.cache, needed, how.device, how.processes)
        on_cpu = [f"; {name} runs on the CPU, sample by sample" for name in self.augment.host_steps]
        how.log(f"ALHVR: augmentation on {how.device}, cases on {place} ({needed / 2**20:.0f} MiB){''.join(on_cpu)}")
        return [CaseCache(part, place, how.device) for part in parts]

    def generate_train_batch(self) -> dict[str, Any]:
        """As nnU-Net's, on the training's device; ``target`` as :class:`BatchedAugmentation` gives it."""
        identifiers = self.get_indices()
        self._generator.manual_seed(int(torch.randint(2**62, ())))
        cases = [self._cases[number >= self._labeled][identifier] for number, identifier in enumerate(identifiers)]
        corners, affines = [], []
        for number, (identifier, case) in enumerate(zip(identifiers, cases, strict=True)):
            locations = self._locations(identifier, number, case)
            lower, _ = self.get_bbox(case.images.shape[1:], self.get_do_oversample(number), locations)
            corners.append([int(value) for value in lower])
            affines.append(None if self.augment.spatial is None else draw_affine(self.augment.spatial))
        data, target = self.augment(self._patches(cases, corners, affines), self._generator)
        return {"data": data, "target": target, "keys": identifiers}

    def _locations(self, identifier: str, number: int, case: Case) -> Any:
        """Where nnU-Net may lay a patch around foreground."""
        if number < self._labeled:
            return case.class_locations
        foreground = self._data.foreground
        return foreground.voxels(identifier, self._data.batch) if foreground else None

    def _patches(self, cases: list[Case], corners: list[list[int]], affines: list[np.ndarray | None]) -> Patches:
        """Patches of the final size: those that are turned or scaled are cut larger, the others as they are."""
        size, initial = tuple(self.final_patch_size), tuple(self.patch_size)
        turned = [number for number, affine in enumerate(affines) if affine is not None]
        straight = [number for number, affine in enumerate(affines) if affine is None]
        images, segmentation = self._empty(len(cases), cases[0], size)
        margin = [large // 2 - small // 2 for large, small in zip(initial, size, strict=True)]
        for row in straight:
            corner = [start + shift for start, shift in zip(corners[row], margin, strict=True)]
            self._cut(cases[row], row, corner, images[row], segmentation[row])
        images, segmentation = self._to_device(images), self._to_device(segmentation)
        if turned:
            large, large_segmentation = self._empty(len(turned), cases[0], initial)
            boxes = []
            for place, row in enumerate(turned):
                boxes.append(self._cut(cases[row], row, corners[row], large[place], large_segmentation[place]))
            matrices = torch.tensor(np.stack([affine for affine in affines if affine is not None]), dtype=torch.float32)
            labeled = sum(row < self._labeled for row in turned)
            large, large_segmentation = self._to_device(large), self._to_device(large_segmentation)
            rows = self._to_device(torch.tensor(turned))
            turned_images, turned_segmentation = self._resampled(large, large_segmentation, matrices, labeled, boxes)
            images.index_copy_(0, rows, turned_images)
            segmentation.index_copy_(0, rows, turned_segmentation)
        if self.patch_size_was_2d:
            images, segmentation = images.squeeze(2), segmentation.squeeze(2)
        return Patches(images, segmentation, self._labeled)

    def _empty(self, samples: int, case: Case, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Where patches are gathered: where the cases are, to be sent all at once."""
        on_device = isinstance(case.images, Tensor) and case.images.device.type != "cpu"
        options: dict[str, Any] = {"device": self._device if on_device else "cpu"}
        options["pin_memory"] = self._device.type == "cuda" and not on_device
        channels = len(case.segmentations) + self._unlabeled_too
        images = torch.empty(samples, len(case.images), *size, **options)
        return images, torch.empty(samples, channels, *size, dtype=torch.int16, **options)

    def _cut(self, case: Case, row: int, corner: list[int], image: Tensor, segmentation: Tensor) -> Any:
        """Fill a patch; where it lies inside the image, see :func:`overlap`."""
        cut(case.images, corner, image, 0)
        for channel, part in enumerate(case.segmentations):
            cut(part, corner, segmentation[channel : channel + 1], OUTSIDE)
        if row >= self._labeled:  # what nnU-Net masked may pass, a label never
            segmentation[0].clamp_(max=0)
        low, high = overlap(corner, image.shape[1:], case.images.shape[1:])
        if self._unlabeled_too:  # the validity mask
            segmentation[-1].fill_(OUTSIDE)
            segmentation[-1][tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = 1
        return low, high

    def _resampled(
        self, images: Tensor, segmentation: Tensor, affines: Tensor, labeled: int, boxes: list[Any]
    ) -> tuple[Tensor, Tensor]:
        """Turned and scaled patches of the final size; the first ``labeled`` of them have a label."""
        size, shape = tuple(self.final_patch_size), tuple(images.shape[2:])
        flat = self.patch_size_was_2d or self.augment.slice_by_slice
        places = coordinates(self._to_device(affines), size[flat:], shape[flat:])

        def folded(x: Tensor) -> Tensor:
            return x.flatten(1, 2) if flat else x  # slices become channels, for all are turned alike

        def labels(channel: int, part: slice, values: Sequence[int]) -> Tensor:
            made = resample_labels(folded(segmentation[part, channel].unsqueeze(1)), [p[part] for p in places], values)
            return made.view(-1, 1, *size)

        turned = resample_images(folded(images), places).view(len(images), -1, *size)
        # an unlabeled sample has no label but what nnU-Net masked
        masked = segmentation.new_zeros(len(images) - labeled, 1, *size)
        if self.augment.needs_mask:
            masked = labels(0, slice(labeled, None), (OUTSIDE, 0))
        parts = [torch.cat([labels(0, slice(labeled), self._values), masked])]
        parts += [labels(1, slice(None), self._values)] if segmentation.shape[1] > 1 + self._unlabeled_too else []
        if self._unlabeled_too:
            low, high = self._to_device(torch.tensor(boxes)).unbind(1)
            inside = resample_box(low[:, flat:], high[:, flat:], places)
            if flat:  # slices before and behind the image
                slices = torch.arange(size[0], device=images.device).view(1, -1, 1, 1)
                within = (slices >= low[:, 0].view(-1, 1, 1, 1)) & (slices < high[:, 0].view(-1, 1, 1, 1))
                inside = inside.unsqueeze(1) & within
            whole = inside.unsqueeze(1)
            parts.append(torch.where(whole, 1, OUTSIDE).to(segmentation.dtype))
        return turned, torch.cat(parts, dim=1)

    def _to_device(self, x: Tensor) -> Tensor:
        """Without waiting for what the device still computes: that takes pinned memory."""
        pinned = x.pin_memory() if self._device.type == "cuda" and x.device.type == "cpu" else x
        return pinned.to(self._device, non_blocking=True)


def _ignore(labels: LabelManager) -> list[int]:
    return [labels.ignore_label] if labels.has_ignore_label else []


class SupervisedDeviceLoader(NumberedLoader, DeviceLoader):
    """Labeled samples alone."""


class SemiSupervisedDeviceLoader(SemiSupervisedDataLoader, DeviceLoader):
    """Labeled samples and, after them, unlabeled ones."""
