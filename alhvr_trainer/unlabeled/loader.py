"""Labelled and unlabelled patches from one nnU-Net data loader, and so from one pool of workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainer_module


class LabeledAndUnlabeled:
    """Two nnU-Net data sets read through one ``load_case``.

    Each case comes with one more segmentation channel: 1 inside the image. nnU-Net pads segmentations with -1 and
    turns that to 0 at the end, so after augmentation the channel is the validity mask, for both kinds of case.

    Args:
        labeled: nnU-Net's data set of the fold's training cases.
        unlabeled: the same over the ``_unlabeled`` folder; its cases have no label file behind them.
        labeled_batch_size: L.
        unlabeled_batch_size: U.
    """

    def __init__(
        self,
        labeled: nnUNetBaseDataset,
        unlabeled: nnUNetBaseDataset,
        labeled_batch_size: int,
        unlabeled_batch_size: int,
    ) -> None:
        self.labeled = labeled
        self.unlabeled = unlabeled
        self.labeled_batch_size = labeled_batch_size
        self.unlabeled_batch_size = unlabeled_batch_size
        self.identifiers = [*labeled.identifiers, *unlabeled.identifiers]
        self._unlabeled_cases = set(unlabeled.identifiers)

    def load_case(self, identifier: str) -> tuple[Any, Any, np.ndarray, dict[str, Any]]:
        """``data, seg, inside, properties`` as nnU-Net's data sets give them, ``inside`` in place of the cascade's."""
        source = self.unlabeled if identifier in self._unlabeled_cases else self.labeled
        data, seg, _, properties = source.load_case(identifier)
        inside = np.broadcast_to(np.int8(1), data.shape[1:])  # takes no memory
        return data, seg, inside, {"class_locations": None, **properties}


class SemiSupervisedDataLoader(nnUNetDataLoader):
    """Batches of L labelled samples and, after them, U unlabelled ones.

    ``target`` has two channels: the label (0 for unlabelled samples) and the validity mask. Foreground oversampling
    acts on the labelled samples, as in nnU-Net; unlabelled patches are drawn anywhere.
    """

    _data: LabeledAndUnlabeled

    def get_indices(self) -> list[str]:
        labeled = np.random.choice(self._data.labeled.identifiers, self._data.labeled_batch_size)
        unlabeled = np.random.choice(self._data.unlabeled.identifiers, self._data.unlabeled_batch_size)
        return [*labeled, *unlabeled]

    def _oversample_last_XX_percent(self, sample_idx: int) -> bool:
        """nnU-Net's rule, over the L labelled samples."""
        labeled = self._data.labeled_batch_size
        return round(labeled * (1 - self.oversample_foreground_percent)) <= sample_idx < labeled

    def _probabilistic_oversampling(self, sample_idx: int) -> bool:
        return sample_idx < self._data.labeled_batch_size and super()._probabilistic_oversampling(sample_idx)


def _loader_for(data: Any, *args: Any, **kwargs: Any) -> nnUNetDataLoader:
    kind = SemiSupervisedDataLoader if isinstance(data, LabeledAndUnlabeled) else nnUNetDataLoader
    return kind(data, *args, **kwargs)


@contextmanager
def semi_supervised_loaders() -> Iterator[None]:
    """nnU-Net's ``get_dataloaders`` builds ours for a :class:`LabeledAndUnlabeled`, while the context is open.

    That method names its loader class outright and starts the workers itself; replacing the name for the length of
    the call leaves all of nnU-Net's set-up (transforms, patch sizes, worker pool) in nnU-Net's hands.
    """
    with patch.object(trainer_module, "nnUNetDataLoader", _loader_for):
        yield
