"""Fixtures: a tiny dataset that ``alhvr plan_and_preprocess`` went over, once for all tests, and copies of it.

For ``pytest_plugins = ["planned_dataset"]``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import data_builders
import pytest
from data_builders import HIDDEN_BRIGHTNESS, SPLIT, make_tiny, set_environment

SHAPE = (8, 40, 36)


@pytest.fixture(scope="session")
def planned_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CT dataset with 2 hidden and 3 unlabeled cases, planned, and preprocessed in 2d.

    Hidden cases are much brighter than the rest, so that their labels would show in the intensity statistics.
    """
    from alhvr_trainer.planning.plan_and_preprocess import plan_and_preprocess

    root = tmp_path_factory.mktemp("planned")
    with pytest.MonkeyPatch.context() as environment:
        set_environment(environment, root)
        dataset = data_builders.make_dataset(root / "raw", labeled=6, channels=["CT"], shape=SHAPE)
        for case in SPLIT["unlabeled"]:
            image, _ = data_builders.ellipsoid(5, SHAPE)
            data_builders.write_image(dataset / "imagesTr" / f"{case}_0000.nii.gz", image * HIDDEN_BRIGHTNESS)
        data_builders.write_splits(dataset, SPLIT)
        plan_and_preprocess("901", "2d", num_processes=1, verify_dataset_integrity=False)
    return root


@pytest.fixture
def planned(planned_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what the command made, to be changed at will. File times are kept: nothing looks changed."""
    shutil.copytree(planned_once, tmp_path / "nnunet")
    set_environment(monkeypatch, tmp_path / "nnunet")
    return tmp_path / "nnunet"


@pytest.fixture
def tiny(planned: Path) -> Path:
    """The planned dataset with a network of few features, batch 2 + 2 and short epochs."""
    return make_tiny(planned)


@pytest.fixture
def untrained(tiny: Path) -> Path:
    """With a model of random weights, whose fold hides two cases beside the three unlabeled ones."""
    from tiny_training import make_trainer

    trainer = make_trainer(tiny)
    trainer.on_train_start()
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    return tiny
