"""What nnU-Net users expect of any trainer: its flags, its switches, its plans and datasets, on tiny trainings."""

from __future__ import annotations

import functools
import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import data_builders
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from data_builders import NAME, QUICK, SPLIT, make_tiny, read_json, set_environment, write_json
from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiments, preprocess
from nnunetv2.experiment_planning.plans_for_pretraining.move_plans_between_datasets import move_plans_between_datasets
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint, run_training
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch._dynamo import OptimizedModule

from alhvr_trainer.errors import InputError
from alhvr_trainer.planning.plan_and_preprocess import plan_and_preprocess
from alhvr_trainer.resources import ext_trainer_folder
from alhvr_trainer.trainers.checkpoints import read_checkpoint
from alhvr_trainer.trainers.partners import unwrapped

pytest_plugins = ["planned_dataset"]

CPU = torch.device("cpu")
SCANS = ["scan_000", "scan_001", "scan_002"]
SHAPE = (8, 40, 36)


def train(fold: Any = 0, trainer: str = "ALHVRTrainer", plans: str = "ALHVRPlans", **flags: Any) -> None:
    """``nnUNetv2_train 901 2d FOLD -tr TRAINER -p PLANS -device cpu``: trains, then validates."""
    run_training("901", "2d", fold, trainer, plans, device=CPU, **flags)


def make(fold: Any = 0, trainer: str = "ALHVRTrainer", plans: str = "ALHVRPlans", dataset: str = "901") -> Any:
    """The trainer that the command would build."""
    return get_trainer_from_args(dataset, "2d", fold, trainer, plans, device=CPU)


def output(root: Path, fold: Any = 0, trainer: str = "ALHVRTrainer") -> Path:
    return root / "results" / NAME / f"{trainer}__ALHVRPlans__2d" / f"fold_{fold}"


def log_of(folder: Path) -> str:
    return "".join(file.read_text() for file in sorted(folder.glob("training_log_*.txt")))


def segmentations(folder: Path) -> dict[str, np.ndarray]:
    files = sorted((folder / "validation").glob("*.nii.gz"))
    return {file.name.removesuffix(".nii.gz"): sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in files}


def shorten(trainer: nnUNetTrainer, epochs: int = 1) -> nnUNetTrainer:
    """A training of a second, where the plans cannot say so."""
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = epochs, 1, 1
    return trainer


@pytest.fixture(scope="module")
def root(planned_once: Path, tmp_path_factory: pytest.TempPathFactory):
    """A tiny planned dataset, and an environment in which nnU-Net finds it and our trainers, for the whole module."""
    folder = tmp_path_factory.mktemp("features") / "nnunet"
    shutil.copytree(planned_once, folder)
    with pytest.MonkeyPatch.context() as environment:
        set_environment(environment, folder)
        environment.setenv("nnUNet_extTrainer", str(ext_trainer_folder()))
        yield make_tiny(folder)


@pytest.fixture(scope="module")
def trained(root: Path) -> Path:
    """Fold 0, trained and validated with --npz."""
    train(export_validation_probabilities=True)
    return output(root)


# --- flags of nnUNetv2_train --------------------------------------------------------------------------------------


def test_npz_holds_the_probabilities_of_the_validation_cases(trained: Path):
    found = segmentations(trained)
    assert list(found) == SPLIT["val"]
    for case, segmentation in found.items():
        probabilities = np.load(trained / "validation" / f"{case}.npz")["probabilities"]
        assert probabilities.shape == (3, *SHAPE)
        np.testing.assert_allclose(probabilities.astype(np.float32).sum(0), 1, atol=1e-2)  # stored as float16
        np.testing.assert_array_equal(probabilities.argmax(0), segmentation)
        assert (trained / "validation" / f"{case}.pkl").is_file()


