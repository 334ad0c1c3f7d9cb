"""The researcher's path through the real commands on tiny phantoms: plan, train, validate, predict, evaluate."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from trained_models import assert_same_files, run_command

from alhvr_trainer.experiments.demo.phantom import write_dataset
from alhvr_trainer.resources import ext_trainer_folder, plans_folder
from alhvr_trainer.trainers.checkpoints import read_checkpoint

pytestmark = pytest.mark.slow

DATASET = "Dataset917_Phantom"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("workflow")
    folders = {f"nnUNet_{name}": str(root / name) for name in ("raw", "preprocessed", "results")}
    for folder in folders.values():
        Path(folder).mkdir()
    written = write_dataset(
        root / "raw", labeled=3, unlabeled=3, test=3, val=1, shape=(3, 40, 36), dataset_id=int(DATASET[7:10])
    )
    assert written.name == DATASET
    return {
        **os.environ,
        **folders,
        "nnUNet_extTrainer": str(ext_trainer_folder()),
        "nnUNet_def_n_proc": "1",
        "nnUNet_n_proc_DA": "0",
        "root": str(root),
    }


def run(environment: dict[str, str], *words: object) -> str:
    return run_command(*words, env=environment, cwd=Path(environment["root"]))


def train(environment: dict[str, str], *flags: str) -> str:
    return run(
        environment, "nnUNetv2_train", "917", "2d", "0", "-tr", "ALHVRTrainer", "-p", "Tiny", "-device", "cpu", *flags
    )


@pytest.fixture(scope="module")
def fold(environment: dict[str, str]) -> Path:
    """Output folder of a fold that was planned from ready plans, trained for two epochs and validated."""
    root = Path(environment["root"])
    ready = json.loads((plans_folder() / "demo.json").read_text())
    ready["plans_name"] = "Tiny"
    configuration = ready["configurations"]["2d"]
    configuration["batch_size"] = 4
    configuration["patch_size"] = [32, 32]
    configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 4, 4, 4]
    configuration["alhvr"] = {
        "unlabeled_batch_size": 2,
        "seed": 0,
        "num_epochs": 2,
        "num_iterations_per_epoch": 3,
        "num_val_iterations_per_epoch": 1,
    }
    (root / "tiny.json").write_text(json.dumps(ready))
    printed = run(environment, "alhvr", "plan_and_preprocess", "-d", "917", "-c", "2d", "--plans_file", "tiny.json")
    assert "nnUNetv2_plan_and_preprocess" in printed  # the nnU-Net command that it stands for
    train(environment)
    return root / "results" / DATASET / "ALHVRTrainer__Tiny__2d" / "fold_0"


def test_training_leaves_what_nnunet_users_expect(fold: Path):
    for name in ("checkpoint_final.pth", "checkpoint_best.pth", "progress.png", "progress_alhvr.png", "debug.json"):
        assert (fold / name).is_file(), name
    assert not (fold / "checkpoint_latest.pth").exists()
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 1
    log = next(fold.glob("training_log_*.txt")).read_text()
    assert "3 unlabeled cases" in log and "2 labeled + 2 unlabeled samples per step" in log


def test_validation_alone_and_continuing_a_finished_training(environment: dict[str, str], fold: Path):
    before = (fold / "validation" / "summary.json").read_text()
    weights = read_checkpoint(fold / "checkpoint_final.pth")["network_weights"]
    (fold / "validation" / "summary.json").unlink()
    assert "Validation complete" in train(environment, "--val")
    again = json.loads((fold / "validation" / "summary.json").read_text())
    assert again["foreground_mean"] == json.loads(before)["foreground_mean"]
    assert "Training done" in train(environment, "--c")
    after = read_checkpoint(fold / "checkpoint_final.pth")["network_weights"]
    assert all(torch.equal(weights[key], after[key]) for key in weights)


def test_stock_network_predicts_the_same(environment: dict[str, str], fold: Path):
    """``network_weights`` load strictly into the network of stock nnU-Net; nnUNetv2_predict gives its files."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    root = Path(environment["root"])
    images, out = root / "raw" / DATASET / "imagesTs", root / "predicted"
    run(
        environment,
        *("nnUNetv2_predict", "-i", images, "-o", out, "-d", "917", "-c", "2d", "-f", "0"),
        *("-tr", "ALHVRTrainer", "-p", "Tiny", "-device", "cpu", "-npp", "1", "-nps", "1"),
    )
    checkpoint = read_checkpoint(fold / "checkpoint_final.pth")
    dataset_json = json.loads((fold.parent / "dataset.json").read_text())
    plans = PlansManager(str(fold.parent / "plans.json"))
    configuration = plans.get_configuration("2d")
    heads = plans.get_label_manager(dataset_json).num_segmentation_heads
    network = nnUNetTrainer.build_network_architecture(plans, configuration, 1, heads, enable_deep_supervision=False)
    network.load_state_dict(checkpoint["network_weights"], strict=True)
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.manual_initialization(
        network,
        plans,
        configuration,
        [checkpoint["network_weights"]],
        dataset_json,
        "nnUNetTrainer",
        checkpoint["inference_allowed_mirroring_axes"],
    )
    stock = root / "stock"
    stock.mkdir(exist_ok=True)
    predictor.predict_from_files_sequential(str(images), str(stock), overwrite=True)
    assert_same_files(stock, out)


def test_evaluation_of_the_prediction(environment: dict[str, str], fold: Path):
    root = Path(environment["root"])
    labels = root / "raw" / DATASET / "labelsTs"
    perfect = root / "perfect"
    perfect.mkdir(exist_ok=True)
    for file in labels.glob("*.nii.gz"):
        image = sitk.ReadImage(str(file))
        assert np.unique(sitk.GetArrayFromImage(image)).tolist() == [0, 1, 2, 3]
        sitk.WriteImage(image, str(perfect / file.name))
    printed = run(
        environment,
        *("alhvr", "evaluate", "--predictions", perfect, "--references", labels),
        *("--dataset_json", root / "raw" / DATASET / "dataset.json", "--output", root / "scores"),
    )
    assert "1.000 ± 0.000" in printed
    scores = json.loads((root / "scores" / "metrics.json").read_text())
    assert scores["overall"]["Dice"]["mean"] == 1.0 and scores["overall"]["HD95"]["mean"] == 0.0


def test_bad_input_is_one_line_and_a_failure(environment: dict[str, str], fold: Path):
    import subprocess
    import sysconfig

    program = Path(sysconfig.get_path("scripts")) / "alhvr"
    result = subprocess.run(
        [program, "plan_and_preprocess", "-d", "916", "-c", "2d"], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("alhvr: ") and "Traceback" not in result.stderr
