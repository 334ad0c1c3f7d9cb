"""The steps of ``alhvr demo``: the commands, where their results are, and how long they take."""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from alhvr_trainer.config.names import TRAINER_NAME
from alhvr_trainer.errors import InputError
from alhvr_trainer.experiments.demo import DATASET_ID
from alhvr_trainer.resources import ext_trainer_folder

BASELINE_NAME = "SupervisedTrainer"
CONFIGURATION = "2d"
STAMPS = "stamps"
"""Folder with one file per finished step."""
_ID = str(DATASET_ID)
METHODS = {BASELINE_NAME: "supervised", TRAINER_NAME: "alhvr"}
"""Trainer -> folder of its predictions and scores."""


@dataclass(frozen=True)
class Layout:
    """Where the demo keeps things, all below its output folder."""

    output: Path
    plans_name: str
    dataset: str = f"Dataset{DATASET_ID:03d}_Phantom"

    @property
    def raw(self) -> Path:
        return self.output / "nnUNet_raw" / self.dataset

    @property
    def images(self) -> Path:
        """The test scans."""
        return self.raw / "imagesTs"

    @property
    def preprocessed(self) -> Path:
        return self.output / "nnUNet_preprocessed" / self.dataset

    @property
    def bundle(self) -> Path:
        return self.output / "bundle"

    @property
    def report(self) -> Path:
        return self.output / "report.html"

    @property
    def early_checkpoint(self) -> Path:
        """Copy of ``ALHVRTrainer``'s first checkpoint, for the picture of the regions early in training."""
        return self.output / "checkpoint_early.pth"

    def fold(self, trainer: str) -> Path:
        model = f"{trainer}__{self.plans_name}__{CONFIGURATION}"
        return self.output / "nnUNet_results" / self.dataset / model / "fold_0"

    def predictions(self, name: str) -> Path:
        return self.output / "predictions" / name

    def scores(self, name: str) -> Path:
        return self.output / "scores" / name

    def environment(self) -> dict[str, str]:
        """The user's environment with nnU-Net pointed at the demo's own folders."""
        names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
        return {
            **os.environ,
            **{name: str(self.output / name) for name in names},
            "nnUNet_extTrainer": str(ext_trainer_folder()),
            # importing nnU-Net in more worker processes takes longer than the work that they would share
            "nnUNet_def_n_proc": "1",
            "nnUNet_n_proc_DA": "1",
            # one core for the network, one for the loader; two threads would wait for each other
            "OMP_NUM_THREADS": "1",
            "nnUNet_compile": "f",
            # one device for all steps, so that the bundle's files can be compared with nnUNetv2_predict's
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONUNBUFFERED": "1",
        }


@dataclass(frozen=True)
class Step:
    """One command, and what must exist after it."""

    name: str
    title: str
    seconds: int
    """How long it takes on two cores."""
    command: list[str]
    result: Path
    stale: tuple[Path, ...] = ()
    """Removed before the command runs: leftovers that it would mistake for its own results."""
    meanwhile: Callable[[], None] | None = None
    """Called several times per second while the command runs, and once more when it has succeeded."""


