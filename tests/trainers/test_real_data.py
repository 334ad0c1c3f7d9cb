"""A short run on a handful of real Hippocampus cases; skipped where the data are missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from data_builders import set_environment

from alhvr_trainer.planning.plan_and_preprocess import plan_and_preprocess

pytestmark = [pytest.mark.real_data, pytest.mark.any_nnunet]


def test_hippocampus_learns_from_the_first_steps(real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Planned, preprocessed and trained for 60 steps: the supervised loss falls and gamma rises."""
    source = real_data / "hippocampus" / "Dataset004_Hippocampus"
    split = json.loads((source.parent / "splits_5_labeled.json").read_text())[0]
    split = {"train": split["train"], "unlabeled": split["unlabeled"][:6], "val": split["val"][:2]}
    set_environment(monkeypatch, tmp_path)
    dataset = tmp_path / "raw" / source.name
    for folder, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (dataset / folder).mkdir(parents=True)
        for case in (case for cases in split.values() for case in cases):
            (dataset / folder / f"{case}{ending}").symlink_to((source / folder / f"{case}{ending}").resolve())
    dataset_json = json.loads((source / "dataset.json").read_text()) | {"numTraining": 13}
    (dataset / "dataset.json").write_text(json.dumps(dataset_json))
    (dataset / "splits_final.json").write_text(json.dumps([split]))
    plan_and_preprocess(4, "2d", num_processes=1)

    from alhvr_trainer.trainers.alhvr import ALHVRTrainer

    plans_file = tmp_path / "preprocessed" / source.name / "ALHVRPlans.json"
    plans = json.loads(plans_file.read_text())
    configuration = plans["configurations"]["2d"]
    assert configuration["patch_size"] == [56, 40]
    configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [8, 16, 16, 16]
    configuration["batch_size"] = 8
    configuration["alhvr"] = {
        "seed": 0,
        "num_epochs": 3,
        "num_iterations_per_epoch": 20,
        "num_val_iterations_per_epoch": 1,
    }
    trainer = ALHVRTrainer(plans | {"continue_training": False}, "2d", 0, dataset_json, torch.device("cpu"))
    trainer.disable_checkpointing = True
    trainer.run_training()
    assert all(np.isfinite(values).all() for values in trainer.monitor.history.values())
    assert trainer.monitor.history["supervised_a"][-1] < trainer.monitor.history["supervised_a"][0] - 0.2
    assert trainer.monitor.history["supervised_b"][-1] < trainer.monitor.history["supervised_b"][0] - 0.2
    assert trainer.monitor.history["gamma"][-1] > trainer.monitor.history["gamma"][0]
