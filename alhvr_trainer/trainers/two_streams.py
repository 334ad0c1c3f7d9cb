"""TwoStreamTrainer: nnU-Net's trainer with a stream of unlabelled cases beside the labelled one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alhvr_trainer.data.foreground import FOLDER, PredictedForeground, foreground_voxels
from alhvr_trainer.data.loader import LabeledAndUnlabeled
from alhvr_trainer.data.stream import unlabeled_dataset
from alhvr_trainer.trainers.cascade import check_previous_stage, previous_stage_folder
from alhvr_trainer.trainers.planned import PlannedTrainer
from alhvr_trainer.trainers.prediction import predicting
from alhvr_trainer.trainers.ranks import rank, rank_0_first, ranks, wait_for_all
from alhvr_trainer.trainers.samples import Samples


class TwoStreamTrainer(PlannedTrainer):
    """L labelled and U unlabelled samples per step.

    Raises:
        InputError: the plans, the dataset or the unlabelled cases do not allow training (before it starts).
    """

    data: LabeledAndUnlabeled | None = None
    """Of training, once it has started."""

    def get_tr_and_val_datasets(self):
        labeled, validation = super().get_tr_and_val_datasets()
        previous = previous_stage_folder(self)
        with rank_0_first():  # what is not yet preprocessed is made once
            unlabeled = unlabeled_dataset(self, labeled.identifiers, validation.identifiers, previous)
        check_previous_stage(self, [*labeled.identifiers, *validation.identifiers], unlabeled.identifiers)
        sizes = self.labeled_batch_size, self.unlabeled_batch_size
        self.data = LabeledAndUnlabeled(labeled, unlabeled, *sizes, self._foreground(labeled.draws.first))
        self.look_for_foreground()
        return self.data, validation

    def _foreground(self, first: int) -> PredictedForeground | None:
        if not self.settings.unlabeled_foreground:
            return None
        folder = Path(self.output_folder) / FOLDER
        foreground = PredictedForeground(folder, self.num_epochs, self.num_iterations_per_epoch, first)
        if rank() == 0:
            foreground.forget_from(self.current_epoch)
        wait_for_all()
        return foreground

    def on_epoch_start(self) -> None:
        super().on_epoch_start()
        self.look_for_foreground()

    def look_for_foreground(self) -> None:
        """Predict the unlabelled cases where their batches of this epoch need it; each rank predicts its share."""
        foreground = self.data.foreground if self.data is not None else None
        if self.data is None or foreground is None or not foreground.is_missing(self.current_epoch):
            return
        folder = foreground.folder_of(self.current_epoch)
        unfinished = folder.with_suffix(".unfinished")
        unfinished.mkdir(parents=True, exist_ok=True)
        cases = self.data.unlabeled
        with predicting(self, mirroring=False) as predict:
            for case in cases.identifiers[rank() :: ranks()]:
                voxels: dict[str, Any] = foreground_voxels(predict(cases, case)[0], self.label_manager)
                np.savez(unfinished / f"{case}.npz", **voxels)
        wait_for_all()
        if rank() == 0:
            unfinished.rename(folder)
        wait_for_all()
        self.print_to_log_file(f"ALHVR: looked for foreground in {len(cases.identifiers)} unlabelled cases")

    def on_train_end(self) -> None:
        super().on_train_end()
        if rank() == 0:
            shutil.rmtree(Path(self.output_folder) / FOLDER, ignore_errors=True)

    def samples(self, batch: dict) -> Samples:
        """A batch on the training's device, its target taken apart.

        Args:
            batch: ``data`` (L+U, channels, *S); ``target`` (L+U, 1 + 1, *S), label and validity mask; with regions one
                channel each, and the ignore label's, in place of the label; with deep supervision a list, full
                resolution first.
        """
        labeled = self.labeled_batch_size
        target = batch["target"]
        scales = target if isinstance(target, list) else [target]
        labels = [scale[:labeled, :-1].to(self.device, non_blocking=True) for scale in scales]
        inside = scales[0][:, -1] > 0  # on the CPU, where the batch still lies
        return Samples(
            data=batch["data"].to(self.device, non_blocking=True),
            labels=labels if isinstance(target, list) else labels[0],
            valid=self._mask(inside),
            unlabeled_valid=self._mask(inside[labeled:]),
            labeled=labeled,
            labeled_voxels=int(torch.count_nonzero(inside[:labeled])),
            cases=[str(case) for case in batch["keys"]],
        )

    def _mask(self, inside: Tensor) -> Tensor | None:
        return None if bool(inside.all()) else inside.to(self.device, non_blocking=True)
