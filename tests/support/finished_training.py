"""What a finished training leaves, without training: raw dataset, checkpoint with history, log, validated cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import data_builders
import numpy as np
import SimpleITK as sitk
import torch
from trained_models import make_model

from alhvr_trainer.trainers.alhvr import ALHVRTrainer
from alhvr_trainer.trainers.history import HistoryKeys
from alhvr_trainer.trainers.region_maps import MOMENTS, region_map_file

QUICKLY: dict[str, Any] = {"device": "cpu", "num_processes": 1}
"""Options of ``report``."""
CASES = ("case_000", "case_001", "case_002")
"""Validated, from the best to the worst."""
MAPPED = ("scan_000", "scan_001")
"""Unlabeled, with ALHVR's regions at three moments."""
WARNING = "class 2 (core) has vanished from the pseudo-labels: in epochs {} to {} it covers 0.00%. Lower something"


def make_training(root: Path, epochs: int = 30, shape: tuple[int, int, int] = (12, 48, 44)) -> Path:
    """Fold 0 of an ALHVRTrainer with random weights, in 2d; returns its folder.

    Args:
        root: holds nnU-Net's folders; the environment variables must lead there.
        epochs: in the history.
        shape: of the images.
    """
    raw = data_builders.make_dataset(root / "raw", labeled=3, unlabeled=3, channels=["T2", "CT"], shape=shape)
    fold = make_model(root / "results") / "fold_0"
    file = fold / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False)
    random = np.random.default_rng(0)
    fall = 1 / np.arange(1, epochs + 1) + random.uniform(0, 0.02, epochs)
    keys = HistoryKeys(ALHVRTrainer.supervised, ALHVRTrainer.terms, ALHVRTrainer.observed, True, (1, 2))
    checkpoint["alhvr"]["history"] = {name: (fall * (1 + n / 9)).tolist() for n, name in enumerate(keys.all())}
    checkpoint["logging"] = {
        "train_losses": list(fall - 1),
        "val_losses": list(fall - 0.9),
        "mean_fg_dice": list(1 - fall),
        "ema_fg_dice": list(1 - fall),
        "dice_per_class_or_region": [[0.5, 0.5]] * epochs,
    }
    checkpoint["current_epoch"] = epochs
    torch.save(checkpoint, file)
    lines = [f"2026-01-01 00:00:0{n}.0: ALHVR WARNING: {WARNING.format(n, n + 4)}" for n in range(3)]
    (fold / "training_log_2026_1_1_00_00_00.txt").write_text("\n".join(["epoch 0", *lines]), encoding="utf-8")
    _validate(raw, fold / "validation")
    _map_regions(raw, fold)
    return fold


def _map_regions(raw: Path, fold: Path) -> None:
    """Of two unlabeled cases: Ω2 around a cube of Ω3 that shrinks."""
    for case in MAPPED:
        image = sitk.ReadImage(str(raw / "imagesTr_unlabeled" / f"{case}_0000.nii.gz"))
        for number, moment in enumerate(MOMENTS):
            regions = np.ones(image.GetSize()[::-1], dtype=np.uint8)
            regions[2:-2, 6:-6, 6:-6] = 2
            regions[3:-3, 8 + 2 * number : -8 - 2 * number, 8:-8] = 3
            data_builders.write_image(region_map_file(fold, case, moment, ".nii.gz"), regions, image.GetSpacing())


def _validate(raw: Path, folder: Path) -> None:
    """Predictions that are the references, moved; the later the case, the farther."""
    entries = []
    for number, case in enumerate(CASES):
        label = sitk.ReadImage(str(raw / "labelsTr" / f"{case}.nii.gz"))
        reference = sitk.GetArrayFromImage(label)
        moved = np.roll(reference, 2 + 4 * number, axis=2)
        file = data_builders.write_image(folder / f"{case}.nii.gz", moved, label.GetSpacing())
        metrics = {}
        for value in (1, 2):
            a, b = reference == value, moved == value
            metrics[str(value)] = {"Dice": float(2 * (a & b).sum() / (a.sum() + b.sum()))}
        entries.append({"prediction_file": str(file), "reference_file": "elsewhere", "metrics": metrics})
    (folder / "summary.json").write_text(json.dumps({"metric_per_case": entries}), encoding="utf-8")
