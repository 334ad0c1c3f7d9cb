"""Trainers by name: ours, with other numbers of epochs, and combined with the variants of nnU-Net's own trainer."""

from __future__ import annotations

import os
import re

import nnunetv2
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

from alhvr_trainer.config.methods import method_of

OURS_ALONE = (
    "train_step",
    "get_dataloaders",
    "run_training",
    "on_train_epoch_start",
    "load_checkpoint",
    "save_checkpoint",
)
"""Methods that both would override: a variant of nnU-Net's that changes one of them cannot be combined with ours."""


def trainer_named(name: str) -> type[nnUNetTrainer]:
    """The trainer class of a name.

    ``NAME_Xepochs`` is NAME with X epochs, whatever the plans say. ``ALHVRTrainerNoMirroring`` is ALHVRTrainer with
    what nnU-Net's ``nnUNetTrainerNoMirroring`` changes; likewise for most of nnU-Net's variants (``…DA5``,
    ``…_onlyMirror01``, ``…NoDeepSupervision``, ``…DiceLoss``), see :data:`OURS_ALONE`.

    Raises:
        AttributeError: no such trainer (nnU-Net's look-up asks modules for attributes).

    Example:
        >>> trainer_named("ALHVRTrainer_5epochs").__name__
        'ALHVRTrainer_5epochs'
    """
    match = re.fullmatch(r"(\w+?)_([1-9]\d*)epochs?", name)
    base = _base(match[1] if match else name)
    if base is None:
        raise AttributeError(f"no trainer is called {name}")
    return _with_epochs(base, name, int(match[2])) if match else base


def _base(name: str) -> type[nnUNetTrainer] | None:
    method = method_of(name)
    if method is None:
        return None
    ours: type[nnUNetTrainer] = method.trainer
    if name == ours.__name__:
        return ours
    stock = _stock_variant(nnUNetTrainer.__name__ + name.removeprefix(ours.__name__))
    if stock is None or any(getattr(stock, name) is not getattr(nnUNetTrainer, name) for name in OURS_ALONE):
        return None
    # ours come first and call super(), which is the variant
    return type(name, (ours, stock), {"__module__": ours.__module__, "__doc__": ours.__doc__})


def _stock_variant(name: str) -> type[nnUNetTrainer] | None:
    folder = os.path.join(nnunetv2.__path__[0], "training", "nnUNetTrainer", "variants")
    found: type[nnUNetTrainer] | None = recursive_find_python_class(
        folder, name, "nnunetv2.training.nnUNetTrainer.variants"
    )
    return found


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
