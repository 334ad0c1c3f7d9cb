"""Where the network sees foreground in unlabeled cases, so that patches can be laid around it."""

from __future__ import annotations

import multiprocessing
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

LOOKS = 10
"""Number of parts of a training; the network predicts the unlabeled cases at the start of each but the first."""
VOXELS = 1000
"""Kept per class."""
FOLDER = "foreground_of_unlabeled"
"""Subfolder of the fold's folder."""


def foreground_voxels(logits: Tensor, label_manager: LabelManager) -> dict[str, np.ndarray]:
    """Random voxels of each class or region in a prediction, as nnU-Net samples them from labels.

    Args:
        logits: (C, *S).
        label_manager: of the dataset.

    Returns:
        Per predicted class or region, by its position, (n, 4): nnU-Net's leading 0, then the voxel.
    """
    segmentation = np.asarray(label_manager.convert_logits_to_segmentation(logits))[None]
    regions = label_manager.foreground_regions if label_manager.has_regions else label_manager.foreground_labels
    found = DefaultPreprocessor._sample_foreground_locations(segmentation, list(regions))
    voxels = enumerate(list(found.values()))
    return {str(number): np.asarray(each[:VOXELS], np.int32) for number, each in voxels if len(each)}


@dataclass(frozen=True)
class PredictedForeground:
    """Foreground of a fold's unlabeled cases on disk, a folder for each look at them.

    A batch uses the last look before its epoch, whenever a worker makes it: workers run ahead of training, and wait for
    a look that is still to come.
    """

    folder: Path
    epochs: int
    """Of the whole training."""
    iterations: int
    """Per epoch."""
    first: int
    """Number of the loader's first batch, which nnU-Net draws and drops: it stands before those of its epoch."""

    def looked_in(self, epoch: int) -> int:
        """The epoch of the last look.

        Example:
            >>> foreground = PredictedForeground(Path("fold_0"), epochs=1000, iterations=250, first=0)
            >>> [foreground.looked_in(epoch) for epoch in (0, 99, 100, 999)]
            [0, 0, 100, 900]
        """
        look = min(epoch, self.epochs - 1) * LOOKS // self.epochs
        return -(-look * self.epochs // LOOKS)

    def folder_of(self, epoch: int) -> Path:
        """Of the look that batches of this epoch use."""
        return self.folder / f"epoch_{self.looked_in(epoch)}"

    def is_missing(self, epoch: int) -> bool:
        return self.looked_in(epoch) > 0 and not self.folder_of(epoch).is_dir()

    def forget_from(self, epoch: int) -> None:
        """Remove looks from this epoch on, left by an earlier training that got further."""
        for look in self.folder.glob("epoch_*"):
            if not look.name.removeprefix("epoch_").isdigit() or int(look.name.removeprefix("epoch_")) >= epoch:
                shutil.rmtree(look)

    def voxels(self, case: str, batch: int) -> dict[str, np.ndarray] | None:
        """What :func:`foreground_voxels` found in the case; None before the first look.

        Args:
            case: unlabeled.
            batch: its number.
        """
        epoch = max(batch - 1, self.first) // self.iterations
        if not self.looked_in(epoch):
            return None
        folder = self.folder_of(epoch)
        parent = multiprocessing.parent_process()
        while not folder.is_dir():
            if parent is None or not parent.is_alive():
                raise RuntimeError(f"{folder} is missing, and the training that writes it has ended")
            time.sleep(0.1)
        with np.load(folder / f"{case}.npz") as file:
            return dict(file)
