"""One run of a benchmark, in its own process: train, segment with the last and the best checkpoint, evaluate both.

The last checkpoint is evaluated once more with the postprocessing that nnU-Net chooses on the validation cases.

Finished parts are kept: started again, it resumes where it stopped.
"""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from alhvr_trainer import __version__
from alhvr_trainer.bundle.scripts.metrics import METRICS
from alhvr_trainer.commands.train import train
from alhvr_trainer.config.files import read_object, write_text
from alhvr_trainer.config.names import SETTINGS_KEY
from alhvr_trainer.data.dataset import named_dataset, preprocessed_folder, raw_folder
from alhvr_trainer.errors import InputError
from alhvr_trainer.evaluation.evaluate import evaluate
from alhvr_trainer.experiments.benchmark.jobs import Job, model_folder, result_file
from alhvr_trainer.experiments.benchmark.suites import ENVIRONMENT, SUPERVISED
from alhvr_trainer.trainers.checkpoints import read_checkpoint

CHECKPOINTS = ("final", "best")
"""What is measured: the network at the end of the training, and at its best smoothed validation Dice."""
POSTPROCESSED = "postprocessed"
_SUMMARY = "summary.json"
_DIGITS = 6


def run(job: Job, plans: str, output: Path, device: str) -> Path:
    """Train, predict and measure; the result file.

    Args:
        job: what to run.
        plans: identifier of the run's plans.
        output: the benchmark's output folder.
        device: "cuda", "cpu" or "mps".

    Raises:
        InputError: the trainer, the settings or the data do not allow it.
    """
    fold = model_folder(job, plans) / f"fold_{job.fold}"
    started = time.time()
    continued = _train(job, plans, fold, device)
    metrics: dict[str, Any] = {}
    for checkpoint in CHECKPOINTS:
        if checkpoint == "best" and _best_is_final(fold):
            metrics[checkpoint] = metrics["final"]
            continue
        folders = {"validation": _validate(job, plans, fold, checkpoint, device)}
        if job.test:
            folders["test"] = _predict_test(job, plans, fold, checkpoint, device)
        metrics[checkpoint] = {part: _measure(job, part, folder) for part, folder in folders.items()}
        if checkpoint == "final":
            changed = _postprocess(job, plans, folders)
            metrics[POSTPROCESSED] = {part: _measure(job, part, folder) for part, folder in changed.items()}
    result = {
        "job": asdict(job),
        **_cases(job),
        **_training(job, plans, fold),
        "continued": continued,
        "seconds": round(time.time() - started, 1),
        "command": f"nnUNetv2_train {job.dataset} {job.configuration} {job.fold} -tr {job.trainer} -p {plans} "
        f"-device {device}",
        **_surroundings(device),
        "metrics": metrics,
    }
    file = result_file(output, job)
    write_text(file, json.dumps(result, indent=1) + "\n")
    return file


def _train(job: Job, plans: str, fold: Path, device: str) -> bool:
    """Train to the end, from the latest checkpoint if there is one; whether there was one."""
    if (fold / "checkpoint_final.pth").exists():
        return True
    interrupted = any((fold / f"checkpoint_{name}.pth").exists() for name in ("latest", "best"))
    _train_as(job, plans, continue_training=interrupted, device=device)
    return interrupted


def _train_as(job: Job, plans: str, **options: Any) -> None:
    train(job.dataset, job.configuration, job.fold, plans=plans, trainer=job.trainer, **options)


def _best_is_final(fold: Path) -> bool:
    """Whether the two checkpoints hold the same network: the last epoch was the best one."""
    final, best = (read_checkpoint(fold / f"checkpoint_{name}.pth")["network_weights"] for name in CHECKPOINTS)
    return all(torch.equal(value, best[key]) for key, value in final.items())


def _validate(job: Job, plans: str, fold: Path, checkpoint: str, device: str) -> Path:
    """nnU-Net's final validation with a checkpoint; nnU-Net has one folder for all, so each is renamed."""
    folder, common = fold / f"validation_{checkpoint}", fold / "validation"
    if not folder.exists():
        # only that of nnU-Net at the end of training can already be complete
        if checkpoint != "final" or not (common / _SUMMARY).exists():
            best = checkpoint == "best"
            (common / _SUMMARY).unlink(missing_ok=True)
            _train_as(job, plans, validation_only=True, best=best, device=device)
        common.replace(folder)
    return folder


