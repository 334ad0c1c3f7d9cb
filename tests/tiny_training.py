"""Trainings of seconds on the fixture ``tiny`` of ``planned_dataset.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from data_builders import read_json, write_json
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from alhvr_trainer.trainer import ALHVRTrainer

QUICK = {"seed": 1, "num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1}


def change_settings(root: Path, **settings: Any) -> None:
    plans = read_json(root, "ALHVRPlans.json")
    plans["configurations"]["2d"]["alhvr"].update(settings)
    write_json(root, "ALHVRPlans.json", plans)


def make_trainer(
    root: Path, kind: type[nnUNetTrainer] = ALHVRTrainer, plans: str = "ALHVRPlans", resume: bool = False, fold: Any = 0
) -> nnUNetTrainer:
    """What ``nnUNetv2_train 901 2d 0 -tr KIND -p PLANS -device cpu`` builds."""
    content = read_json(root, f"{plans}.json") | {"continue_training": resume}
    return kind(content, "2d", fold, read_json(root, "dataset.json"), torch.device("cpu"))
