"""The commands of ``alhvr``, which are functions of the package as well. Imports nothing: each is loaded when used."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

COMMANDS = {
    "link": ("alhvr_trainer.commands.link", "make nnU-Net's own commands find ALHVR's trainers and planner"),
    "unlink": ("alhvr_trainer.commands.link", "take 'link' back"),
    "trainer_path": ("alhvr_trainer.commands.link", "print the folder for nnUNet_extTrainer, instead of 'link'"),
    "convert": (
        "alhvr_trainer.experiments.convert.command",
        "released data sets as nnU-Net raw datasets, with the papers' splits",
    ),
    "plan_and_preprocess": (
        "alhvr_trainer.planning.plan_and_preprocess",
        "nnU-Net's planning and preprocessing for labeled and unlabeled cases",
    ),
    "make_split": ("alhvr_trainer.planning.make_split", "write a split that hides labels from training"),
    "train": ("alhvr_trainer.commands.train", "nnU-Net's training, on several machines as well"),
    "predict": ("alhvr_trainer.commands.predict", "nnU-Net's prediction with a trained model"),
    "predict_next_stage": (
        "alhvr_trainer.commands.predict_next_stage",
        "segment unlabeled cases for the next stage of a cascade",
    ),
    "suggest": ("alhvr_trainer.annotation.suggest", "name the unlabeled cases to annotate next"),
    "move_labeled": ("alhvr_trainer.annotation.move_labeled", "take finished label files into the dataset"),
    "rounds": ("alhvr_trainer.pseudo_labels.rounds", "rounds of pseudo-labels, down to a stock nnU-Net"),
    "export_bundle": ("alhvr_trainer.export.bundle", "write a trained model as a MONAI bundle"),
    "export_nnunet": ("alhvr_trainer.export.stock_model", "write a trained model as a stock nnU-Net model"),
    "evaluate": ("alhvr_trainer.evaluation.evaluate", "Dice, Jaccard, HD95 and ASD of predictions"),
    "report": ("alhvr_trainer.reports.command", "one HTML file about a finished training, with its worst cases in 3D"),
    "benchmark": (
        "alhvr_trainer.experiments.benchmark.command",
        "compare methods, seeds and labeled fractions, with tables",
    ),
    "demo": ("alhvr_trainer.experiments.demo.run", "the whole way on an embedded data set, with a report"),
    "version": ("alhvr_trainer.cli", "print the version"),
}
"""Name of a command -> the module that has its function, one line for the overview."""


def command(name: str) -> Callable[..., Any]:
    """The function of a command.

    Example:
        >>> command("trainer_path").__module__
        'alhvr_trainer.commands.link'
    """
    function: Callable[..., Any] = getattr(import_module(COMMANDS[name][0]), name)
    return function
