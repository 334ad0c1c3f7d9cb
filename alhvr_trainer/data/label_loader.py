"""Patches of the label maps of preprocessed cases, without images: rotated, scaled and mirrored as nnU-Net does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from alhvr_trainer.augmentation.spatial import OUTSIDE, coordinates, cut, draw_affine, overlap, resample_labels
from alhvr_trainer.data.batches import NumberedLoader


@dataclass(frozen=True)
class Geometry:
    """How nnU-Net cuts, turns, scales and mirrors training patches."""

    cut_size: Sequence[int]
    """Of the patches before they are turned and scaled."""
    spatial: SpatialTransform
    """Of planes, if patches are flat or their slices are turned alike."""
    slice_by_slice: bool
    """nnU-Net's dummy 2D augmentation: the slices of a 3D patch are turned alike."""
    mirror_axes: tuple[int, ...]
    """Axes of the patch."""


class _LabelPatches(nnUNetDataLoader):
    """Cases and places are drawn as in nnU-Net's loader."""

    _data: Any
    patch_size: Sequence[int]
    final_patch_size: Sequence[int]
    patch_size_was_2d: bool

    def __init__(
        self,
        data: Any,
        batch_size: int,
        patch_size: Sequence[int],
        labels: LabelManager,
        geometry: Geometry,
        device: torch.device,
    ) -> None:
        super().__init__(data, batch_size, geometry.cut_size, patch_size, labels)
        self.geometry = geometry
        self._device = device
        ignore = [labels.ignore_label] if labels.has_ignore_label else []
        self._values = (OUTSIDE, *sorted([*labels.all_labels, *ignore]))

    def generate_train_batch(self) -> dict[str, Any]:
        """``labels``, (B, *S) int16 on the device, :data:`OUTSIDE` beyond the image; ``keys``, the cases."""
        identifiers = self.get_indices()
        large = torch.empty(len(identifiers), 1, *self.patch_size, dtype=torch.int16)
        for row, identifier in enumerate(identifiers):
            _, segmentation, _, properties = self._data.load_case(identifier)
            force_foreground = self.get_do_oversample(row)
            lower, _ = self.get_bbox(segmentation.shape[1:], force_foreground, properties["class_locations"])
            _cut_labels(segmentation, [int(start) for start in lower], large[row])
        affines = [draw_affine(self.geometry.spatial) for _ in identifiers]
        patches = self._mirrored(self._turned(large.to(self._device), affines))
        return {"labels": patches.squeeze(1) if self.patch_size_was_2d else patches, "keys": identifiers}

    def _turned(self, large: Tensor, affines: list[np.ndarray | None]) -> Tensor:
        """Patches of the final size, (B, *S)."""
        size, shape = tuple(self.final_patch_size), tuple(self.patch_size)
        starts = [whole // 2 - part // 2 for whole, part in zip(shape, size, strict=True)]
        within = (slice(None), *(slice(start, start + n) for start, n in zip(starts, size, strict=True)))
        patches = large.squeeze(1)[within].clone()
        turned = [row for row, affine in enumerate(affines) if affine is not None]
        if turned:
            flat = int(self.patch_size_was_2d or self.geometry.slice_by_slice)
            matrices = np.stack([affine for affine in affines if affine is not None])
            turns = torch.tensor(matrices, dtype=torch.float32, device=large.device)
            places = coordinates(turns, size[flat:], shape[flat:])
            rows = torch.tensor(turned, device=large.device)
            chosen = large.index_select(0, rows)
            made = resample_labels(chosen.flatten(1, 2) if flat else chosen, places, self._values)
            patches.index_copy_(0, rows, made.view(-1, *size))
        return patches

    def _mirrored(self, patches: Tensor) -> Tensor:
        first, rows = int(self.patch_size_was_2d), list(patches)
        for axis in self.geometry.mirror_axes:
            rows = [row.flip(axis + first) if np.random.uniform() < 0.5 else row for row in rows]
        return torch.stack(rows)


class LabelLoader(NumberedLoader, _LabelPatches):
    """Batches of label patches, each drawn from the seed and its number alone.

    Args:
        data: nnU-Net's data set of labeled cases, with ``draws``, see :class:`~alhvr_trainer.data.batches.Draws`.
        batch_size: patches.
        patch_size: of the plans.
        labels: nnU-Net's label manager.
        geometry: how patches are cut, turned, scaled and mirrored.
        device: where the latter happens, and where the patches are then.
    """


def _cut_labels(segmentation: Any, lower: Sequence[int], out: Tensor) -> None:
    """Write a patch of label 0 and above into ``out``, and :data:`OUTSIDE` where it reaches beyond the image.

    nnU-Net marks what it masked inside the image with -1 as well: that is background.
    """
    cut(segmentation, lower, out, OUTSIDE)
    low, high = overlap(lower, out.shape[1:], segmentation.shape[1:])
    inside = (slice(None), *(slice(a, b) for a, b in zip(low, high, strict=True)))
    out[inside].clamp_(min=0)