@pytest.mark.slow
def test_validation_alone_uses_the_final_or_the_best_checkpoint(trained: Path):
    before, files = segmentations(trained), {file.name for file in trained.glob("checkpoint_*")}
    assert files == {"checkpoint_final.pth", "checkpoint_best.pth"}
    best = read_checkpoint(trained / "checkpoint_best.pth")
    for key, value in best["network_weights"].items():
        if ".seg_layers." in key and key.endswith("bias"):
            value.copy_(torch.tensor([0.0, 0.0, 100.0]))  # everything is class 2
    torch.save(best, trained / "checkpoint_best.pth")
    written = (trained / "checkpoint_final.pth").stat().st_mtime_ns
    shutil.rmtree(trained / "validation")
    train(only_run_validation=True)
    for case, segmentation in segmentations(trained).items():
        np.testing.assert_array_equal(segmentation, before[case])
    assert not list((trained / "validation").glob("*.npz"))
    train(only_run_validation=True, val_with_best=True)
    after = segmentations(trained)
    assert list(after) == SPLIT["val"] and all((segmentation == 2).all() for segmentation in after.values())
    assert (trained / "checkpoint_final.pth").stat().st_mtime_ns == written


def test_flags_that_contradict_each_other_are_refused(root: Path):
    with pytest.raises(AssertionError, match="--val_best is not compatible with --disable_checkpointing"):
        train(3, val_with_best=True, disable_checkpointing=True)
    with pytest.raises(AssertionError, match="Cannot set --c and --val flag at the same time"):
        train(3, continue_training=True, only_run_validation=True)
    with pytest.raises(RuntimeError, match="Cannot run validation because the training is not finished yet"):
        train(3, only_run_validation=True)


@pytest.mark.slow
def test_disabled_checkpointing_trains_and_validates(root: Path, monkeypatch: pytest.MonkeyPatch):
    """With nnU-Net's switch for torch.compile on, which it refuses on the CPU."""
    monkeypatch.setenv("nnUNet_compile", "true")
    train(trainer="ALHVRTrainer_1epoch", disable_checkpointing=True)
    folder = output(root, trainer="ALHVRTrainer_1epoch")
    assert not list(folder.rglob("*.pth"))
    assert len(json.loads((folder / "validation" / "summary.json").read_text())["metric_per_case"]) == 2
    log = log_of(folder)
    assert "No checkpoint written, checkpointing is disabled" in log and "Validation complete" in log
    assert "INFO: torch.compile disabled because device is CPU" in log


# --- fold all -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_fold_all_trains_validates_and_continues(root: Path):
    train("all")
    folder, plans = output(root, "all"), read_json(root, "ALHVRPlans.json")
    assert list(segmentations(folder)) == [*SPLIT["train"], *SPLIT["val"]]
    first = read_checkpoint(folder / "checkpoint_final.pth")
    assert first["current_epoch"] == QUICK["num_epochs"]
    plans["configurations"]["2d"]["alhvr"]["num_epochs"] += 1
    try:
        write_json(root, "ALHVRPlans.json", plans)
        trainer = get_trainer_from_args("901", "2d", "all", "ALHVRTrainer", "ALHVRPlans", True, CPU)
        maybe_load_checkpoint(trainer, continue_training=True, validation_only=False)
        trainer.run_training()
    finally:
        plans["configurations"]["2d"]["alhvr"]["num_epochs"] -= 1
        write_json(root, "ALHVRPlans.json", plans)
    second = read_checkpoint(folder / "checkpoint_final.pth")
    assert second["current_epoch"] == QUICK["num_epochs"] + 1
    for key, values in second["alhvr"]["history"].items():
        assert len(values) == QUICK["num_epochs"] + 1 and values[:-1] == first["alhvr"]["history"][key]
    assert "ALHVR: 5 unlabeled cases" in log_of(folder)


@pytest.mark.parametrize("fold", ["all", 4])
def test_hidden_cases_stay_hidden_in_folds_outside_the_splits_file(root: Path, fold: Any):
    """nnU-Net takes every preprocessed case for such a fold: the labels of hidden ones would be trained on."""
    trainer = make(fold)
    trainer.initialize()
    both, validation = trainer.get_tr_and_val_datasets()
    labeled = {*both.labeled.identifiers, *validation.identifiers}
    assert labeled <= {*SPLIT["train"], *SPLIT["val"]}
    assert both.unlabeled.identifiers == [*SPLIT["unlabeled"], *SCANS]
    if fold == "all":
        assert both.labeled.identifiers == validation.identifiers == [*SPLIT["train"], *SPLIT["val"]]
    train_cases, validation_cases = make(fold, "SupervisedTrainer").do_split()
    assert sorted(train_cases) == both.labeled.identifiers and sorted(validation_cases) == validation.identifiers
    assert "2 cases stay unlabeled: no fold of splits_final.json trains on them" in log_of(Path(trainer.output_folder))


