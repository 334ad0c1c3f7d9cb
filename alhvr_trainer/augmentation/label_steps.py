"""nnU-Net's transforms of segmentations, and of images and segmentations together, as steps of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTransform
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform
from torch import Tensor
from torch.nn.functional import interpolate

from alhvr_trainer.augmentation.draws import happens
from alhvr_trainer.augmentation.patches import Patches, Step, change_rows, constant
from alhvr_trainer.augmentation.spatial import OUTSIDE


def label_step(transform: BasicTransform) -> Step | None:
    """The batched form of a transform that touches segmentations; None: there is none."""
    make = _STEPS.get(type(transform))
    return None if make is None else make(transform)


def downsampled(labels: Tensor, scales: Sequence[Any]) -> list[Tensor]:
    """``DownsampleSegForDSTransform``: the nearest voxel's label at each resolution of deep supervision.

    Args:
        labels: (B, C, *S).
        scales: one number per axis for each resolution.
    """
    results = []
    for scale in scales:
        factors = scale if isinstance(scale, (tuple, list)) else [scale] * (labels.ndim - 2)
        made = labels
        for axis, factor in enumerate(factors, start=2):
            made = made if factor == 1 else made.index_select(axis, _nearest(labels.shape[axis], factor, labels.device))
        results.append(made)
    return results


@lru_cache(maxsize=64)
def _nearest(size: int, factor: float, device: torch.device) -> Tensor:
    """Voxels that torch's "nearest-exact" interpolation takes."""
    places = torch.arange(size, dtype=torch.float32)[None, None]
    return interpolate(places, round(size * factor), mode="nearest-exact")[0, 0].long().to(device)


def _mirror(t: MirrorTransform) -> Step:
    def step(patches: Patches, generator: torch.Generator) -> Patches:
        images, segmentation = patches.images, patches.segmentation
        for axis in t.allowed_axes:
            chosen = happens((len(images),), 0.5, generator)
            images, segmentation = (
                change_rows(x, chosen, lambda rows, axis=axis: rows.flip(axis + 2)) for x in (images, segmentation)
            )
        return replace(patches, images=images, segmentation=segmentation)

    return step


def _mask(t: MaskImageTransform) -> Step:
    def step(patches: Patches, _generator: torch.Generator) -> Patches:
        outside = patches.segmentation[:, t.channel_idx_in_seg : t.channel_idx_in_seg + 1] < 0
        acted_on = tuple(channel in t.apply_to_channels for channel in range(patches.images.shape[1]))
        masked = constant(acted_on, outside.device, torch.bool)
        outside = outside & masked.view(1, -1, *[1] * (outside.ndim - 2))
        return replace(patches, images=patches.images.masked_fill(outside, t.set_outside_to))

    return step


def _remove_label(t: RemoveLabelTransform) -> Step:
    def step(patches: Patches, _generator: torch.Generator) -> Patches:
        segmentation = patches.segmentation
        if t.segmentation_channels is None:
            if (t.label_value, t.set_to) == (OUTSIDE, 0):  # as nnU-Net has it: no label is less than OUTSIDE
                return replace(patches, segmentation=segmentation.clamp_min(0))
            return replace(patches, segmentation=torch.where(segmentation == t.label_value, t.set_to, segmentation))
        segmentation = segmentation.clone()
        for channel in t.segmentation_channels:
            segmentation[:, channel].masked_fill_(segmentation[:, channel] == t.label_value, t.set_to)
        return replace(patches, segmentation=segmentation)

    return step


def _one_hot(t: MoveSegAsOneHotToDataTransform) -> Step:
    def step(patches: Patches, _generator: torch.Generator) -> Patches:
        images, segmentation = patches.images, patches.segmentation
        source = segmentation[:, t.source_channel_idx]
        channels = torch.stack([source == label for label in t.all_labels], dim=1)
        if t.remove_channel_from_source:
            kept = [channel for channel in range(segmentation.shape[1]) if channel != t.source_channel_idx]
            segmentation = segmentation[:, kept]
        return replace(patches, images=torch.cat((images, channels.to(images.dtype)), dim=1), segmentation=segmentation)

    return step


def regions_step(t: ConvertSegmentationToRegionsTransform) -> Step:
    """``ConvertSegmentationToRegionsTransform``: one bool channel per region, in the place of all channels."""
    members = [[int(label) for label in region] for region in t.regions]

    def step(patches: Patches, _generator: torch.Generator) -> Patches:
        label = patches.segmentation[:, t.channel_in_seg]
        regions = [torch.stack([label == value for value in region]).any(dim=0) for region in members]
        return replace(patches, segmentation=torch.stack(regions, dim=1))

    return step


_STEPS: dict[type, Any] = {
    MirrorTransform: _mirror,
    MaskImageTransform: _mask,
    RemoveLabelTransform: _remove_label,
    MoveSegAsOneHotToDataTransform: _one_hot,
    ConvertSegmentationToRegionsTransform: regions_step,
}
