"""The steps of ``alhvr demo``: the commands, where their results lie, and how long they take."""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from alhvr_trainer.config.names import TRAINER_NAME
from alhvr_trainer.errors import InputError
from alhvr_trainer.experiments.demo.phantom import DATASET_ID
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
            # every worker process imports nnU-Net anew, which takes longer than the little that it does here
            "nnUNet_def_n_proc": "1",
            "nnUNet_n_proc_DA": "1",
            # one core for the network, one for the loader; two threads would wait for each other
            "OMP_NUM_THREADS": "1",
            "nnUNet_compile": "f",
            # one device for all steps, so that the bundle's files can be held against nnUNetv2_predict's
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONUNBUFFERED": "1",
        }


@dataclass(frozen=True)
class Step:
    """One command, what must exist after it, and how long it takes where ``speed.REFERENCE_SECONDS`` were measured."""

    name: str
    title: str
    seconds: int
    command: list[str]
    result: Path
    stale: tuple[Path, ...] = ()
    """Removed before the command runs: it would take them for its own earlier work, or mix them up."""
    meanwhile: Callable[[], None] | None = None
    """Called several times per second while the command runs."""
    afterwards: Callable[[], None] | None = None
    """Called when it has succeeded."""


def plan_steps(layout: Layout, plans_file: Path, cases: dict[str, int]) -> list[Step]:
    """The demo's steps in order.

    Args:
        layout: where everything lies.
        plans_file: ready plan for ``alhvr plan_and_preprocess``.
        cases: numbers of cases and seed, as ``write_dataset`` takes them.
    """
    return [
        _generate(layout, cases),
        _plan(layout, plans_file),
        _train(layout, BASELINE_NAME, 47),
        _train(layout, TRAINER_NAME, 116),
        *(_predict(layout, trainer) for trainer in METHODS),
        *(_evaluate(layout, trainer) for trainer in METHODS),
        _export_bundle(layout),
        _run_bundle(layout),
        _report(layout),
    ]


def _generate(layout: Layout, cases: dict[str, int]) -> Step:
    command = [
        sys.executable,
        "-m",
        "alhvr_trainer.experiments.demo.phantom",
        str(layout.raw.parent),
        json.dumps(cases),
    ]
    splits = layout.raw / "splits_final.json"
    return Step("generate", "make the data set", 1, command, splits, stale=(layout.raw,))


def _plan(layout: Layout, plans_file: Path) -> Step:
    words = ["-d", _ID, "-c", CONFIGURATION, "--plans_file", str(plans_file)]
    return Step(
        "plan_and_preprocess",
        "plan and preprocess",
        16,
        [tool("alhvr"), "plan_and_preprocess", *words],
        layout.preprocessed / f"{layout.plans_name}.json",
        stale=(layout.preprocessed,),
    )


def _train(layout: Layout, trainer: str, seconds: int) -> Step:
    fold = layout.fold(trainer)
    model = [_ID, CONFIGURATION, "0", "-tr", trainer, "-p", layout.plans_name]
    step = Step(
        f"train_{METHODS[trainer]}",
        f"train {trainer}",
        seconds,
        [tool("nnUNetv2_train"), *model, "-device", "cpu"],
        fold / "checkpoint_final.pth",
        stale=(fold,),
    )
    if trainer != TRAINER_NAME:
        return step

    def keep_first_checkpoint() -> None:
        # nnU-Net writes it after the first epoch, and replaces it in later ones
        if not layout.early_checkpoint.exists() and (fold / "checkpoint_best.pth").exists():
            shutil.copyfile(fold / "checkpoint_best.pth", layout.early_checkpoint)

    return replace(
        step,
        stale=(fold, layout.early_checkpoint),
        meanwhile=keep_first_checkpoint,
        afterwards=keep_first_checkpoint,
    )


def _predict(layout: Layout, trainer: str) -> Step:
    name = METHODS[trainer]
    output = layout.predictions(name)
    files = ["-i", str(layout.images), "-o", str(output)]
    model = ["-d", _ID, "-c", CONFIGURATION, "-f", "0", "-tr", trainer, "-p", layout.plans_name]
    in_one_process = ["-npp", "0", "-nps", "0"]
    return Step(
        f"predict_{name}",
        f"predict with {trainer}",
        6,
        [tool("nnUNetv2_predict"), *files, *model, *in_one_process, "-device", "cpu"],
        output / "plans.json",
        stale=(output,),
    )


def _export_bundle(layout: Layout) -> Step:
    model = ["-d", _ID, "-c", CONFIGURATION, "-f", "0", "-p", layout.plans_name]
    measured = ["--evaluation", str(layout.scores(METHODS[TRAINER_NAME]) / "metrics.json")]
    return Step(
        "export_bundle",
        "export a MONAI bundle",
        5,
        [tool("alhvr"), "export_bundle", *model, *measured, "-o", str(layout.bundle)],
        layout.bundle / "models" / "model.pt",
        stale=(layout.bundle,),
    )


def _run_bundle(layout: Layout) -> Step:
    output = layout.predictions("bundle")
    arguments = {
        "--config_file": layout.bundle / "configs" / "inference.json",
        "--bundle_root": layout.bundle,
        "--dataset_dir": layout.images,
        "--output_dir": output,
    }
    return Step(
        "run_bundle",
        "predict with the bundle",
        6,
        [sys.executable, "-m", "monai.bundle", "run", "inference", *_words(arguments)],
        output,
        stale=(output,),
    )


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


def _report(layout: Layout) -> Step:
    command = [
        sys.executable,
        "-m",
        "alhvr_trainer.experiments.demo.html_report",
        str(layout.output),
        layout.plans_name,
    ]
    return Step("report", "write the report", 4, command, layout.report)


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