def plan_steps(layout: Layout, plans_file: Path, cases: dict[str, int]) -> list[Step]:
    """The demo's steps in order.

    Args:
        layout: where everything is.
        plans_file: ready plan for ``alhvr plan_and_preprocess``.
        cases: numbers of cases and seed, as ``write_dataset`` takes them.
    """
    alhvr, predictions, scores = tool("alhvr"), layout.predictions, layout.scores
    dataset = ["-d", _ID, "-c", CONFIGURATION]
    module = [sys.executable, "-m", "alhvr_trainer.experiments.demo"]
    generate = [*module[:2], f"{module[2]}.phantom", str(layout.raw.parent), json.dumps(cases)]
    plan = [alhvr, "plan_and_preprocess", *dataset, "--plans_file", str(plans_file)]
    plans = layout.preprocessed / f"{layout.plans_name}.json"
    measured = ["--evaluation", str(scores(METHODS[TRAINER_NAME]) / "metrics.json")]
    model = [*dataset, "-f", "0", "-p", layout.plans_name]
    export = [alhvr, "export_bundle", *model, *measured, "-o", str(layout.bundle)]
    in_bundle = {
        "--config_file": layout.bundle / "configs" / "inference.json",
        "--bundle_root": layout.bundle,
        "--dataset_dir": layout.images,
        "--output_dir": predictions("bundle"),
    }
    run_bundle = [sys.executable, "-m", "monai.bundle", "run", "inference", *_words(in_bundle)]
    weights = layout.bundle / "models" / "model.pt"
    report = [*module[:2], f"{module[2]}.html_report", str(layout.output), layout.plans_name]
    splits = layout.raw / "splits_final.json"
    return [
        Step("generate", "make the data set", 1, generate, splits, stale=(layout.raw,)),
        Step("plan_and_preprocess", "plan and preprocess", 16, plan, plans, stale=(layout.preprocessed,)),
        _train(layout, BASELINE_NAME, 47),
        _train(layout, TRAINER_NAME, 116),
        *(_predict(layout, trainer) for trainer in METHODS),
        *(_evaluate(layout, trainer) for trainer in METHODS),
        Step("export_bundle", "export a MONAI bundle", 5, export, weights, stale=(layout.bundle,)),
        Step("run_bundle", "predict with the bundle", 6, run_bundle, predictions("bundle"), (predictions("bundle"),)),
        Step("report", "write the report", 4, report, layout.report),
    ]


def _train(layout: Layout, trainer: str, seconds: int) -> Step:
    name, fold = METHODS[trainer], layout.fold(trainer)
    model = [_ID, CONFIGURATION, "0", "-tr", trainer, "-p", layout.plans_name]
    command = [tool("nnUNetv2_train"), *model, "-device", "cpu"]

    def keep_first_checkpoint() -> None:
        # nnU-Net writes it after the first epoch, and replaces it in later ones
        if not layout.early_checkpoint.exists() and (fold / "checkpoint_best.pth").exists():
            shutil.copyfile(fold / "checkpoint_best.pth", layout.early_checkpoint)

    kept = trainer == TRAINER_NAME
    stale = (fold, layout.early_checkpoint) if kept else (fold,)
    meanwhile = keep_first_checkpoint if kept else None
    result = fold / "checkpoint_final.pth"
    return Step(f"train_{name}", f"train {trainer}", seconds, command, result, stale, meanwhile)


def _predict(layout: Layout, trainer: str) -> Step:
    name = METHODS[trainer]
    output = layout.predictions(name)
    files = ["-i", str(layout.images), "-o", str(output)]
    model = ["-d", _ID, "-c", CONFIGURATION, "-f", "0", "-tr", trainer, "-p", layout.plans_name]
    in_one_process = ["-npp", "0", "-nps", "0"]
    command = [tool("nnUNetv2_predict"), *files, *model, *in_one_process, "-device", "cpu"]
    return Step(f"predict_{name}", f"predict with {trainer}", 6, command, output / "plans.json", (output,))


def _evaluate(layout: Layout, trainer: str) -> Step:
    name = METHODS[trainer]
    arguments = {
        "--predictions": layout.predictions(name),
        "--references": layout.raw / "labelsTs",
        "--dataset_json": layout.raw / "dataset.json",
        "--output": layout.scores(name),
    }
    command = [tool("alhvr"), "evaluate", *_words(arguments)]
    return Step(f"evaluate_{name}", f"evaluate {trainer}", 5, command, layout.scores(name) / "metrics.json")


def _words(arguments: dict[str, Path]) -> list[str]:
    return [str(word) for pair in arguments.items() for word in pair]


def tool(name: str) -> str:
    """The console script of this Python environment.

    Raises:
        InputError: it is not installed.
    """
    folders = [str(Path(sys.executable).parent), sysconfig.get_path("scripts")]
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        raise InputError(f"there is no command {name} in {folders[-1]}; install the package with pip")
    return found
