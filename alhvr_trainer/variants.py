"""Trainers by name, ``ALHVRTrainer_5epochs`` and the like included, as nnU-Net users expect them."""

from __future__ import annotations

import re

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from alhvr_trainer.supervised import SupervisedTrainer
from alhvr_trainer.trainer import ALHVRTrainer

TRAINERS: dict[str, type[nnUNetTrainer]] = {trainer.__name__: trainer for trainer in (ALHVRTrainer, SupervisedTrainer)}


def trainer_named(name: str) -> type[nnUNetTrainer]:
    """The trainer class of a name; ``NAME_Xepochs`` is NAME with X epochs, whatever the plans say.

    Raises:
        AttributeError: no such trainer (nnU-Net's look-up asks modules for attributes).

    Example:
        >>> trainer_named("ALHVRTrainer_5epochs").__name__
        'ALHVRTrainer_5epochs'
    """
    match = re.fullmatch(r"(\w+?)_([1-9]\d*)epochs?", name)
    base = TRAINERS.get(match[1] if match else name)
    if base is None:
        raise AttributeError(f"no trainer is called {name}")
    return _with_epochs(base, name, int(match[2])) if match else base


def _with_epochs(base: type[nnUNetTrainer], name: str, epochs: int) -> type[nnUNetTrainer]:
    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's signature
    ):
        base.__init__(self, plans, configuration, fold, dataset_json, device)
        self.num_epochs = epochs

    return type(name, (base,), {"__init__": __init__, "__module__": base.__module__, "__doc__": base.__doc__})
