"""ALHVR for nnU-Net: semi-supervised medical image segmentation with nnU-Net v2 and MONAI bundles.

Each command of ``alhvr`` is a function here, ``from alhvr_trainer import train``. Importing the package is cheap; what
needs torch or nnU-Net is imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from alhvr_trainer.commands import COMMANDS

if TYPE_CHECKING:  # what type checkers and editors see; the names below are the same
    from alhvr_trainer.annotation.move_labeled import move_labeled
    from alhvr_trainer.annotation.suggest import suggest
    from alhvr_trainer.cli import version
    from alhvr_trainer.commands.link import link, trainer_path, unlink
    from alhvr_trainer.commands.predict import predict
    from alhvr_trainer.commands.predict_next_stage import predict_next_stage
    from alhvr_trainer.commands.train import train
    from alhvr_trainer.errors import InputError
    from alhvr_trainer.evaluation.evaluate import evaluate
    from alhvr_trainer.experiments.benchmark.command import benchmark
    from alhvr_trainer.experiments.convert.command import convert
    from alhvr_trainer.experiments.demo.run import demo
    from alhvr_trainer.export.bundle import export_bundle
    from alhvr_trainer.export.stock_model import export_nnunet
    from alhvr_trainer.losses.alhvr import alhvr_channel_terms, alhvr_terms
    from alhvr_trainer.planning.make_split import make_split
    from alhvr_trainer.planning.plan_and_preprocess import plan_and_preprocess
    from alhvr_trainer.planning.planner import ALHVRPlanner
    from alhvr_trainer.pseudo_labels.rounds import rounds
    from alhvr_trainer.reports.command import report
    from alhvr_trainer.trainers.alhvr import ALHVRTrainer

__version__ = "0.1.0"
__all__ = [
    "ALHVRPlanner",
    "ALHVRTrainer",
    "InputError",
    "__version__",
    "alhvr_channel_terms",
    "alhvr_terms",
    "benchmark",
    "convert",
    "demo",
    "evaluate",
    "export_bundle",
    "export_nnunet",
    "link",
    "make_split",
    "move_labeled",
    "plan_and_preprocess",
    "predict",
    "predict_next_stage",
    "report",
    "rounds",
    "suggest",
    "train",
    "trainer_path",
    "unlink",
    "version",
]

_HOMES = {
    "ALHVRPlanner": "alhvr_trainer.planning.planner",
    "ALHVRTrainer": "alhvr_trainer.trainers.alhvr",
    "InputError": "alhvr_trainer.errors",
    "alhvr_channel_terms": "alhvr_trainer.losses.alhvr",
    "alhvr_terms": "alhvr_trainer.losses.alhvr",
    **{name: module for name, (module, _) in COMMANDS.items()},
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
