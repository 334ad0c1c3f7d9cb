"""The scenario's datasets for the tests of its trainings, and what must hold after each. For ``pytest_plugins``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scenario
import SimpleITK as sitk
from data_builders import set_environment

from alhvr_trainer.resources import ext_trainer_folder
from alhvr_trainer.trainers.checkpoints import read_checkpoint

FOLDS = 2
UNLABELED = ("case_002", "case_003", "case_004")
"""One hidden, two from the folder."""


@pytest.fixture(scope="module")
def scenario_root(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("scenario")
    with pytest.MonkeyPatch.context() as environment:
        set_environment(environment, folder)
        environment.setenv("nnUNet_extTrainer", str(ext_trainer_folder()))
        scenario.phantoms(folder / "source", cases=FOLDS + 5)
        yield folder


def planned(root: Path, variant: str, *configurations: str) -> None:
    """Make the variant and preprocess it for these configurations, once."""
    if not (root / "raw" / scenario.dataset_name(variant)).exists():
        scenario.make_variant(root / "source" / "Dataset900_Source", root / "raw", variant, FOLDS)
        scenario.plan(variant, root / "preprocessed", configurations)


def model_folder(root: Path, variant: str, configuration: str) -> Path:
    name = f"{scenario.TRAINER}__{scenario.PLANS}__{configuration}"
    return root / "results" / scenario.dataset_name(variant) / name


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
