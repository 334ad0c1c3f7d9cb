"""nnU-Net's integration scenario with unlabelled cases in every fold: regions, ignore label, all configurations."""

from __future__ import annotations

import json
from pathlib import Path

import blosc2
import numpy as np
import pytest
import scenario
import SimpleITK as sitk
import torch
from data_builders import set_environment
from nnunetv2.run.run_training import get_trainer_from_args

from alhvr_trainer.errors import InputError
from alhvr_trainer.export.nnunet import export_nnunet
from alhvr_trainer.files.checkpoints import read_checkpoint
from alhvr_trainer.resources import ext_trainer_folder
from alhvr_trainer.training.cascade import FOLDER
from alhvr_trainer.training.predict_next_stage import predict_next_stage

pytestmark = pytest.mark.slow

FOLDS = 2
UNLABELED = ("case_002", "case_003", "case_004")  # one hidden, two from the folder
CASCADE = "3d_cascade_fullres"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("scenario")
    with pytest.MonkeyPatch.context() as environment:
        set_environment(environment, folder)
        environment.setenv("nnUNet_extTrainer", str(ext_trainer_folder()))
        scenario.phantoms(folder / "source", cases=FOLDS + 5)
        yield folder


def planned(root: Path, variant: str) -> None:
    if not (root / "raw" / scenario.dataset_name(variant)).exists():
        scenario.make_variant(root / "source" / "Dataset900_Source", root / "raw", variant, FOLDS)
        scenario.plan(variant, root / "preprocessed")


def model_folder(root: Path, variant: str, configuration: str) -> Path:
    name = f"{scenario.TRAINER}__{scenario.PLANS}__{configuration}"
    return root / "results" / scenario.dataset_name(variant) / name


def change_length(root: Path, variant: str, epochs: int) -> None:
    file = root / "preprocessed" / scenario.dataset_name(variant) / f"{scenario.PLANS}.json"
    plans = json.loads(file.read_text())
    for configuration in plans["configurations"].values():
        if "alhvr" in configuration:
            configuration["alhvr"]["num_epochs"] = epochs
    scenario.write_json(file, plans)


def assert_trained(fold: Path, epochs: int) -> None:
    checkpoint = read_checkpoint(fold / "checkpoint_final.pth")
    history = checkpoint["alhvr"]["history"]
    assert all(len(values) == epochs and np.isfinite(values).all() for values in history.values())
    shares = [history[f"share_{region}"] for region in ("omega1", "omega2a", "omega2b", "omega3")]
    np.testing.assert_allclose(np.sum(shares, axis=0), 1, atol=1e-3)
    assert json.loads((fold / "validation" / "summary.json").read_text())["metric_per_case"]


def assert_predicts(root: Path, variant: str, configuration: str, folds: tuple[int, ...] = (0,)) -> None:
    """Test cases on their own grids, with no label that the dataset lacks."""
    output = root / "predicted" / variant / configuration
    scenario.predict(variant, configuration, root / "raw", output, folds)
    images = root / "raw" / scenario.dataset_name(variant) / "imagesTs"
    for file in images.iterdir():
        image = sitk.ReadImage(str(file))
        found = sitk.ReadImage(str(output / file.name.replace("_0000", "")))
        assert found.GetSize() == image.GetSize()
        assert set(np.unique(sitk.GetArrayViewFromImage(found))) <= ({0, 1} if variant == "ignore" else {0, 1, 2})


@pytest.mark.parametrize("variant", scenario.VARIANTS)
def test_2d_trains_resumes_validates_exports_and_predicts(variant: str, root: Path):
    planned(root, variant)
    change_length(root, variant, 1)
    scenario.train(variant, "2d", 0)
    change_length(root, variant, 2)
    scenario.train(variant, "2d", 0, continue_training=True)
    folder = model_folder(root, variant, "2d")
    assert_trained(folder / "fold_0", epochs=2)
    assert_predicts(root, variant, "2d")
    export_nnunet(scenario.dataset_id(variant), "2d", 0, output=str(root / f"{variant}.zip"))
    assert (root / f"{variant}.zip").stat().st_size > 10_000


