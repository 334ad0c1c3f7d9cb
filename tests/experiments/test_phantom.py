"""The phantom generator: same seed same voxels, plausible anatomy, nnU-Net's raw layout."""

from __future__ import annotations

import hashlib
import json
import time

import numpy as np
import pytest
import SimpleITK as sitk

from alhvr_trainer.experiments.demo.anatomy import LABELS
from alhvr_trainer.experiments.demo.phantom import SPACING, make_phantom, write_dataset

pytestmark = pytest.mark.any_nnunet

RV, MYO, LV = LABELS["RV"], LABELS["MYO"], LABELS["LV"]


def test_same_seed_same_voxels_and_other_seed_other_voxels():
    first, again, other = make_phantom((3, 1)), make_phantom((3, 1)), make_phantom((3, 2))
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)


def test_labels_do_not_depend_on_the_random_numbers_of_earlier_calls():
    np.random.seed(0)
    expected = make_phantom(5)[0]
    np.random.seed(1)
    np.testing.assert_array_equal(make_phantom(5)[0], expected)


@pytest.mark.parametrize("shape", [(5, 64, 64), (3, 32, 32), (1, 40, 56)])
def test_anatomy(shape):
    for seed in range(20):
        image, label = make_phantom(seed, shape)
        assert image.shape == label.shape == shape
        assert image.dtype == np.float32 and label.dtype == np.uint8
        assert np.isfinite(image).all() and image.min() >= 0
        assert set(np.unique(label)) == {0, RV, MYO, LV}
        middle = label[shape[0] // 2]
        assert (middle == LV).any() and (middle == MYO).any()
        # the cavity is closed off by muscle: no background or RV pixel touches it
        for shift, axis in ((1, 1), (-1, 1), (1, 2), (-1, 2)):
            beside_cavity = np.roll(label == LV, shift, axis)
            assert not (beside_cavity & ((label == 0) | (label == RV))).any()


def test_blood_is_brighter_than_muscle():
    for seed in range(20):
        image, label = make_phantom(seed)
        assert image[label == LV].mean() > image[label == MYO].mean() < image[label == RV].mean()


def test_heart_is_round_in_millimeters():
    """Pixels twice as high as wide halve the number of rows that the heart covers."""
    square = make_phantom(4, (1, 80, 80), (8.0, 1.0, 1.0))[1][0]
    flat = make_phantom(4, (1, 40, 80), (8.0, 2.0, 1.0))[1][0]
    rows, rows_flat = ((label > 0).any(axis=1).sum() for label in (square, flat))
    columns, columns_flat = ((label > 0).any(axis=0).sum() for label in (square, flat))
    assert rows_flat == pytest.approx(rows / 2, abs=1) and columns_flat == pytest.approx(columns, abs=1)


def test_tiny_phantoms_are_fast():
    start = time.process_time()
    for seed in range(10):
        make_phantom(seed, (3, 32, 32))
    assert (time.process_time() - start) / 10 < 0.05


def test_raw_layout(tmp_path):
    sizes = {"labeled": 3, "unlabeled": 2, "test": 2, "val": 1, "shape": (2, 24, 32), "seed": 7}
    dataset = write_dataset(tmp_path, **sizes, dataset_id=12)
    assert dataset == tmp_path / "Dataset012_Phantom"
    content = {f.name: sorted(x.name for x in f.iterdir()) for f in dataset.iterdir() if f.is_dir()}
    assert content == {
        "imagesTr": [f"phantom_00{i}_0000.nii.gz" for i in (0, 1, 2)],
        "labelsTr": [f"phantom_00{i}.nii.gz" for i in (0, 1, 2)],
        "imagesTr_unlabeled": [f"phantom_00{i}_0000.nii.gz" for i in (3, 4)],
        "imagesTs": [f"phantom_00{i}_0000.nii.gz" for i in (5, 6)],
        "labelsTs": [f"phantom_00{i}.nii.gz" for i in (5, 6)],
    }
    description = json.loads((dataset / "dataset.json").read_text())
    assert description["numTraining"] == 3 and description["labels"] == LABELS
    splits = json.loads((dataset / "splits_final.json").read_text())
    assert splits == [{"train": ["phantom_000", "phantom_001"], "val": ["phantom_002"]}]

    read = sitk.ReadImage(str(dataset / "imagesTs" / "phantom_005_0000.nii.gz"))
    assert read.GetSpacing() == pytest.approx(SPACING[::-1])
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read), make_phantom((7, 5), (2, 24, 32))[0])
    label = sitk.ReadImage(str(dataset / "labelsTr" / "phantom_001.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(label), make_phantom((7, 1), (2, 24, 32))[1])


def test_files_are_the_same_on_every_run(tmp_path):
    def digest(folder):
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    for name in ("one", "two"):
        write_dataset(tmp_path / name, labeled=2, unlabeled=1, test=1, shape=(2, 24, 24))
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


@pytest.mark.parametrize("val", [0, 3])
def test_split_needs_both_kinds(tmp_path, val):
    with pytest.raises(ValueError, match=f"3 labeled cases, {val} for validation: at least one of each"):
        write_dataset(tmp_path, labeled=3, unlabeled=1, test=0, val=val)
