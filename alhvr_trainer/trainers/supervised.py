"""The fair baselines: nnU-Net itself at the plans' length, on the labeled cases alone."""

from __future__ import annotations

from alhvr_trainer.config.methods import method
from alhvr_trainer.trainers.base import BaseTrainer


@method("nnU-Net, labeled cases alone")
class SupervisedTrainer(BaseTrainer):
    """nnU-Net's trainer with as many labeled samples per step as ALHVRTrainer: ``nnUNetv2_train D C F -tr ...``.

    Unchanged but for what the common keys of the ``alhvr`` block set. It sees the fold's labeled cases only.
    """

    def samples_per_step(self) -> tuple[int, int]:
        return super().samples_per_step()[0], 0

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.settings.cuda_graph:
            self.print_to_log_file("ALHVR: no CUDA graph: a step without unlabeled samples is nnU-Net's own")

    def train_step(self, batch: dict) -> dict:
        values: dict = super().train_step(batch)
        self.show_step()
        return values


@method("nnU-Net, whole batch labeled")
class SupervisedWholeBatchTrainer(SupervisedTrainer):
    """The same with the plans' whole batch labeled: as many samples per step as ALHVRTrainer has of both kinds."""

    def samples_per_step(self) -> tuple[int, int]:
        return sum(self._split_batch()), 0
