"""Trainings of seconds on the fixture ``tiny`` of ``planned_dataset.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from data_builders import read_json
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from alhvr_trainer.trainers.alhvr import ALHVRTrainer


def make_trainer(
    root: Path,
    kind: type[nnUNetTrainer] = ALHVRTrainer,
    plans: str = "ALHVRPlans",
    resume: bool = False,
    fold: Any = 0,
    device: str = "cpu",
) -> nnUNetTrainer:
    """What ``nnUNetv2_train 901 2d 0 -tr KIND -p PLANS -device cpu`` builds."""
    content = read_json(root, f"{plans}.json") | {"continue_training": resume}
    return kind(content, "2d", fold, read_json(root, "dataset.json"), torch.device(device))


def weights_after_two_steps(root: Path, kind: type[nnUNetTrainer] = ALHVRTrainer) -> torch.Tensor:
    """All weights of the network that nnU-Net knows, in one row."""
    trainer: Any = make_trainer(root, kind)
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    for _ in range(2):
        trainer.train_step(next(trainer.dataloader_train))
    return torch.cat([parameter.detach().flatten() for parameter in trainer.network.parameters()])
