"""``alhvr move_labeled``: cases become labeled in raw dataset, splits and preprocessed data, or nothing changes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_builders import NAME, ellipsoid, write_image
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from planned_dataset import SHAPE
from tiny_training import make_trainer

from alhvr_trainer import move_labeled
from alhvr_trainer.annotation import move_labeled as module
from alhvr_trainer.config.names import JOURNAL
from alhvr_trainer.data.dataset import find_dataset
from alhvr_trainer.errors import InputError

pytest_plugins = ["planned_dataset"]

NUMBERS = {"scan_000": 6, "scan_001": 7, "scan_002": 8}
"""Seeds of the ellipsoids that the builders drew."""


def labels(folder: Path, *cases: str) -> Path:
    for case in cases:
        write_image(folder / f"{case}.nii.gz", ellipsoid(NUMBERS[case], SHAPE)[1])
    return folder


def state(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


def test_cases_become_training_cases(tiny: Path, tmp_path: Path):
    """Then a training has them among the labeled ones and as unlabeled ones no more; plans are what they were."""
    raw, preprocessed = tiny / "raw" / NAME, tiny / "preprocessed" / NAME
    plans, fingerprint = (preprocessed / name for name in ("ALHVRPlans.json", "dataset_fingerprint.json"))
    before = plans.read_bytes(), fingerprint.read_bytes()
    assert move_labeled(901, labels(tmp_path / "done", "scan_000", "scan_002"), num_processes=1) == [
        "scan_000",
        "scan_002",
    ]
    assert (plans.read_bytes(), fingerprint.read_bytes()) == before
    assert sorted(file.name for file in (raw / "imagesTr_unlabeled").iterdir()) == ["scan_001_0000.nii.gz"]
    assert (raw / "imagesTr" / "scan_000_0000.nii.gz").is_file() and (raw / "labelsTr" / "scan_002.nii.gz").is_file()
    assert (tmp_path / "done" / "scan_000.nii.gz").is_file()
    for file in (raw / "dataset.json", preprocessed / "dataset.json"):
        assert json.loads(file.read_text())["numTraining"] == 8
    split = find_dataset(901).splits[0]
    assert split["train"] == ["case_000", "case_001", "scan_000", "scan_002"]
    assert split["unlabeled"] == ["case_004", "case_005"] and split["val"] == ["case_002", "case_003"]
    assert (preprocessed / "gt_segmentations" / "scan_000.nii.gz").is_file()

    (folder,) = (path for path in preprocessed.iterdir() if path.name.endswith("_2d"))
    _, segmentation, _, properties = nnUNetDatasetBlosc2(str(folder)).load_case("scan_000")
    assert set(np.unique(segmentation[:])) >= {0, 1, 2} and properties["class_locations"][1] is not None
    trainer: Any = make_trainer(tiny)
    trainer.on_train_start()
    trainer.get_tr_and_val_datasets()
    assert "scan_000" in trainer.do_split()[0]
    assert set(trainer.data.unlabeled.identifiers) == {"case_004", "case_005", "scan_001"}


def test_as_nnunet_would_preprocess_them(tiny: Path, tmp_path: Path):
    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset

    move_labeled(901, labels(tmp_path / "done", "scan_001"), num_processes=1)
    (folder,) = (path for path in (tiny / "preprocessed" / NAME).iterdir() if path.name.endswith("_2d"))
    found = [part[:].copy() for part in nnUNetDatasetBlosc2(str(folder)).load_case("scan_001")[:2]]
    preprocess_dataset(901, "ALHVRPlans", ["2d"], num_processes=[1])
    expected = nnUNetDatasetBlosc2(str(folder)).load_case("scan_001")[:2]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other[:])


def test_a_hidden_case_needs_no_move(tiny: Path, tmp_path: Path):
    """It is in imagesTr already, with a label: another one is refused, for other folds may train on that."""
    target = tiny / "raw" / NAME / "labelsTr" / "case_004.nii.gz"
    file = tmp_path / "done" / "case_004.nii.gz"
    write_image(file, 0 * ellipsoid(4, SHAPE)[1])
    before = state(tiny)
    with pytest.raises(InputError, match=r"labelsTr/case_004.nii.gz is another label of this case than .*: remove"):
        move_labeled(901, file, num_processes=1)
    assert state(tiny) == before
    shutil.copyfile(target, file)
    assert move_labeled(901, file, num_processes=1) == ["case_004"]
    assert find_dataset(901).splits[0]["unlabeled"] == ["case_005"]


def test_one_fold_of_several(tiny: Path, tmp_path: Path):
    file = tiny / "preprocessed" / NAME / "splits_final.json"
    (tiny / "raw" / NAME / "splits_final.json").unlink(missing_ok=True)
    split = json.loads(file.read_text())[0] if file.exists() else find_dataset(901).splits[0]
    file.write_text(json.dumps([split, split]))
    move_labeled(901, labels(tmp_path / "done", "scan_000"), fold=1, num_processes=1)
    folds = find_dataset(901).splits
    assert "scan_000" not in folds[0]["train"] and "scan_000" in folds[1]["train"]
    with pytest.raises(InputError, match=r"fold is 2; splits_final.json has 2 folds, numbered from 0"):
        move_labeled(901, labels(tmp_path / "done", "scan_000"), fold=2)


def test_an_interrupted_move_is_finished(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = labels(tmp_path / "done", "scan_000", "scan_001")
    move, moved = shutil.move, []

    def once(source: str, target: str) -> None:
        if moved:
            raise KeyboardInterrupt
        moved.append(move(source, target))

    monkeypatch.setattr(shutil, "move", once)
    with pytest.raises(KeyboardInterrupt):
        move_labeled(901, folder, num_processes=1)
    monkeypatch.setattr(shutil, "move", move)
    with pytest.raises(InputError, match=r"an earlier call was interrupted; repeat it without --dry_run"):
        move_labeled(901, folder, dry_run=True)
    with pytest.raises(InputError, match="alhvr move_labeled was interrupted; repeat it"):
        find_dataset(901).unlabeled_images  # noqa: B018
    assert move_labeled(901, folder, num_processes=1) == ["scan_000", "scan_001"]
    found = find_dataset(901)
    assert {"scan_000", "scan_001"} <= set(found.splits[0]["train"]) and set(found.unlabeled_images) == {"scan_002"}
    assert not (tiny / "raw" / NAME / JOURNAL).exists()


@pytest.mark.parametrize("option", ["dry_run", "new_fingerprint"])
def test_options(tiny: Path, tmp_path: Path, option: str):
    before = state(tiny / "preprocessed" / NAME)
    raw = state(tiny / "raw" / NAME)
    move_labeled(901, labels(tmp_path / "done", "scan_000"), **{option: True})
    after = state(tiny / "preprocessed" / NAME)
    changed = {name for name in before if before[name] != after.get(name)} | (after.keys() - before.keys())
    assert changed == (set() if option == "dry_run" else {"splits_final.json"} & changed)
    assert (state(tiny / "raw" / NAME) == raw) == (option == "dry_run")


def wrong_grid(folder: Path) -> None:
    write_image(folder / "scan_000.nii.gz", ellipsoid(6, SHAPE)[1], spacing=(9, 9, 9))


def wrong_size(folder: Path) -> None:
    write_image(folder / "scan_000.nii.gz", ellipsoid(6, SHAPE)[1][1:])


def wrong_value(folder: Path) -> None:
    write_image(folder / "scan_000.nii.gz", 7 * ellipsoid(6, SHAPE)[1])


def labeled_already(folder: Path) -> None:
    write_image(folder / "case_002.nii.gz", 0 * ellipsoid(2, SHAPE)[1])


def unknown(folder: Path) -> None:
    write_image(folder / "someone.nii.gz", ellipsoid(2, SHAPE)[1])


def nothing(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    os.utime(folder)


def damaged(folder: Path) -> None:
    (folder / "scan_001.nii.gz").write_bytes(b"not an image")


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (wrong_grid, r"spacing .* of .*scan_000.nii.gz differs from .*: both must lie on the same voxels"),
        (wrong_size, r"size .* of .*scan_000.nii.gz differs from "),
        (wrong_value, r"scan_000.nii.gz has values that are not labels of dataset.json: 14, 7; labels are 0, 1, 2"),
        (labeled_already, r"case_002.nii.gz: case_002 is labeled already of Dataset901"),
        (unknown, r"someone.nii.gz: someone is no case of Dataset901"),
        (nothing, r"no label file CASE.nii.gz in .*done"),
        (damaged, r"cannot read .*scan_001.nii.gz"),
    ],
)
def test_refused_before_anything_changes(tiny: Path, tmp_path: Path, mistake: Any, message: str):
    folder = tmp_path / "done"
    folder.mkdir()
    mistake(folder)
    before = state(tiny)
    with pytest.raises(InputError, match=message):
        move_labeled(901, folder)
    assert state(tiny) == before
    with pytest.raises(InputError, match=r"labels .*elsewhere does not exist"):
        move_labeled(901, tmp_path / "elsewhere")


def test_a_validation_case_stays_one():
    splits = [{"train": ["a"], "val": ["b"]}]
    with pytest.raises(InputError, match="b is a validation case of fold 0: its label is no training label"):
        module.with_labeled(splits, ["b"], [0])
