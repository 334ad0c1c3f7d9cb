"""Two views of every patch, as FixMatch needs them: nnU-Net's augmentation cut into weak and strong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform

from alhvr_trainer.augmentation.cutmix import within
from alhvr_trainer.augmentation.image_steps import required_image_step
from alhvr_trainer.augmentation.patches import Patches, Step
from alhvr_trainer.augmentation.pipeline import batched_step

INSIDE_UNLABELED = 2
"""What the last segmentation channel holds inside an unlabeled image until :class:`TwoViews` has seen it."""


class RandAugment(BasicTransform):
    """A few transforms out of a list, drawn with replacement and applied one after another.

    Each draws its own strength from its range, as FixMatch does it: RandAugment without its search for the strength.

    Args:
        transforms: what to draw from; an empty list leaves the image as it is.
        number: how many are drawn for each image.

    Source: Sohn et al., NeurIPS 2020, section 2.3. Two transforms, as in the authors' code, which skips each with
    probability 1/2 (with CTAugment, its default, none).
    """

    def __init__(self, transforms: list[BasicTransform], number: int) -> None:
        super().__init__()
        self.transforms = transforms
        self.number = number

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        if self.transforms:
            for chosen in torch.randint(len(self.transforms), (self.number,)).tolist():
                data_dict = self.transforms[chosen](**data_dict)
        return data_dict

    def batched(self) -> Step:
        """The same on a batch, for augmentation on the training's device."""
        steps = [required_image_step(transform) for transform in self.transforms]

        def step(patches: Patches, generator: torch.Generator) -> Patches:
            images = patches.images
            for _ in range(self.number if steps else 0):
                drawn = torch.randint(len(steps), (len(images),), generator=generator, device=images.device)
                for number, act in enumerate(steps):
                    images = act(images, drawn == number, generator)
            return replace(patches, images=images)

        return step


class Cutout(BasicTransform):
    """Erase one box, the same in all channels: the image is 0 there, and its voxels count as outside of the image.

    Its center is drawn anywhere, and what lies beyond the border is cut off. (``BlankRectangleTransform`` of
    batchgeneratorsv2 draws another box for every channel.)

    Args:
        share: edge of the box along each axis, as a share of the patch; 0 erases nothing.

    Source: Sohn et al., NeurIPS 2020, section 2.3: Cutout follows RandAugment; in the authors' code it is half as wide
    as the image, and gray. 0 is gray in nnU-Net's normalized intensities. There the label is one of the whole image;
    here there would be a label to learn at every voxel of an image that is not shown, so these voxels leave the loss
    (as in French et al., BMVC 2020).
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        shape = data_dict["image"].shape[1:]
        edges = [round(self.share * size) for size in shape]
        lows = [int(torch.randint(size, (1,))) - edge // 2 for size, edge in zip(shape, edges, strict=True)]
        box = [slice(max(low, 0), max(low + edge, 0)) for low, edge in zip(lows, edges, strict=True)]
        return {"box": (slice(None), *box)}

    def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
        img[params["box"]] = 0
        return img

    def _apply_to_segmentation(self, segmentation: torch.Tensor, **params: Any) -> torch.Tensor:
        segmentation[-1:][params["box"]] = -1
        return segmentation

    def batched(self) -> Step:
        """The same on a batch, for augmentation on the training's device."""

        def step(patches: Patches, generator: torch.Generator) -> Patches:
            images, (samples, _, *shape) = patches.images, patches.images.shape
            edges = [round(self.share * size) for size in shape]
            lows = [
                torch.randint(size, (samples,), generator=generator, device=images.device) - edge // 2
                for size, edge in zip(shape, edges, strict=True)
            ]
            erased = within(lows, edges, shape).unsqueeze(1)
            segmentation = patches.segmentation.clone()
            segmentation[:, -1:].masked_fill_(erased, -1)
            return replace(patches, images=images.masked_fill(erased, 0), segmentation=segmentation)

        return step


