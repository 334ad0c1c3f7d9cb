"""Files from elsewhere: Python objects in them are refused before they are made, and nothing leaves its folder."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from data_builders import read_json
from monai.handlers import CheckpointLoader
from nnunet_environment import set_nnunet
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from trained_models import DATASET, make_model

from alhvr_trainer.cli import main
from alhvr_trainer.errors import InputError
from alhvr_trainer.export.stock_model import export_nnunet
from alhvr_trainer.trainers.alhvr import ALHVRTrainer
from alhvr_trainer.trainers.checkpoints import read_checkpoint

pytest_plugins = ["planned_dataset"]

QUICK = {"num_epochs": 1, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1, "seed": 1}


class Intruder:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


class ShortStockTrainer(nnUNetTrainer):
    """Stock nnU-Net but for the length."""

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = self.num_iterations_per_epoch = self.num_val_iterations_per_epoch = 1

    def _do_i_compile(self) -> bool:
        return False


@pytest.fixture
def trainers(planned: Path):
    """A trainer of each kind on the planned dataset, with a small network and one step to go."""
    plans = read_json(planned, "ALHVRPlans.json")
    configuration = plans["configurations"]["2d"]
    kwargs = configuration["architecture"]["arch_kwargs"]
    kwargs["features_per_stage"] = [4] * kwargs["n_stages"]
    configuration.update(batch_size=2, alhvr=QUICK)

    def make(kind: type[nnUNetTrainer], resume: bool = False) -> nnUNetTrainer:
        content = json.loads(json.dumps(plans)) | {"continue_training": resume}
        return kind(content, "2d", 0, read_json(planned, "dataset.json"), torch.device("cpu"))

    return make


@pytest.mark.parametrize("kind", [ShortStockTrainer, ALHVRTrainer])
def test_checkpoints_of_real_trainings_are_read_unchanged(kind: type[nnUNetTrainer], trainers):
    trainer = trainers(kind)
    trainer.run_training()
    path = Path(trainer.output_folder) / "checkpoint_final.pth"
    expected = torch.load(path, weights_only=False)
    found = read_checkpoint(path)
    assert_same(found, expected)
    assert isinstance(expected["_best_ema"], np.floating)  # else plain weights_only=True would do
    assert ("alhvr" in found) == (kind is ALHVRTrainer)


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected or (found != found and expected != expected)


def test_what_we_add_to_a_checkpoint_is_plain(trainers, tmp_path: Path):
    """Tensors and Python's own types alone: torch reads it without knowing any other."""
    trainer = trainers(ALHVRTrainer)
    trainer.run_training()
    ours = read_checkpoint(Path(trainer.output_folder) / "checkpoint_final.pth")["alhvr"]
    torch.save(ours, tmp_path / "ours.pth")
    assert_same(torch.load(tmp_path / "ours.pth", weights_only=True), ours)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_objects_in_a_checkpoint_are_refused_and_not_made(zipped: bool, tmp_path: Path):
    path, victim = tmp_path / "checkpoint_final.pth", tmp_path / "victim"
    content = {"network_weights": {"w": torch.zeros(2)}, "logging": Intruder(victim)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        InputError, match=r"checkpoint_final.pth holds pickled Python objects \(posix.mkdir\).*refused: use"
    ):
        read_checkpoint(path)
    assert not victim.exists()
    torch.load(path, weights_only=False)
    assert victim.exists()  # the file was a dangerous one


@pytest.mark.parametrize(
    "value",
    [
        np.array([1, "a"], dtype=object),
        np.zeros(2, [("a", "f4"), ("b", "O")]),
        np.random.default_rng(0),
        np.array(["2020"], "M8[D]"),
        PurePosixPath("a"),
    ],
)
def test_no_other_object_is_read(value: Any, tmp_path: Path):
    torch.save({"network_weights": {}, "logging": value}, tmp_path / "checkpoint.pth")
    with pytest.raises(InputError, match="holds pickled Python objects"):
        read_checkpoint(tmp_path / "checkpoint.pth")


def test_training_does_not_resume_from_a_dangerous_checkpoint(trainers, tmp_path: Path):
    """nnU-Net reads the file once more, with all of pickle's power: ours must come first."""
    trainer = trainers(ALHVRTrainer)
    trainer.run_training()
    path = Path(trainer.output_folder) / "checkpoint_final.pth"
    checkpoint = read_checkpoint(path)
    torch.save({**checkpoint, "_best_ema": Intruder(tmp_path / "victim")}, path)
    with pytest.raises(InputError, match="holds pickled Python objects"):
        trainers(ALHVRTrainer, resume=True).load_checkpoint(str(path))
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("command", ["export_bundle", "export_nnunet"])
def test_a_dangerous_checkpoint_is_not_exported(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    set_nnunet(monkeypatch, nnUNet_results=tmp_path / "results")
    path = make_model(tmp_path / "results") / "fold_0" / "checkpoint_final.pth"
    torch.save({**read_checkpoint(path), "logging": Intruder(tmp_path / "victim")}, path)
    assert main([command, "-d", DATASET, "-c", "2d", "-o", str(tmp_path / "out")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and f"{path} holds pickled Python objects" in lines[0]
    assert not (tmp_path / "victim").exists() and not (tmp_path / "out").exists()


def test_the_weights_of_a_bundle_are_loaded_without_code(tmp_path: Path):
    """By MONAI's handler, which the bundle's configuration names."""
    network = torch.nn.Linear(1, 1)
    torch.save({**network.state_dict(), "x": Intruder(tmp_path / "victim")}, tmp_path / "model.pt")
    config = json.loads((Path(__file__).resolve().parents[2] / "bundle" / "configs" / "inference.json").read_text())
    assert config["handlers"][0]["_target_"] == "CheckpointLoader"
    with pytest.raises(pickle.UnpicklingError):
        CheckpointLoader(str(tmp_path / "model.pt"), {"model": network})(None)  # type: ignore[arg-type]
    assert not (tmp_path / "victim").exists()


def test_the_zip_unpacks_into_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    set_nnunet(monkeypatch, nnUNet_results=tmp_path / "results")
    make_model(tmp_path / "results", folds=(0, 1))
    with zipfile.ZipFile(export_nnunet(901, "2d", (0, 1), output=str(tmp_path / "model.zip"))) as archive:
        names = [PurePosixPath(name) for name in archive.namelist()]
        links = [entry.filename for entry in archive.infolist() if (entry.external_attr >> 16) & 0o170000 == 0o120000]
    assert len(names) == 5 and not links
    for name in names:
        assert not name.is_absolute() and ".." not in name.parts and "\\" not in str(name)
        assert name.parts[0] == DATASET and len(name.parts) > 2


@pytest.mark.parametrize("dataset", ["Dataset901_Tiny/../../outside", "Dataset901_Tiny/x", "Dataset901\\x"])
def test_a_dataset_is_a_name_and_no_path(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    set_nnunet(monkeypatch, nnUNet_results=tmp_path / "results")
    make_model(tmp_path / "results")
    with pytest.raises(InputError, match=r"dataset .* is not a name"):
        export_nnunet(dataset, "2d", output=str(tmp_path / "model.zip"))