@pytest.mark.parametrize("variant", ["labels", "regions_ignore"])
def test_cascade(variant: str, root: Path):
    """3d_lowres in all folds, as its predictions of validation cases are what the cascade's labelled cases need."""
    planned(root, variant)
    change_length(root, variant, 1)
    with pytest.raises(InputError, match=r"no segmentation of 3d_lowres in .*: it is predicted by .* nnUNetv2_"):
        scenario.train(variant, CASCADE, 0)
    for fold in range(FOLDS):
        scenario.train(variant, "3d_lowres", fold)
    folder = model_folder(root, variant, "3d_lowres")
    segmentations = folder / "fold_0" / FOLDER / CASCADE
    assert {file.stem for file in segmentations.iterdir()} == set(UNLABELED)
    full = root / "preprocessed" / scenario.dataset_name(variant) / f"{scenario.PLANS}_3d_fullres_unlabeled"
    stored = {case: blosc2.open(str(segmentations / f"{case}.b2nd"))[:] for case in UNLABELED}
    for case, segmentation in stored.items():
        assert segmentation.shape == blosc2.open(str(full / f"{case}.b2nd")).shape[1:]
        assert set(np.unique(segmentation)) <= {0, 1, 2}

    (segmentations / f"{UNLABELED[1]}.b2nd").unlink()
    command = rf"alhvr predict_next_stage -d {scenario.dataset_name(variant)} -c 3d_lowres .* -f 0"
    with pytest.raises(InputError, match=f'case "{UNLABELED[1]}" has no segmentation of 3d_lowres .*{command}'):
        scenario.train(variant, CASCADE, 0)
    predict_next_stage(scenario.dataset_name(variant), "3d_lowres", 0, device="cpu")
    for case, segmentation in stored.items():
        np.testing.assert_array_equal(blosc2.open(str(segmentations / f"{case}.b2nd"))[:], segmentation)

    scenario.train(variant, CASCADE, 0)
    assert_trained(model_folder(root, variant, CASCADE) / "fold_0", epochs=1)
    assert_predicts(root, variant, CASCADE)


def test_predict_next_stage_of_a_last_stage(root: Path):
    variant = "labels"
    planned(root, variant)
    change_length(root, variant, 1)
    if not (model_folder(root, variant, "2d") / "fold_0").exists():
        scenario.train(variant, "2d", 0)
    with pytest.raises(InputError, match='2d of ALHVRPlans has no "next_stage"'):
        predict_next_stage(scenario.dataset_name(variant), "2d", 0, device="cpu")
    with pytest.raises(InputError, match=r"fold is \(0, 1\); name one: every fold predicts its own"):
        predict_next_stage(scenario.dataset_name(variant), "2d", (0, 1), device="cpu")


@pytest.mark.parametrize("variant", ["ignore", "regions_ignore"])
def test_ignored_voxels_change_nothing(variant: str, root: Path):
    """The labelled samples' loss does not see what a network says where nobody annotated."""
    planned(root, variant)
    args = (scenario.dataset_id(variant), "2d", 0, scenario.TRAINER, scenario.PLANS)
    trainer = get_trainer_from_args(*args, device=torch.device("cpu"))
    trainer.initialize()
    heads = trainer.label_manager.num_segmentation_heads
    label = torch.zeros(2, heads + 1 if trainer.label_manager.has_regions else 1, 24, 24)
    label[:, -1, :, 12:] = 1 if trainer.label_manager.has_regions else trainer.label_manager.ignore_label
    target, valid = trainer.split_target(torch.cat((label, torch.ones(2, 1, 24, 24)), dim=1).short())
    assert valid is None and len(target) == trainer.labeled_batch_size == 1
    loss = trainer.loss.loss if trainer.enable_deep_supervision else trainer.loss
    logits = torch.randn(1, heads, 24, 24)
    changed, seen = logits.clone(), logits.clone()
    changed[..., 12:] += 5 * torch.randn(1, heads, 24, 12)
    seen[..., :12] += 5 * torch.randn(1, heads, 24, 12)
    assert loss(changed, target).item() == pytest.approx(loss(logits, target).item(), abs=1e-6)
    assert loss(seen, target).item() != pytest.approx(loss(logits, target).item(), abs=1e-3)


@pytest.mark.parametrize("variant", ["regions", "regions_ignore"])
def test_batches_of_regions_end_with_the_validity_mask(variant: str, root: Path):
    """nnU-Net's conversion to regions would drop it; patches here reach beyond the image."""
    planned(root, variant)
    args = (scenario.dataset_id(variant), "2d", 0, scenario.TRAINER, scenario.PLANS)
    trainer = get_trainer_from_args(*args, device=torch.device("cpu"))
    trainer.initialize()
    trainer.configuration_manager.configuration["patch_size"] = [48, 48]  # larger than the slices
    trainer.dataloader_train, _ = trainer.get_dataloaders()
    regions = trainer.label_manager.num_segmentation_heads + (trainer.label_manager.ignore_label is not None)
    batch = next(trainer.dataloader_train)
    full = batch["target"][0]
    assert full.shape[1] == regions + 1 and batch["target"][1].shape[1] == regions + 1
    _, valid = trainer.split_target(batch["target"])
    assert valid is not None and 0.1 < valid.float().mean() < 0.9
    assert not full[:, :-1][full[:, -1:].expand_as(full[:, :-1]) == 0].any()  # no label in the padding


def test_a_case_without_annotated_voxels_can_be_unlabeled(root: Path):
    """With an ignore label nnU-Net aims every patch at annotated voxels; unlabelled cases have none."""
    planned(root, "ignore")
    args = (scenario.dataset_id("ignore"), "2d", 0, scenario.TRAINER, scenario.PLANS)
    trainer = get_trainer_from_args(*args, device=torch.device("cpu"))
    trainer.initialize()
    loader = trainer.get_dataloaders()[0].data_loader
    assert loader.has_ignore
    lower = {tuple(loader.get_bbox((18, 30, 26), False, None)[0]) for _ in range(20)}
    assert len(lower) > 1 and loader.has_ignore
