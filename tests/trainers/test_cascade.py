"""nnU-Net's integration scenario in 3D: full and low resolution, cascade."""

from __future__ import annotations

from pathlib import Path

import blosc2
import numpy as np
import pytest
import scenario
from scenario_checks import FOLDS, UNLABELED, assert_predicts, assert_trained, model_folder, planned

from alhvr_trainer.commands.predict_next_stage import predict_next_stage
from alhvr_trainer.errors import InputError
from alhvr_trainer.trainers.cascade import FOLDER

pytestmark = pytest.mark.slow
pytest_plugins = ["scenario_checks"]

CASCADE = "3d_cascade_fullres"
CONFIGURATIONS = ("3d_lowres", "3d_fullres")


def trained_low_resolution(root: Path, variant: str) -> Path:
    """The segmentations of fold 0's unlabeled cases. All folds are trained: each labeled case's segmentation comes
    from the fold that validates it."""
    planned(root, variant, *CONFIGURATIONS)
    scenario.change_length(variant, root / "preprocessed", 1)
    folder = model_folder(root, variant, "3d_lowres")
    for fold in range(FOLDS):
        if not (folder / f"fold_{fold}" / "validation" / "summary.json").exists():
            scenario.train(variant, "3d_lowres", fold)
    return folder / "fold_0" / FOLDER / CASCADE


def segmentation(file: Path) -> np.ndarray:
    return blosc2.open(str(file))[:]


@pytest.mark.parametrize("variant", scenario.VARIANTS)
def test_3d_fullres(variant: str, scenario_root: Path):
    planned(scenario_root, variant, *CONFIGURATIONS)
    scenario.change_length(variant, scenario_root / "preprocessed", 1)
    scenario.train(variant, "3d_fullres", 0)
    assert_trained(model_folder(scenario_root, variant, "3d_fullres") / "fold_0", epochs=1)
    assert_predicts(scenario_root, variant, "3d_fullres")


@pytest.mark.parametrize("variant", scenario.VARIANTS)
def test_cascade(variant: str, scenario_root: Path):
    segmentations = trained_low_resolution(scenario_root, variant)
    assert {file.stem for file in segmentations.iterdir()} == set(UNLABELED)
    data = scenario_root / "preprocessed" / scenario.dataset_name(variant) / f"{scenario.PLANS}_3d_fullres_unlabeled"
    for case in UNLABELED:
        found = segmentation(segmentations / f"{case}.b2nd")
        assert found.shape == segmentation(data / f"{case}.b2nd").shape[1:]
        assert set(np.unique(found)) <= {0, 1, 2}
    scenario.train(variant, CASCADE, 0)
    assert_trained(model_folder(scenario_root, variant, CASCADE) / "fold_0", epochs=1)
    assert_predicts(scenario_root, variant, CASCADE)


def test_missing_segmentations_are_named_with_the_command_that_makes_them(scenario_root: Path):
    variant = "labels"
    segmentations = trained_low_resolution(scenario_root, variant)
    lost = segmentations / f"{UNLABELED[1]}.b2nd"
    before = segmentation(lost)
    lost.unlink()
    command = rf"alhvr predict_next_stage -d {scenario.dataset_name(variant)} -c 3d_lowres .* -f 0"
    with pytest.raises(InputError, match=f'case "{UNLABELED[1]}" has no segmentation of 3d_lowres .*{command}'):
        scenario.train(variant, CASCADE, 0)
    predict_next_stage(scenario.dataset_name(variant), "3d_lowres", 0, device="cpu")
    np.testing.assert_array_equal(segmentation(lost), before)

    labeled = model_folder(scenario_root, variant, "3d_lowres") / "predicted_next_stage" / CASCADE / "case_000.b2nd"
    labeled.unlink()
    with pytest.raises(InputError, match=r"no segmentation of 3d_lowres in .*: it is predicted by .* nnUNetv2_"):
        scenario.train(variant, CASCADE, 0)


def test_predict_next_stage_of_a_last_stage(scenario_root: Path):
    dataset = scenario.dataset_name("labels")
    if not (model_folder(scenario_root, "labels", "3d_fullres") / "fold_0").exists():
        test_3d_fullres("labels", scenario_root)
    with pytest.raises(InputError, match='3d_fullres of ALHVRPlans has no "next_stage"'):
        predict_next_stage(dataset, "3d_fullres", 0, device="cpu")
    with pytest.raises(InputError, match=r"fold is \(0, 1\); name one: every fold predicts its own"):
        predict_next_stage(dataset, "3d_fullres", (0, 1), device="cpu")
