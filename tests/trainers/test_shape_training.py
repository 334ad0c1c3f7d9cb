"""AAU's first stage: the shape autoencoder is trained once, on the labels of the labeled cases, and kept."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from data_builders import change_settings, read_json, write_json
from test_rivals import REGIONS
from tiny_training import make_trainer

from alhvr_trainer.trainers import aau, shape_training
from alhvr_trainer.trainers.aau import AAUTrainer
from alhvr_trainer.trainers.checkpoints import read_checkpoint

pytestmark = pytest.mark.any_nnunet

pytest_plugins = ["planned_dataset"]


def made(root: Path, **settings: Any) -> Any:
    change_settings(root, **settings)
    return make_trainer(root, AAUTrainer)


def started(root: Path, **settings: Any) -> Any:
    """A trainer whose first stage is over."""
    trainer = made(root, **settings)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer


def log_of(trainer: Any) -> str:
    return "".join(file.read_text() for file in Path(trainer.output_folder).glob("training_log*.txt"))


def kept(root: Path) -> list[Path]:
    return sorted((root / "preprocessed" / "Dataset901_Tiny").glob("*_shapes/*"))


def test_it_is_trained_once_and_the_training_is_the_same(tiny: Path):
    first = started(tiny, shape_iterations=2)
    values = first.train_step(next(first.dataloader_train))["record"].values
    (file,) = kept(tiny)
    content = file.read_bytes()
    second = started(tiny, consistency_weight=0.1)
    assert f"shape autoencoder from {file}" in log_of(second)
    assert kept(tiny) == [file] and file.read_bytes() == content
    for one, other in zip(
        first.autoencoder.state_dict().values(), second.autoencoder.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)
    assert second.train_step(next(second.dataloader_train))["record"].values == values


def test_its_numbers_are_its_own(tiny: Path):
    trainer = started(tiny, shape_iterations=2)
    before = torch.get_rng_state()
    for file in kept(tiny):
        file.unlink()
    again = shape_training.trained_weights(trainer)
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in trainer.autoencoder.state_dict().items():
        assert torch.equal(again[name], value), name


@pytest.mark.parametrize(
    "change", [{"shape_iterations": 3}, {"shape_batch_size": 3}, {"shape_learning_rate": 0.2}, {"seed": 8}]
)
def test_other_settings_make_another_one(change: dict, tiny: Path):
    started(tiny, shape_iterations=2)
    started(tiny, **change)
    assert len(kept(tiny)) == 2


def test_regions_in_another_order_make_another_one(tiny: Path):
    """nnU-Net numbers their channels in the order of dataset.json."""
    for labels in (REGIONS["labels"], dict(reversed(REGIONS["labels"].items()))):
        write_json(tiny, "dataset.json", read_json(tiny, "dataset.json") | REGIONS | {"labels": labels})
        started(tiny, shape_iterations=1)
    assert len(kept(tiny)) == 2


def test_it_is_made_from_the_labels_of_the_training_cases_alone(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    trainer = started(tiny, shape_iterations=2)
    read: list[str] = []
    kind = type(trainer.data.labeled)
    original = kind.load_case
    monkeypatch.setattr(kind, "load_case", lambda self, case: read.append(case) or original(self, case))
    kept(tiny)[0].unlink()
    shape_training.trained_weights(trainer)
    assert set(read) == {"case_000", "case_001"}
    geometry = shape_training.geometry_of(trainer)
    source = shape_training.made_from(trainer, geometry)
    labels = original(trainer.data.labeled, "case_000")[1][:].copy()
    labels[0, 0, 0, 0] += 1

    def relabeled(self: Any, case: str) -> Any:
        images, found, *rest = original(self, case)
        return images, labels if case == "case_000" else found, *rest

    monkeypatch.setattr(kind, "load_case", relabeled)
    other = shape_training.made_from(trainer, geometry)
    assert other["cases"]["case_001"] == source["cases"]["case_001"]
    assert shape_training.kept_file(trainer, other) != shape_training.kept_file(trainer, source)


def test_by_default_it_gets_a_tenth_of_the_iterations(tiny: Path):
    for epochs, iterations in ((2, 1), (100, 20), (10**6, 50_000)):
        assert shape_training.iterations_of(made(tiny, num_epochs=epochs)) == iterations
    assert shape_training.iterations_of(made(tiny, shape_iterations=7)) == 7


def test_a_damaged_file_is_made_anew(tiny: Path):
    started(tiny, shape_iterations=2)
    (file,) = kept(tiny)
    file.write_bytes(file.read_bytes()[:100])
    assert bool(started(tiny).autoencoder.trained)
    assert len(file.read_bytes()) > 1000


def test_where_it_cannot_be_kept_it_is_trained_all_the_same(tiny: Path):
    folder = Path(made(tiny, shape_iterations=2).preprocessed_dataset_folder)
    folder.with_name(f"{folder.name}_shapes").write_text("in the way")
    trainer = started(tiny)
    assert bool(trainer.autoencoder.trained)
    assert "WARNING: the shape autoencoder is not kept for other trainings" in log_of(trainer)


def test_a_training_that_continues_takes_it_from_its_checkpoint(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    trainer = started(tiny, shape_iterations=2)
    file = str(Path(trainer.output_folder) / "checkpoint_latest.pth")
    trainer.save_checkpoint(file)
    assert bool(read_checkpoint(file)["alhvr"]["network_shape_weights"]["trained"])
    monkeypatch.setattr(aau, "trained_weights", lambda _: pytest.fail("trained again"))
    resumed: Any = make_trainer(tiny, AAUTrainer, resume=True)
    resumed.load_checkpoint(file)
    resumed.on_train_start()
    for one, other in zip(trainer.autoencoder.parameters(), resumed.autoencoder.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("case", ["regions", "ignore", "3d", "3d, slice by slice"])
def test_other_kinds_of_data(case: str, tiny: Path):
    labels = {"background": 0, "shell": 1, "ignore": 2}
    changes = {"regions": REGIONS, "ignore": {"labels": labels}}.get(case, {})
    dataset_json = read_json(tiny, "dataset.json") | changes
    write_json(tiny, "dataset.json", dataset_json)
    if case == "ignore":
        for file in (tiny / "preprocessed" / "Dataset901_Tiny" / "ALHVRPlans_2d").glob("case_*.pkl"):
            properties = pickle.loads(file.read_bytes())
            locations = properties["class_locations"]
            locations[(-1, 0, 1)] = locations[1]  # where nnU-Net finds annotated voxels
            file.write_bytes(pickle.dumps(properties))
    plans, configuration = read_json(tiny, "ALHVRPlans.json"), "2d"
    if case.startswith("3d"):
        configuration = "3d_fullres"
        flat, volumes = (plans["configurations"][name] for name in ("2d", configuration))
        volumes["architecture"]["arch_kwargs"]["features_per_stage"] = [4] * volumes["architecture"]["arch_kwargs"][
            "n_stages"
        ]
        volumes |= {key: flat[key] for key in ("data_identifier", "batch_size", "alhvr")}
        volumes["patch_size"] = [8, 32, 32] if "slice" in case else [8, 16, 16]
    plans["configurations"][configuration]["alhvr"] |= {"shape_iterations": 2}
    trainer: Any = AAUTrainer(plans | {"continue_training": False}, configuration, 0, dataset_json, torch.device("cpu"))
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    assert shape_training.geometry_of(trainer).slice_by_slice == ("slice" in case)
    values = trainer.train_step(next(trainer.dataloader_train))["record"].values
    assert bool(trainer.autoencoder.trained)
    assert 0 < values["uncertainty"] < 1 and values["consistency"] > 0
