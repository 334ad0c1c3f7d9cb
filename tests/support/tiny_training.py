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
