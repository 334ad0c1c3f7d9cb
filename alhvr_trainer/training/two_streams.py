"""TwoStreamTrainer: nnU-Net's trainer with a stream of unlabelled cases beside the labelled one."""

from __future__ import annotations

import torch
from torch import Tensor

from alhvr_trainer.training.cascade import check_previous_stage, previous_stage_folder
from alhvr_trainer.training.distributed.ranks import rank_0_first
from alhvr_trainer.training.planned import PlannedTrainer
from alhvr_trainer.training.samples import Samples
from alhvr_trainer.unlabeled.loader import LabeledAndUnlabeled
from alhvr_trainer.unlabeled.stream import unlabeled_dataset


class TwoStreamTrainer(PlannedTrainer):
    """L labelled and U unlabelled samples per step.

    Raises:
        InputError: the plans, the dataset or the unlabelled cases do not allow training (before it starts).
    """

    def get_tr_and_val_datasets(self):
        labeled, validation = super().get_tr_and_val_datasets()
        previous = previous_stage_folder(self)
        with rank_0_first():  # what is not yet preprocessed is made once
            unlabeled = unlabeled_dataset(self, labeled.identifiers, validation.identifiers, previous)
        check_previous_stage(self, [*labeled.identifiers, *validation.identifiers], unlabeled.identifiers)
        both = LabeledAndUnlabeled(labeled, unlabeled, self.labeled_batch_size, self.unlabeled_batch_size)
        return both, validation

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
