"""Labeled and unlabeled patches from one nnU-Net data loader, and so from one pool of workers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.base.basic_transform import SegOnlyTransform
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainer_module
from torch import Tensor

from alhvr_trainer.augmentation.label_steps import regions_step
from alhvr_trainer.augmentation.patches import Patches, Step
from alhvr_trainer.compatibility import replaced
from alhvr_trainer.data.batches import Draws, InOrder, NumberedLoader
from alhvr_trainer.data.foreground import PredictedForeground


class SegmentationChannels:
    """Several segmentations of a case as one array (channels, *S); cut first, so that only the patch is read.

    Args:
        parts: arrays (1, *S) or (*S), on disk or in memory.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        self._parts = parts
        self.shape = (len(parts), *parts[-1].shape[-3:])

    def __getitem__(self, slices: tuple[slice, ...]) -> np.ndarray:
        """``slices``: all channels, then the patch."""
        return np.concatenate(
            [part[slices] if part.ndim == len(slices) else part[slices[1:]][None] for part in self._parts]
        )


class LabeledAndUnlabeled:
    """Two nnU-Net data sets read through one ``load_case``.

    Each case comes with one more segmentation channel, the last: 1 inside the image. nnU-Net pads segmentations with -1
    and turns that to 0 at the end, so after augmentation the channel is the validity mask, for both kinds of case.

    Args:
        labeled: nnU-Net's data set of the fold's training cases, with the ``draws`` of the batches of both.
        unlabeled: the same over the ``_unlabeled`` folder; its cases have no label file behind them.
        labeled_batch_size: L.
        unlabeled_batch_size: U.
        foreground: where unlabeled cases show foreground, for patches around it; None: no patch aims at it.
    """

    batch: int
    """Number of the batch that is being made."""
    inside_unlabeled = 1
    """In that channel, inside an unlabeled image. A method whose augmentation must tell the kinds apart sets 2."""

    def __init__(
        self,
        labeled: nnUNetBaseDataset,
        unlabeled: nnUNetBaseDataset,
        labeled_batch_size: int,
        unlabeled_batch_size: int,
        foreground: PredictedForeground | None = None,
    ) -> None:
        self.labeled = labeled
        self.unlabeled = unlabeled
        self.labeled_batch_size = labeled_batch_size
        self.unlabeled_batch_size = unlabeled_batch_size
        self.foreground = foreground
        self.identifiers = [*labeled.identifiers, *unlabeled.identifiers]
        self.draws: Draws = labeled.draws  # type: ignore[attr-defined]
        self.on_device = getattr(labeled, "on_device", None)
        self.batch = self.draws.first
        self._unlabeled_cases = set(unlabeled.identifiers)

    def load_case(self, identifier: str) -> tuple[Any, SegmentationChannels, None, dict[str, Any]]:
        """As nnU-Net's data sets give it: data, segmentations (label, in a cascade the previous stage's, inside),
        nothing in the place of the previous stage, and properties."""
        unlabeled = identifier in self._unlabeled_cases
        data, seg, previous, properties = (self.unlabeled if unlabeled else self.labeled).load_case(identifier)
        value = np.int8(self.inside_unlabeled if unlabeled else 1)
        inside = np.broadcast_to(value, data.shape[1:])  # takes no memory
        parts = [part for part in (seg, previous, inside) if part is not None]
        if unlabeled:
            voxels = self.foreground.voxels(identifier, self.batch) if self.foreground else None
            properties = {**properties, "class_locations": voxels}
        return data, SegmentationChannels(parts), None, properties


class RegionsAndInside(SegOnlyTransform):
    """nnU-Net's conversion of labels to regions drops all other channels: this keeps the last one, "inside"."""

    def __init__(self, conversion: ConvertSegmentationToRegionsTransform) -> None:
        super().__init__()
        self.conversion = conversion

    def _apply_to_segmentation(self, segmentation: Tensor, **params: Any) -> Tensor:
        return torch.cat((self.conversion._apply_to_segmentation(segmentation, **params), segmentation[-1:] > 0))

    def batched(self) -> Step:
        """The same on a batch, for augmentation on the training's device."""
        convert = regions_step(self.conversion)

        def step(patches: Patches, generator: torch.Generator) -> Patches:
            inside = patches.segmentation[:, -1:] > 0
            regions = convert(patches, generator).segmentation
            return replace(patches, segmentation=torch.cat((regions, inside), dim=1))

        return step


class SemiSupervisedDataLoader(NumberedLoader):
    """Batches of L labeled samples and, after them, U unlabeled ones.

    ``target`` has one more channel than nnU-Net's, the last: the validity mask. Before it stand the label or the
    regions, of no meaning for unlabeled samples.
    """

    _data: LabeledAndUnlabeled
    has_ignore: bool
    annotated_classes_key: tuple[int, ...]

    def __init__(self, *args: Any, transforms: Any = None, **kwargs: Any) -> None:
        if transforms is not None:
            transforms.transforms = [
                RegionsAndInside(step) if isinstance(step, ConvertSegmentationToRegionsTransform) else step
                for step in transforms.transforms
            ]
        super().__init__(*args, transforms=transforms, **kwargs)

    def get_indices(self) -> list[str]:
        self._data.batch = self.number
        labeled = _drawn(self._data.labeled.identifiers, self._data.labeled_batch_size)
        return [*labeled, *_drawn(self._data.unlabeled.identifiers, self._data.unlabeled_batch_size)]

    def get_bbox(self, data_shape: Any, force_fg: bool, class_locations: Any, *args: Any, **kwargs: Any) -> Any:
        """nnU-Net's choice of a patch; unlabeled cases have no annotated voxels, and may show no foreground yet."""
        has_ignore = self.has_ignore
        self.has_ignore = has_ignore and self.annotated_classes_key in (class_locations or {})
        try:
            return super().get_bbox(data_shape, force_fg and bool(class_locations), class_locations, *args, **kwargs)
        finally:
            self.has_ignore = has_ignore


def _drawn(cases: Sequence[str], number: int) -> list[str]:
    """With replacement. By place: NumPy would copy thousands of names into an array for each batch."""
    return [cases[place] for place in np.random.choice(len(cases), number)]


def _loader_for(data: Any, *args: Any, **kwargs: Any) -> NumberedLoader:
    how = getattr(data, "on_device", None)
    if how is not None:
        return how.loader(data, *args, **kwargs)
    kind = SemiSupervisedDataLoader if isinstance(data, LabeledAndUnlabeled) else NumberedLoader
    return kind(data, *args, **kwargs)


def _pool_for(data_loader: NumberedLoader, **kwargs: Any) -> Any:
    if getattr(data_loader._data, "on_device", None) is not None:
        return SingleThreadedAugmenter(data_loader, None)
    return InOrder(data_loader, **kwargs)


def loaders_in_order() -> AbstractContextManager[None]:
    """While the context is open, nnU-Net's ``get_dataloaders`` builds our loaders and our pool of workers."""
    return replaced(trainer_module, nnUNetDataLoader=_loader_for, NonDetMultiThreadedAugmenter=_pool_for)
