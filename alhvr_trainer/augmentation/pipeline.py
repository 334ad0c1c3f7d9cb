"""nnU-Net's training augmentation, read off its own list of transforms and run on whole batches.

Order, probabilities and ranges are those of the transforms that a trainer's ``get_training_transforms`` gives, so that
trainers which change them keep what they changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from torch import Tensor

from alhvr_trainer.augmentation.draws import happens
from alhvr_trainer.augmentation.image_steps import ImageStep, image_step
from alhvr_trainer.augmentation.label_steps import downsampled, label_step
from alhvr_trainer.augmentation.patches import Patches, Step
from alhvr_trainer.errors import InputError


class BatchedAugmentation:
    """A pipeline of nnU-Net's in batched form.

    Args:
        pipeline: what ``get_training_transforms`` gives.

    Raises:
        InputError: the spatial transform is none that is known here.
    """

    spatial: SpatialTransform | None
    """Rotation and scaling, which act while patches are cut; None: patches are cut as they are."""
    slice_by_slice: bool
    """Whether it acts on the slices of 3D patches, all alike (nnU-Net's dummy 2D augmentation)."""
    needs_mask: bool
    """Whether it asks what nnU-Net masked in an image."""
    host_steps: list[str]
    """Names of the transforms that have no batched form: they run on the CPU, sample by sample."""

    def __init__(self, pipeline: BasicTransform) -> None:
        transforms = list(pipeline.transforms) if isinstance(pipeline, ComposeTransforms) else [pipeline]
        self.slice_by_slice = any(isinstance(t, Convert3DTo2DTransform) for t in transforms)
        spatial = [t for t in transforms if isinstance(t, SpatialTransform)]
        self.spatial = spatial[0] if spatial else None
        scales = [t.ds_scales for t in transforms if isinstance(t, DownsampleSegForDSTransform)]
        self.scales = scales[0] if scales else None
        self.needs_mask = any(isinstance(t, MaskImageTransform) for t in transforms)
        others = [t for t in transforms if type(t) not in _HANDLED_APART]
        self._check(transforms)
        self.steps = [batched_step(t) for t in others]
        self.host_steps = [_name(t) for t, step in zip(others, self.steps, strict=True) if isinstance(step, OnHost)]

    def _check(self, transforms: Sequence[BasicTransform]) -> None:
        kinds = [type(t) for t in transforms]
        first = [Convert3DTo2DTransform, SpatialTransform, Convert2DTo3DTransform]
        expected = (first if self.slice_by_slice else first[1:2]) if self.spatial is not None else []
        stock = self.spatial is None or (
            self.spatial.p_elastic_deform == 0
            and not self.spatial.random_crop
            and (self.spatial.mode_image, self.spatial.mode_seg) == ("bilinear", "bilinear")
            and (self.spatial.padding_mode_image, self.spatial.padding_value_seg) == ("zeros", -1)
        )
        if not stock or kinds[: len(expected)] != expected or kinds.count(SpatialTransform) > 1:
            raise InputError(
                '"alhvr.augmentation" "device" knows nnU-Net\'s rotation and scaling as the first transform alone, '
                f'found {", ".join(kind.__name__ for kind in kinds)}; set it to "stock"'
            )

    def __call__(self, patches: Patches, generator: torch.Generator) -> tuple[Tensor, Tensor | list[Tensor]]:
        """Everything but rotation and scaling.

        Args:
            patches: as they were cut.
            generator: on their device.

        Returns:
            As nnU-Net's loader gives them: images (B, C, *S), and the segmentation (B, K, *S) or, with deep
            supervision, a list: full resolution first, the others of the labeled samples alone.
        """
        with torch.no_grad():
            for step in self.steps:
                patches = step(patches, generator)
            segmentation = patches.segmentation
            if self.scales is None:
                return patches.images, segmentation
            full, *lower = downsampled(segmentation[: patches.labeled], self.scales)
            return patches.images, [segmentation if full.shape[2:] == segmentation.shape[2:] else full, *lower]


class OnHost:
    """A transform without a batched form, on the CPU and sample by sample."""

    def __init__(self, transform: BasicTransform) -> None:
        self.transform = transform

    def __call__(self, patches: Patches, _generator: torch.Generator) -> Patches:
        images, segmentation = patches.images.cpu(), patches.segmentation.cpu()
        made = [self.transform(image=image, segmentation=seg) for image, seg in zip(images, segmentation, strict=True)]
        device = patches.images.device
        return replace(
            patches,
            images=torch.stack([each["image"] for each in made]).to(device),
            segmentation=torch.stack([each["segmentation"] for each in made]).to(device),
        )


def batched_step(transform: BasicTransform) -> Step:
    """A transform as a step of a batch; one that is not nnU-Net's may have a method ``batched`` that gives it."""
    if isinstance(transform, ComposeTransforms):
        return _one_after_another([batched_step(each) for each in transform.transforms])
    if hasattr(transform, "batched"):
        own: Step = transform.batched()
        return own
    inner, probability = transform, 1.0
    if isinstance(transform, RandomTransform):
        inner, probability = transform.transform, transform.apply_probability
    on_images = image_step(inner)
    if on_images is not None:
        return _sometimes(on_images, probability)
    step = label_step(transform)
    return OnHost(transform) if step is None else step


def _one_after_another(steps: list[Step]) -> Step:
    def step(patches: Patches, generator: torch.Generator) -> Patches:
        for each in steps:
            patches = each(patches, generator)
        return patches

    return step


def _sometimes(on_images: ImageStep, probability: float) -> Step:
    def step(patches: Patches, generator: torch.Generator) -> Patches:
        chosen = patches.samples if probability >= 1 else happens((len(patches.images),), probability, generator)
        return replace(patches, images=on_images(patches.images, chosen, generator))

    return step


def _name(transform: Any) -> str:
    return type(getattr(transform, "transform", transform)).__name__


_HANDLED_APART = (SpatialTransform, Convert3DTo2DTransform, Convert2DTo3DTransform, DownsampleSegForDSTransform)
