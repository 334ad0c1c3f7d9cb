"""One to six labeled cases, and no split of one's own: the path of the README, from planning to a bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from data_builders import NAME, change_settings, make_dataset, make_tiny, read_json, set_environment, write_splits
from tiny_training import make_trainer

from alhvr_trainer import cli
from alhvr_trainer.errors import InputError
from alhvr_trainer.planning.plan_and_preprocess import plan_and_preprocess
from alhvr_trainer.trainers.supervised import SupervisedTrainer

SHAPE = (8, 40, 36)
ODD = "run #1, 50% @$HOME [a]/007"
"""A folder's name as shells, globs, MONAI and fire trip over it."""


@pytest.fixture
def planned_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Plan and preprocess a dataset with so many labeled cases."""

    def planned(labeled: int, name: str = "nnunet") -> Path:
        root = tmp_path / name
        root.mkdir(parents=True, exist_ok=True)
        set_environment(monkeypatch, root)
        make_dataset(root / "raw", labeled=labeled, unlabeled=2, shape=SHAPE)
        plan_and_preprocess("901", "2d", num_processes=1)
        return make_tiny(root)

    return planned


def split_of(trainer) -> tuple[list[str], list[str]]:
    training, validation = trainer.do_split()
    return sorted(training), sorted(validation)


@pytest.mark.parametrize("labeled", [1, 2, 4, 6])
def test_every_number_of_labeled_cases_gets_a_split_that_fits(labeled: int, planned_with):
    root = planned_with(labeled)
    file = root / "preprocessed" / NAME / "splits_final.json"
    cases = [f"case_{number:03d}" for number in range(labeled)]
    assert file.exists() == (labeled < 5)  # from five on it is nnU-Net's to make
    for plans_only in (True, False):
        if not plans_only:
            file.unlink(missing_ok=True)  # a dataset that an older version, or nnU-Net, has planned
        trainer = make_trainer(root)
        trainer.initialize()
        trainer.on_train_start()
        trainer.on_train_end()
        training, validation = split_of(trainer)
        if labeled < 3:
            assert training == validation == cases
        else:
            assert sorted([*training, *validation]) == cases and len(validation) == (1 if labeled < 6 else 2)
        log = Path(trainer.log_file).read_text()
        assert ("its validation shows nothing about new scans" in log) == (labeled < 3)
    folds = len(read_json(root, "splits_final.json"))
    assert folds == {1: 1, 2: 1, 3: 3, 4: 4}.get(labeled, 5)
    validated = [case for fold in range(folds) for case in split_of(make_trainer(root, fold=fold))[1]]
    assert sorted(validated) == cases
    if labeled < 5:
        with pytest.raises(
            InputError, match=rf"there is no fold {folds}: with {labeled} labeled cases the folds are 0"
        ):
            make_trainer(root, fold=folds).get_tr_and_val_datasets()


def test_a_split_that_is_there_stays(planned_with, tmp_path: Path):
    mine = write_splits(
        tmp_path / "nnunet" / "preprocessed" / NAME, {"train": ["case_000"], "val": ["case_001", "case_002"]}
    )
    assert read_json(planned_with(3), "splits_final.json") == mine


@pytest.mark.slow
@pytest.mark.parametrize(("labeled", "name"), [(1, ODD), (3, "nnunet")])
def test_from_scans_to_a_bundle(labeled: int, name: str, planned_with, capsys: pytest.CaptureFixture[str]):
    """Each command is what the one before said to type, with the user's folders filled in."""
    root = planned_with(labeled, name)
    change_settings(root, num_epochs=1)
    flags = ["-d", "901", "-c", "2d", "-f", "0"]
    assert cli.main(["train", *flags, "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "next: alhvr predict -d 901 -c 2d -f 0 -i IN -o OUT --device cpu"
    dataset, out, scores, bundle = root / "raw" / NAME, root / "out", root / "scores", root / "bundle"
    predict = ["predict", *flags, "-o", str(out), "--device", "cpu"]
    assert cli.main([*predict, "-i", str(dataset / "imagesTr_unlabeled")]) == 0
    assert {file.name for file in out.glob("*.nii.gz")} == {"scan_000.nii.gz", "scan_001.nii.gz"}
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(out / "scan_000.nii.gz"))).shape == SHAPE
    assert cli.main([*predict, "-i", str(dataset / "imagesTr")]) == 0
    words = ["evaluate", "--predictions", str(out), "--references", str(dataset / "labelsTr"), "--output", str(scores)]
    assert cli.main([*words, "--dataset_json", str(dataset / "dataset.json")]) == 0
    words = ["export_bundle", *flags, "-o", str(bundle), "--evaluation", str(scores / "metrics.json")]
    assert cli.main(words) == 0
    assert (bundle / "models" / "model.pt").is_file()
    assert f"{labeled} cases" in (bundle / "docs" / "README.md").read_text()
    assert cli.main(["export_nnunet", *flags, "-o", str(root / "model.zip")]) == 0
    assert cli.main(["predict", "-m", str(next((root / "results" / NAME).iterdir())), *predict[7:],
                     "-f", "0", "-i", str(dataset / "imagesTr")]) == 0  # fmt: skip


@pytest.mark.any_nnunet
def test_the_labeled_only_baseline_takes_the_same_split(planned_with):
    root = planned_with(3)
    assert split_of(make_trainer(root, SupervisedTrainer)) == split_of(make_trainer(root))
    assert np.all([len(part) for part in split_of(make_trainer(root, SupervisedTrainer))])
