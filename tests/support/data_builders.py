"""Writes tiny nnU-Net raw datasets of synthetic images (ellipsoids on noise)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunet_environment import set_nnunet

NAME = "Dataset901_Tiny"
SPLIT = {
    "train": ["case_000", "case_001"],
    "unlabeled": ["case_004", "case_005"],
    "val": ["case_002", "case_003"],
}
"""Of the dataset in ``planned_dataset.py``."""
HIDDEN_BRIGHTNESS = 50
"""Its hidden cases are brighter by this factor."""
QUICK = {"seed": 1, "num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1}
"""Settings of a training that takes a second."""
SPACING = (1.0, 1.0, 5.0)
"""x, y, z in mm."""
SHAPE = (4, 32, 28)
"""z, y, x."""
FOLDERS = ("raw", "preprocessed", "results")


def write_image(file: Path, voxels: np.ndarray, spacing: Sequence[float] = SPACING) -> Path:
    """Write an array (z, y, x)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(file))
    return file


def ellipsoid(seed: int, shape: Sequence[int] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Image (float32, all voxels positive) and label map: 1 an ellipsoid, 2 its core."""
    random = np.random.default_rng(seed)
    axes = [np.linspace(-1, 1, size) + random.uniform(-0.2, 0.2) for size in shape]
    distance = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))
    label = (distance < 0.8).astype(np.uint8) + (distance < 0.45).astype(np.uint8)
    image = 100 + 60 * label + random.normal(0, 12, shape)
    return np.maximum(image, 1).astype(np.float32), label


def make_dataset(
    raw_folder: Path,
    name: str = NAME,
    labeled: int = 4,
    unlabeled: int = 3,
    channels: Sequence[str] = ("MR",),
    file_ending: str = ".nii.gz",
    shape: Sequence[int] = SHAPE,
    spacing: Sequence[float] = SPACING,
    unlabeled_folder: str = "imagesTr_unlabeled",
) -> Path:
    """Cases ``case_000`` … with labels and ``scan_000`` … without.

    Example:
        >>> folder = make_dataset(tmp_path / "raw")
        >>> sorted(file.name for file in (folder / "imagesTr_unlabeled").iterdir())
        ['scan_000_0000.nii.gz', 'scan_001_0000.nii.gz', 'scan_002_0000.nii.gz']
    """
    folder = Path(raw_folder) / name
    names = [(f"case_{number:03d}", "imagesTr") for number in range(labeled)]
    names += [(f"scan_{number:03d}", unlabeled_folder) for number in range(unlabeled)]
    for seed, (case, images) in enumerate(names):
        image, label = ellipsoid(seed, shape)
        for channel in range(len(channels)):
            write_image(folder / images / f"{case}_{channel:04d}{file_ending}", image + 10 * channel, spacing)
        if images == "imagesTr":
            write_image(folder / "labelsTr" / f"{case}{file_ending}", label, spacing)
    dataset_json = {
        "channel_names": {str(number): channel for number, channel in enumerate(channels)},
        "labels": {"background": 0, "shell": 1, "core": 2},
        "numTraining": labeled,
        "file_ending": file_ending,
    }
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    return folder


def read_dataset_json(folder: Path) -> dict:
    return json.loads((folder / "dataset.json").read_text())


def change_dataset_json(folder: Path, **entries: object) -> dict:
    """Set entries of ``dataset.json`` and return all of it."""
    content = {**read_dataset_json(folder), **entries}
    (folder / "dataset.json").write_text(json.dumps(content))
    return content


def write_splits(folder: Path, *folds: dict[str, list[str]]) -> list[dict[str, list[str]]]:
    """Write ``splits_final.json`` into a raw or preprocessed dataset folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "splits_final.json").write_text(json.dumps(folds))
    return list(folds)


def set_environment(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """Make nnU-Net's three folders below ``root`` and point its environment variables there."""
    for folder in FOLDERS:
        (root / folder).mkdir(exist_ok=True)
    set_nnunet(monkeypatch, **{f"nnUNet_{folder}": root / folder for folder in FOLDERS})


def read_json(root: Path, file: str) -> dict:
    """A file of the preprocessed dataset folder below ``root``."""
    return json.loads((root / "preprocessed" / NAME / file).read_text())


def write_json(root: Path, file: str, content: object) -> None:
    (root / "preprocessed" / NAME / file).write_text(json.dumps(content))


def make_tiny(root: Path) -> Path:
    """Give the plans a network of few features, batch 2 + 2 and short epochs."""
    plans = read_json(root, "ALHVRPlans.json")
    configuration = plans["configurations"]["2d"]
    stages = configuration["architecture"]["arch_kwargs"]["n_stages"]
    configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [4] * stages
    configuration["batch_size"] = 4
    configuration["alhvr"] = {**QUICK, "unlabeled_batch_size": 2}
    write_json(root, "ALHVRPlans.json", plans)
    return root


def change_settings(root: Path, **settings: Any) -> None:
    """Set entries of the "alhvr" block of the 2d configuration."""
    plans = read_json(root, "ALHVRPlans.json")
    plans["configurations"]["2d"]["alhvr"].update(settings)
    write_json(root, "ALHVRPlans.json", plans)