def _predict_test(job: Job, plans: str, fold: Path, checkpoint: str, device: str) -> Path:
    """Segment imagesTs as ``nnUNetv2_predict -chk checkpoint_<name>.pth`` does, in this process."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    folder = fold / f"test_{checkpoint}"
    if not folder.exists():
        predictor = nnUNetPredictor(
            perform_everything_on_device=device == "cuda", device=torch.device(device), allow_tqdm=False
        )
        predictor.initialize_from_trained_model_folder(
            str(model_folder(job, plans)), use_folds=(job.fold,), checkpoint_name=f"checkpoint_{checkpoint}.pth"
        )
        partial = fold / f"test_{checkpoint}_partial"
        partial.mkdir(exist_ok=True)
        predictor.predict_from_files_sequential(os.path.join(raw_folder(job.dataset), "imagesTs"), str(partial))
        partial.replace(folder)
    return folder


def _postprocess(job: Job, plans: str, folders: dict[str, Path]) -> dict[str, Path]:
    """Where nnU-Net keeps the largest component alone, if the validation cases gain by it: postprocessed copies."""
    from nnunetv2.postprocessing.remove_connected_components import (
        apply_postprocessing_to_folder,
        determine_postprocessing,
    )

    dataset = named_dataset(job.dataset)
    content = read_object(Path(preprocessed_folder(job.dataset)) / f"{plans}.json"), dataset.dataset_json
    changed = {part: folder.with_name(f"{part}_{POSTPROCESSED}") for part, folder in folders.items()}
    references = str(Path(dataset.preprocessed) / "gt_segmentations")
    steps = determine_postprocessing(
        str(folders["validation"]), references, *content, num_processes=1, keep_postprocessed_files=False
    )
    for part, folder in folders.items():
        apply_postprocessing_to_folder(str(folder), str(changed[part]), *steps, *content, num_processes=1)
    return changed


def _measure(job: Job, part: str, predictions: Path) -> dict[str, Any]:
    """case -> class -> metric (None where undefined) and which side is empty.

    Raises:
        InputError: a case of the part was not segmented.
    """
    dataset = named_dataset(job.dataset)
    tests = part == "test"
    references = Path(str(dataset.raw)) / "labelsTs" if tests else Path(dataset.preprocessed) / "gt_segmentations"
    cases = evaluate(predictions, references, dataset.dataset_json, only_predicted=part == "validation")["cases"]
    if part == "validation":
        missing = set(dataset.splits[job.fold]["val"]) - set(cases)
        if missing:
            raise InputError(f"{predictions} lacks {sorted(missing)[0]}; remove that folder and start again")
    return {case: {name: _rounded(scores) for name, scores in classes.items()} for case, classes in cases.items()}


def _rounded(scores: dict[str, Any]) -> dict[str, Any]:
    numbers = {name: None if scores[name] is None else round(scores[name], _DIGITS) for name in METRICS}
    return {**numbers, "empty": scores["empty"]}


def _cases(job: Job) -> dict[str, int]:
    """Numbers of cases that the fold trains on and validates with."""
    dataset = named_dataset(job.dataset)
    split = dataset.splits[job.fold]
    fold = dataset.fold(job.fold, split["train"], split["val"])
    unlabeled = {} if job.trainer.startswith(SUPERVISED) else fold.unlabeled
    return {"labeled": len(fold.train), "unlabeled": len(unlabeled), "validation": len(fold.validation)}


def _training(job: Job, plans: str, fold: Path) -> dict[str, Any]:
    """How long the training was, in epochs and steps of nnU-Net's own clock, and all settings it ran with."""
    checkpoint = read_checkpoint(fold / "checkpoint_final.pth")
    log = checkpoint["logging"]
    times = list(zip(log["epoch_start_timestamps"], log["epoch_end_timestamps"], strict=False))
    block = read_object(Path(preprocessed_folder(job.dataset)) / f"{plans}.json")
    block = block["configurations"][job.configuration][SETTINGS_KEY]
    return {
        "plans_name": plans,
        "settings_in_force": checkpoint.get(SETTINGS_KEY, {}).get("settings", block),
        "epochs": len(times),
        "iterations": len(times) * block.get("num_iterations_per_epoch", 250),
        "seconds_of_training": round(sum(end - start for start, end in times), 1),
    }


def _surroundings(device: str) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if device == "cuda" else f"{device}, {torch.get_num_threads()} threads"
    packages = ("torch", "nnunetv2", "monai", "numpy")
    return {
        "device": name,
        "machine": platform.machine(),
        "environment": {key: os.environ[key] for key in ENVIRONMENT if key in os.environ},
        "versions": {
            "python": platform.python_version(),
            "alhvr_trainer": __version__,
            **{package: version(package) for package in packages},
        },
    }
