"""nnU-Net's integration scenario with unlabeled cases in every fold, in 2D: regions, ignore label."""

from __future__ import annotations

from pathlib import Path

import pytest
import scenario
import torch
from nnunetv2.run.run_training import get_trainer_from_args
from scenario_checks import assert_predicts, assert_trained, model_folder, planned

from alhvr_trainer.export.stock_model import export_nnunet
from alhvr_trainer.trainers.samples import take_apart

pytestmark = pytest.mark.slow
pytest_plugins = ["scenario_checks"]


@pytest.mark.parametrize("variant", scenario.VARIANTS)
def test_2d_trains_resumes_validates_exports_and_predicts(variant: str, scenario_root: Path):
    planned(scenario_root, variant, "2d")
    scenario.change_length(variant, scenario_root / "preprocessed", 1)
    scenario.train(variant, "2d", 0)
    scenario.change_length(variant, scenario_root / "preprocessed", 2)
    scenario.train(variant, "2d", 0, continue_training=True)
    folder = model_folder(scenario_root, variant, "2d")
    assert_trained(folder / "fold_0", epochs=2)
    assert_predicts(scenario_root, variant, "2d")
    export_nnunet(scenario.dataset_id(variant), "2d", 0, output=str(scenario_root / f"{variant}.zip"))
    assert (scenario_root / f"{variant}.zip").stat().st_size > 10_000


@pytest.mark.parametrize("variant", ["ignore", "regions_ignore"])
def test_ignored_voxels_change_nothing(variant: str, scenario_root: Path):
    """The labeled samples' loss does not see what a network says where nobody annotated."""
    planned(scenario_root, variant, "2d")
    args = (scenario.dataset_id(variant), "2d", 0, scenario.TRAINER, scenario.PLANS)
    trainer = get_trainer_from_args(*args, device=torch.device("cpu"))
    trainer.initialize()
    heads = trainer.label_manager.num_segmentation_heads
    label = torch.zeros(2, heads + 1 if trainer.label_manager.has_regions else 1, 24, 24)
    label[:, -1, :, 12:] = 1 if trainer.label_manager.has_regions else trainer.label_manager.ignore_label
    target = torch.cat((label, torch.ones(2, 1, 24, 24)), dim=1).short()
    batch = {"data": torch.zeros(2, 1, 24, 24), "target": target, "keys": ["one", "two"]}
    samples = take_apart(batch, trainer.labeled_batch_size, trainer.device)
    target = samples.labels
    assert samples.valid is None and len(target) == samples.labeled == 1
    loss = trainer.loss.loss if trainer.enable_deep_supervision else trainer.loss
    logits = torch.randn(1, heads, 24, 24)
    changed, seen = logits.clone(), logits.clone()
    changed[..., 12:] += 5 * torch.randn(1, heads, 24, 12)
    seen[..., :12] += 5 * torch.randn(1, heads, 24, 12)
    assert loss(changed, target).item() == pytest.approx(loss(logits, target).item(), abs=1e-6)
    assert loss(seen, target).item() != pytest.approx(loss(logits, target).item(), abs=1e-3)


@pytest.mark.parametrize("variant", ["regions", "regions_ignore"])
def test_batches_of_regions_end_with_the_validity_mask(variant: str, scenario_root: Path):
    """nnU-Net's conversion to regions would drop it; patches here reach beyond the image."""
    planned(scenario_root, variant, "2d")
    args = (scenario.dataset_id(variant), "2d", 0, scenario.TRAINER, scenario.PLANS)
    trainer = get_trainer_from_args(*args, device=torch.device("cpu"))
    trainer.initialize()
    trainer.configuration_manager.configuration["patch_size"] = [48, 48]  # larger than the slices
    trainer.dataloader_train, _ = trainer.get_dataloaders()
    regions = trainer.label_manager.num_segmentation_heads + (trainer.label_manager.ignore_label is not None)
    batch = next(trainer.dataloader_train)
    full = batch["target"][0]
    assert full.shape[1] == regions + 1 and batch["target"][1].shape[1] == regions + 1
    valid = take_apart(batch, trainer.labeled_batch_size, trainer.device).unlabeled_valid
    assert valid is not None and 0.1 < valid.float().mean() < 0.9
    assert not full[:, :-1][full[:, -1:].expand_as(full[:, :-1]) == 0].any()  # no label in the padding


def test_a_case_without_annotated_voxels_can_be_unlabeled(scenario_root: Path):
    """With an ignore label nnU-Net aims every patch at annotated voxels; unlabeled cases have none."""
    planned(scenario_root, "ignore", "2d")
    args = (scenario.dataset_id("ignore"), "2d", 0, scenario.TRAINER, scenario.PLANS)
    trainer = get_trainer_from_args(*args, device=torch.device("cpu"))
    trainer.initialize()
    loader = trainer.get_dataloaders()[0].data_loader
    assert loader.has_ignore
    lower = {tuple(loader.get_bbox((18, 30, 26), False, None)[0]) for _ in range(20)}
    assert len(lower) > 1 and loader.has_ignore