def test_fold_all_takes_all_labels_where_none_is_hidden(planned: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("nnUNet_extTrainer", str(ext_trainer_folder()))
    for folder in ("raw", "preprocessed"):
        data_builders.write_splits(planned / folder / NAME, {key: SPLIT[key] for key in ("train", "val")})
    trainer = make("all")
    trainer.initialize()
    both, _ = trainer.get_tr_and_val_datasets()
    assert both.labeled.identifiers == sorted(case for cases in SPLIT.values() for case in cases)
    assert both.unlabeled.identifiers == SCANS


def test_fold_outside_the_splits_file_that_leaves_no_label(planned: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("nnUNet_extTrainer", str(ext_trainer_folder()))
    hidden = [f"case_{number:03d}" for number in range(1, 6)]
    for folder in ("raw", "preprocessed"):
        data_builders.write_splits(planned / folder / NAME, {"train": ["case_000"], "unlabeled": hidden, "val": []})
    trainer = make(1)
    with pytest.raises(InputError, match=r"fold 1 is not in splits_final.json.*train one of the folds 0 to 0"):
        trainer.do_split()


# --- plans and weights from elsewhere -----------------------------------------------------------------------------


@pytest.mark.slow
def test_stock_residual_encoder_plans(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")  # nnU-Net's planner fails on 0
    assert plan_experiments([901], "nnUNetPlannerResEncM") == "nnUNetResEncUNetMPlans"
    preprocess([901], "nnUNetResEncUNetMPlans", ["2d"], [1])
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    assert "alhvr" not in read_json(root, "nnUNetResEncUNetMPlans.json")["configurations"]["2d"]
    trainer = shorten(make(plans="nnUNetResEncUNetMPlans"))
    trainer.run_training()
    assert type(trainer.network).__name__ == type(trainer.partners["b"]).__name__ == "ResidualEncoderUNet"
    assert all(np.isfinite(values).all() and len(values) == 1 for values in trainer.monitor.history.values())
    assert (Path(trainer.output_folder) / "checkpoint_final.pth").is_file()


@pytest.mark.slow
def test_plans_moved_to_another_dataset(root: Path):
    other = data_builders.make_dataset(
        root / "raw", "Dataset902_Moved", labeled=5, unlabeled=2, channels=["CT"], shape=SHAPE, spacing=(1.2, 1.2, 5)
    )
    preprocessed = root / "preprocessed" / other.name
    # nnU-Net needs a planned target, too: planning brings dataset.json to the preprocessed data
    plan_and_preprocess("902", "2d", num_processes=1, verify_dataset_integrity=False, no_pp=True)
    move_plans_between_datasets(901, 902, "ALHVRPlans", "PlansFrom901")
    preprocess([902], "PlansFrom901", ["2d"], [1])
    trainer = make(dataset="902", plans="PlansFrom901")
    assert trainer.settings.as_dict() == make().settings.as_dict()
    shorten(trainer).run_training()
    assert f"preprocessing 2 unlabeled cases into {preprocessed / 'PlansFrom901_2d_unlabeled'}" in log_of(
        Path(trainer.output_folder)
    )
    assert trainer.dataloader_train.data_loader._data.unlabeled.identifiers == ["scan_000", "scan_001"]
    assert set(trainer.dataloader_train.data_loader._data.labeled.identifiers) < {f"case_00{i}" for i in range(5)}
    assert all(np.isfinite(values).all() for values in trainer.monitor.history.values())


def test_stock_trainer_starts_from_our_weights(trained: Path):
    file = trained / "checkpoint_final.pth"
    ours = read_checkpoint(file)["network_weights"]
    stock = shorten(make(trainer="nnUNetTrainer"))
    maybe_load_checkpoint(stock, continue_training=False, validation_only=False, pretrained_weights_file=str(file))
    assert type(stock) is nnUNetTrainer
    start = {key: value.clone() for key, value in stock.network.state_dict().items()}
    assert start.keys() == ours.keys()
    for key, value in start.items():
        if ".seg_layers." not in key:
            assert torch.equal(value, ours[key]), key
    stock.run_training()
    assert not all(torch.equal(value, start[key]) for key, value in stock.network.state_dict().items())


# --- nnU-Net's environment switches -------------------------------------------------------------------------------


@pytest.mark.parametrize(("compile_it", "processes"), [("false", "0"), ("true", "2")])
def test_environment_switches(root: Path, monkeypatch: pytest.MonkeyPatch, compile_it: str, processes: str):
    monkeypatch.setenv("nnUNet_compile", compile_it)
    monkeypatch.setenv("nnUNet_n_proc_DA", processes)
    others = set(multiprocessing.active_children())
    trainer = make(trainer="ALHVRTrainer_1epochs")  # its folder is not another test's
    workers: set[Any] = set()
    step = trainer.train_step

    def counted(batch: dict) -> dict:
        workers.update(set(multiprocessing.active_children()) - others)
        return step(batch)

    trainer.train_step = counted
    trainer.run_training()
    assert len(workers) == {"0": 0, "2": 3}[processes]  # two for training, one for validation
    assert not any(worker.is_alive() for worker in workers)
    assert len(trainer.monitor.history["gamma"]) == 1 and np.isfinite(trainer.monitor.history["gamma"]).all()
    log = log_of(Path(trainer.output_folder))
    assert ("torch.compile disabled because device is CPU" in log) == (compile_it == "true")
    shutil.rmtree(trainer.output_folder)


@pytest.mark.slow
def test_compiled_training_is_the_same(root: Path, monkeypatch: pytest.MonkeyPatch):
    """torch.compile as nnU-Net switches it on elsewhere, here with a backend that needs no compiler."""
    eager = make(trainer="ALHVRTrainer_1epochs")
    eager.run_training()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(nnUNetTrainer, "_do_i_compile", lambda self: True)
    compiled = make(trainer="ALHVRTrainer_1epochs")
    compiled.run_training()
    assert isinstance(compiled.network, OptimizedModule) and isinstance(compiled.passes["b"]._encode, OptimizedModule)
    for one, other in ((eager.network, compiled.network), (eager.partners["b"], compiled.partners["b"])):
        expected = one.state_dict()
        for key, value in unwrapped(other).state_dict().items():
            torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5)
    again = make(trainer="ALHVRTrainer_1epochs")
    again.load_checkpoint(str(Path(compiled.output_folder) / "checkpoint_final.pth"))
    shutil.rmtree(compiled.output_folder)


@pytest.mark.slow
def test_weights_and_biases_gets_the_history(root: Path, monkeypatch: pytest.MonkeyPatch):
    wandb = pytest.importorskip("wandb")
    from nnunetv2.training.logging import nnunet_logger

    monkeypatch.setattr(nnunet_logger, "wandb", wandb)  # nnU-Net imports it once
    for variable, value in {
        "nnUNet_wandb_enabled": "1",
        "nnUNet_wandb_mode": "offline",
        "WANDB_MODE": "offline",
    }.items():
        monkeypatch.setenv(variable, value)
    trainer = make(trainer="ALHVRTrainer_2epochs")
    try:
        trainer.run_training()
        run = trainer.logger.loggers[0].run
        assert run.step == trainer.num_epochs - 1
        run.log({}, commit=True)  # else the last epoch arrives when the process ends, after which nothing can be read
        for key in trainer.monitor.keys.all():
            assert run.summary[f"alhvr/{key}"] == pytest.approx(trainer.monitor.history[key][-1]), key
        assert run.summary["train_losses"] == pytest.approx(trainer.monitor.history["supervised_a"][-1])
    finally:
        wandb.finish()
    assert list(Path(trainer.output_folder).glob("wandb/offline-run-*/*.wandb"))
