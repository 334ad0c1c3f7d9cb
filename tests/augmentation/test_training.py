"""Trainings with augmentation on the training's device."""

from __future__ import annotations

from pathlib import Path

import pytest
import scenario
import torch
from data_builders import change_settings, read_json, write_json
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from scenario_checks import FOLDS, assert_trained, model_folder, planned
from tiny_training import make_trainer

from alhvr_trainer.errors import InputError
from alhvr_trainer.trainers.alhvr import ALHVRTrainer
from alhvr_trainer.trainers.checkpoints import read_checkpoint
from alhvr_trainer.trainers.fixmatch import FixMatchTrainer
from alhvr_trainer.trainers.samples import take_apart
from alhvr_trainer.trainers.supervised import SupervisedTrainer
from alhvr_trainer.trainers.variants import trainer_named

pytest_plugins = ["planned_dataset", "scenario_checks"]


class Interrupted(Exception):
    pass


@pytest.fixture
def device(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny dataset, trained for two epochs with augmentation on the device."""
    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", lambda *_a, **_k: None)
    change_settings(tiny, augmentation="device", num_epochs=2, num_iterations_per_epoch=3, seed=3)
    return tiny


def trained(root: Path, kind: type[nnUNetTrainer], results: str, stop_in: int | None = None, resume: bool = False):
    """The final checkpoint, of a training that saves after every epoch; None: it was interrupted."""
    trainer = make_trainer(root, kind, resume=resume)
    trainer.output_folder_base = str(root / results / kind.__name__)
    trainer.output_folder = str(root / results / kind.__name__ / "fold_0")
    trainer.save_every = 1
    Path(trainer.output_folder).mkdir(parents=True, exist_ok=True)
    trainer.initialize()
    if resume:
        trainer.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
    step = trainer.train_step

    def stopping(batch: dict) -> dict:
        if trainer.current_epoch == stop_in:
            raise Interrupted
        return step(batch)

    trainer.train_step = stopping
    if stop_in is not None:
        with pytest.raises(Interrupted):
            trainer.run_training()
        return None
    trainer.run_training()
    return read_checkpoint(Path(trainer.output_folder) / "checkpoint_final.pth")


@pytest.mark.parametrize("kind", [SupervisedTrainer, ALHVRTrainer, FixMatchTrainer])
def test_an_interrupted_training_ends_alike(kind: type[nnUNetTrainer], device: Path):
    expected = trained(device, kind, "at_once")
    trained(device, kind, "stopped", stop_in=1)
    found = trained(device, kind, "stopped", resume=True)
    assert found is not None and expected is not None
    for name, weight in expected["network_weights"].items():
        assert torch.equal(found["network_weights"][name], weight), name


def test_the_setting_takes_effect(device: Path):
    one = trained(device, ALHVRTrainer, "device")
    change_settings(device, augmentation="stock")
    other = trained(device, ALHVRTrainer, "stock")
    assert one is not None and other is not None
    weights = one["network_weights"]
    assert any(not torch.equal(weights[name], other["network_weights"][name]) for name in weights)


def test_fixmatch_has_a_weak_and_a_second_view(device: Path):
    """Both with the same geometry; labeled patches as nnU-Net augments them, unlabeled ones with a box cut out."""
    change_settings(device, cutout=0.5, strong_transforms=2)
    trainer = make_trainer(device, FixMatchTrainer)
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    erased = []
    for _ in range(4):
        batch = next(loader)
        weak, second = trainer.views(batch["data"])
        assert weak.shape == second.shape == (4, 1, *trainer.configuration_manager.patch_size)
        samples = take_apart(batch, 2, torch.device("cpu"))
        cut = [(second[n] == 0) & (weak[n] != 0) for n in range(4)]
        erased.append([float(c.float().mean()) for c in cut])
        assert samples.valid is not None and not any(samples.valid[n][cut[n][0]].any() for n in (2, 3))
        assert all(torch.corrcoef(torch.stack((weak[n].flatten(), second[n].flatten())))[0, 1] > 0.3 for n in (0, 1))
    mean = torch.tensor(erased).mean(dim=0)
    assert (mean[:2] < 0.01).all() and (mean[2:] > 0.04).all()


def test_trainers_that_change_nnunets_augmentation_keep_what_they_changed(device: Path):
    for name, steps in (("ALHVRTrainerNoMirroring", 8), ("ALHVRTrainerNoDA", 1), ("ALHVRTrainer", 9)):
        trainer = make_trainer(device, trainer_named(name))
        trainer.initialize()
        loader = trainer.get_dataloaders()[0].data_loader
        assert len(loader.augment.steps) == steps and next(loader)["data"].shape[0] == 4, name
        assert (loader.augment.spatial is None) == name.endswith("NoDA")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "configurations"),
    [("regions_ignore", ("2d",)), ("labels", ("3d_lowres", "3d_cascade_fullres"))],
    ids=["regions and ignore label", "cascade"],
)
def test_all_kinds_of_labels_train(variant, configurations, scenario_root: Path):
    """The log says that the cascade's changes of the previous stage run on the CPU."""
    planned(scenario_root, variant, *configurations)
    file = scenario_root / "preprocessed" / scenario.dataset_name(variant) / f"{scenario.PLANS}.json"
    plans = scenario.json.loads(file.read_text())
    for configuration in plans["configurations"].values():
        if "alhvr" in configuration:
            configuration["alhvr"]["augmentation"] = "device"
    file.write_text(scenario.json.dumps(plans))
    for configuration in configurations:
        for number in range(FOLDS if configuration == "3d_lowres" else 1):
            scenario.train(variant, configuration, number)
        fold = model_folder(scenario_root, variant, configuration) / "fold_0"
        assert_trained(fold, epochs=2)
        log = next(fold.glob("training_log*.txt")).read_text()
        assert "ALHVR: augmentation on cpu, cases on host" in log
        assert ("runs on the CPU, sample by sample" in log) == (configuration == "3d_cascade_fullres")


def test_validation_is_nnunets_own(device: Path):
    trainer = make_trainer(device)
    trainer.initialize()
    _, validation = trainer.get_dataloaders()
    assert type(validation.data_loader).__name__ == "NumberedLoader"


def test_plans_with_a_wrong_value_are_refused(tiny: Path):
    plans = read_json(tiny, "ALHVRPlans.json")
    plans["configurations"]["2d"]["alhvr"]["augmentation"] = "gpu"
    write_json(tiny, "ALHVRPlans.json", plans)
    with pytest.raises(
        InputError, match=r'"alhvr\.augmentation" in the plans is .gpu.; it should be .stock. or .device.'
    ):
        make_trainer(tiny)