class TwoViews(BasicTransform):
    """Image channels twice: first as they are, the weak view, then the same augmented further.

    Args:
        labeled: makes the second view of labeled patches.
        unlabeled: makes the second view of unlabeled patches, the strong one. Which is which says the last
            segmentation channel, see :data:`INSIDE_UNLABELED`; behind this transform it is 1 inside for both.
    """

    def __init__(self, labeled: BasicTransform, unlabeled: BasicTransform) -> None:
        super().__init__()
        self.labeled = labeled
        self.unlabeled = unlabeled

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        weak, segmentation = data_dict["image"], data_dict["segmentation"].clone()
        is_unlabeled = bool((segmentation[-1] == INSIDE_UNLABELED).any())
        segmentation[-1].clamp_(max=1)
        second = self.unlabeled if is_unlabeled else self.labeled
        augmented = second(**{**data_dict, "image": weak.clone(), "segmentation": segmentation})
        return {**augmented, "image": torch.cat((weak, augmented["image"]))}

    def batched(self) -> Step:
        """The same on a batch, for augmentation on the training's device."""
        of_labeled, of_unlabeled = batched_step(self.labeled), batched_step(self.unlabeled)

        def step(patches: Patches, generator: torch.Generator) -> Patches:
            weak, labeled = patches.images, patches.labeled
            parts = [
                act(replace(patches, images=weak[rows].clone(), segmentation=patches.segmentation[rows]), generator)
                for act, rows in ((of_labeled, slice(labeled)), (of_unlabeled, slice(labeled, None)))
            ]
            second = torch.cat([part.images for part in parts])
            segmentation = torch.cat([part.segmentation for part in parts])
            return replace(patches, images=torch.cat((weak, second), dim=1), segmentation=segmentation)

        return step


def two_view_pipeline(
    pipeline: ComposeTransforms, channels: int, strong_transforms: int, cutout: float
) -> ComposeTransforms:
    """nnU-Net's training augmentation, with two views in the place of its intensity transforms.

    Weak view: the spatial transforms and mirroring alone, which both views share. Second view of labeled patches: all
    of nnU-Net's augmentation, as ever. Second view of unlabeled patches, strong: :class:`RandAugment` over nnU-Net's
    intensity transforms, then :class:`Cutout`.

    Args:
        pipeline: what nnU-Net's ``get_training_transforms`` gives, also of its variants.
        channels: of the image.
        strong_transforms: how many RandAugment draws.
        cutout: edge of the erased box, as a share of the patch.

    Returns:
        A pipeline whose image has 2 x ``channels`` channels, weak ones first; a cascade's previous stage follows them.
    """
    steps = pipeline.transforms
    kinds = [type(step) for step in steps]
    # in a cascade, what comes behind it acts on the previous stage's segmentation
    end = kinds.index(MoveSegAsOneHotToDataTransform) if MoveSegAsOneHotToDataTransform in kinds else len(steps)
    intensity = [i for i, step in enumerate(steps[:end]) if intensity_transforms(step)]
    spatial = [i for i, kind in enumerate(kinds) if kind in (SpatialTransform, Convert2DTo3DTransform)]
    at = intensity[0] if intensity else max(spatial, default=-1) + 1
    pool = [transform for i in intensity for transform in intensity_transforms(steps[i])]
    views = TwoViews(
        labeled=ComposeTransforms([steps[i] for i in intensity]),
        unlabeled=ComposeTransforms([RandAugment(pool, strong_transforms), Cutout(cutout)]),
    )
    after = [_on_both_views(step, channels) for i, step in enumerate(steps) if i >= at and i not in intensity]
    return ComposeTransforms([*steps[:at], views, *after])


def intensity_transforms(step: BasicTransform) -> list[BasicTransform]:
    """The intensity transforms in a step of a pipeline, out of their random wrappers; none in a step of geometry."""
    if isinstance(step, ImageOnlyTransform):
        return [step]
    inner = [step.transform] if hasattr(step, "transform") else getattr(step, "list_of_transforms", [])
    return [transform for each in inner for transform in intensity_transforms(each)]


def _on_both_views(step: BasicTransform, channels: int) -> BasicTransform:
    """nnU-Net's masking names image channels one by one."""
    if not isinstance(step, MaskImageTransform):
        return step
    both = [*step.apply_to_channels, *(channel + channels for channel in step.apply_to_channels)]
    return MaskImageTransform(both, step.channel_idx_in_seg, step.set_outside_to)
