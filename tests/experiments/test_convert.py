"""``alhvr convert`` on tiny releases of the right structure: images, labels, geometry, splits."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import tiny_releases as releases
from tiny_releases import AFFINE, NRRD_SPACING

from alhvr_trainer import cli
from alhvr_trainer.data.splits import load_splits
from alhvr_trainer.errors import InputError
from alhvr_trainer.experiments.convert.abdomenct1k import abdomenct1k
from alhvr_trainer.experiments.convert.acdc import acdc_h5
from alhvr_trainer.experiments.convert.brats2019 import brats2019, brats2019_flair, brats2019_h5
from alhvr_trainer.experiments.convert.command import KINDS, convert
from alhvr_trainer.experiments.convert.folds import SHARES, drawn_folds, paper_split
from alhvr_trainer.experiments.convert.la2018 import la2018, la2018_h5
from alhvr_trainer.experiments.convert.release import Release
from alhvr_trainer.experiments.convert.writing import write_dataset

pytestmark = pytest.mark.any_nnunet

PATIENTS = paper_split("acdc").all()
BRATS, LA = paper_split("brats2019"), paper_split("la2018")


def voxels(file: Path) -> np.ndarray:
    return np.asarray(nib.load(file).dataobj)


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def start_of(release: Release, folder: Path) -> Path:
    """Write two training cases and one test case of a release."""
    write_dataset(replace(release, training=release.training[:2], test=release.test[:1]), folder)
    return folder


def check_folds(release: Release, *counts: tuple[int, int, int]) -> None:
    """Numbers of labeled, unlabeled and validation cases; no case is lost, hidden twice, or in the test set."""
    training, test = ({case.name for case in cases} for cases in (release.training, release.test))
    assert [(len(fold["train"]), len(fold["unlabeled"]), len(fold["val"])) for fold in release.folds] == list(counts)
    for fold in release.folds:
        assert set(fold["train"]).isdisjoint(fold["unlabeled"]) and set(fold["val"]).isdisjoint(fold["unlabeled"])
        assert {case for cases in fold.values() for case in cases} == training
    assert training.isdisjoint(test)
    assert all(set(few["train"]) < set(more["train"]) for few, more in pairwise(release.folds))


@pytest.fixture(scope="module")
def acdc_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return releases.official_acdc(tmp_path_factory.mktemp("acdc"), [*PATIENTS, "patient101"])


@pytest.fixture(scope="module")
def acdc_folder(acdc_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = tmp_path_factory.mktemp("raw")
    assert cli.main(["convert", "acdc", str(acdc_source), "-d", "27", "-o", str(raw)]) == 0
    return raw / "Dataset027_ACDC"


def test_acdc_cases(acdc_folder: Path, acdc_source: Path):
    """Two frames of each of the 100 training patients, byte for byte; 4D files and testing patients are left out."""
    training = {f"{name}_0000.nii.gz" for name in (file[:-7] for file in names(acdc_folder / "labelsTr"))}
    assert names(acdc_folder / "imagesTr") == training and len(training) == 160
    assert names(acdc_folder / "labelsTs") == {name.replace("_0000", "") for name in names(acdc_folder / "imagesTs")}
    assert len(names(acdc_folder / "imagesTs")) == 40
    assert names(acdc_folder) == {
        *("imagesTr", "labelsTr", "imagesTs", "labelsTs", "dataset.json", "splits_final.json"),
    }
    for case, part in (("patient090_frame04", "Tr"), ("patient099_frame12", "Tr"), ("patient001_frame01", "Ts")):
        source = acdc_source / "database" / "training" / case[:10] / f"{case}.nii.gz"
        assert (acdc_folder / f"images{part}" / f"{case}_0000.nii.gz").read_bytes() == source.read_bytes()
        label = acdc_folder / f"labels{part}" / f"{case}.nii.gz"
        assert np.array_equal(voxels(label), voxels(source.with_name(f"{case}_gt.nii.gz")))
        np.testing.assert_allclose(nib.load(label).affine, AFFINE, atol=1e-6)


def test_acdc_folds_are_the_papers(acdc_folder: Path):
    """3, 7 and 14 patients, the first of SSL4MIS's list, both frames of each; nnU-Net and we read the raw folder's."""
    splits = load_splits(str(acdc_folder), "")
    counts = [[len(fold[key]) for key in ("train", "unlabeled", "val")] for fold in splits]
    assert counts == [[6, 134, 20], [14, 126, 20], [28, 112, 20]]
    assert splits[0]["train"] == sorted(
        f"patient{patient}_{frame}" for patient in ("038", "050", "099") for frame in ("frame01", "frame12")
    )
    seven = {"patient021", "patient038", "patient049", "patient050", "patient058", "patient099", "patient100"}
    assert {case[:10] for case in splits[1]["train"]} == seven
    cases = {case for fold in splits for part in fold.values() for case in part}
    assert {f"{case}.nii.gz" for case in cases} == names(acdc_folder / "labelsTr")


def test_acdc_dataset_json(acdc_folder: Path):
    content = json.loads((acdc_folder / "dataset.json").read_text())
    assert content["channel_names"] == {"0": "cineMRI"}
    assert content["labels"] == {"background": 0, "RV": 1, "MLV": 2, "LVC": 3}
    assert (content["numTraining"], content["file_ending"]) == (160, ".nii.gz")
    assert content["licence"] == "CC BY-NC-SA 4.0"


def test_repeating_writes_only_what_is_missing(acdc_source: Path, acdc_folder: Path):
    """After an interruption: a case is half there and dataset.json not yet in place."""
    kept, lost = (acdc_folder / "imagesTr" / f"patient00{number}_frame01_0000.nii.gz" for number in (2, 3))
    (acdc_folder / "dataset.json").rename(acdc_folder / "dataset.json.partial")
    (acdc_folder / "splits_final.json").unlink()
    content, times = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    (acdc_folder / ".convert_killed").mkdir()
    convert("acdc", str(acdc_source), 27, output=str(acdc_folder.parent))
    assert lost.read_bytes() == content and kept.stat().st_mtime_ns == times
    assert {"dataset.json", "splits_final.json"} < names(acdc_folder)
    assert {"dataset.json.partial", ".convert_killed"}.isdisjoint(names(acdc_folder))


def test_acdc_of_ssl4mis(tmp_path: Path):
    """Volumes, not slices; arrays are z, y, x and the spacing is nominal."""
    release = acdc_h5(releases.ssl4mis_acdc(tmp_path / "source", PATIENTS))
    check_folds(release, (6, 134, 20), (14, 126, 20), (28, 112, 20))
    folder = start_of(release, tmp_path / "Dataset028_ACDC")
    image = sitk.ReadImage(str(folder / "imagesTr" / "patient002_frame01_0000.nii.gz"))
    assert image.GetSpacing() == (1, 1, 10)
    assert np.array_equal(
        sitk.GetArrayFromImage(image), releases.noise(1, releases.SIZE[::-1]).astype(np.float32) / 2000
    )
    label = sitk.ReadImage(str(folder / "labelsTr" / "patient002_frame01.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(label), releases.labels(1, range(4), releases.SIZE[::-1]))


def test_brats2019(tmp_path: Path, capfd: pytest.CaptureFixture):
    """Four channels in a fixed order, label 4 becomes 3; nnU-Net's own check passes."""
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    release = brats2019(releases.official_brats(tmp_path / "source", BRATS.all()))
    check_folds(release, (25, 225, 25), (50, 200, 25))
    assert release.folds[0]["train"] == sorted(BRATS.train[:25])
    assert len(release.test) == 60
    folder = start_of(release, tmp_path / "Dataset043_BraTS2019")
    case = release.training[0].name
    for channel in range(4):
        assert np.array_equal(voxels(folder / "imagesTr" / f"{case}_{channel:04d}.nii.gz"), releases.noise(channel)), (
            "flair, t1, t1ce, t2"
        )
    source = releases.labels(9, (0, 1, 2, 4))
    assert np.array_equal(voxels(folder / "labelsTr" / f"{case}.nii.gz"), np.where(source == 4, 3, source))
    verify_dataset_integrity(str(folder), num_processes=1)
    assert "Warning" not in capfd.readouterr().out


def test_brats2019_whole_tumor(tmp_path: Path):
    release = brats2019_flair(releases.official_brats(tmp_path / "source", BRATS.all()))
    folder = start_of(release, tmp_path / "Dataset044_BraTS2019")
    case = release.test[0].name
    assert names(folder / "imagesTs") == {f"{case}_0000.nii.gz"}
    assert np.array_equal(voxels(folder / "imagesTs" / f"{case}_0000.nii.gz"), releases.noise(0))
    assert np.array_equal(voxels(folder / "labelsTs" / f"{case}.nii.gz"), releases.labels(9, (0, 1, 2, 4)) > 0)


def test_brats2019_of_ssl4mis(tmp_path: Path):
    first = releases.write_h5(
        tmp_path / "first.h5", image=releases.noise(5).astype(np.float64), label=releases.labels(5, (0, 1))
    )
    for case in BRATS.all():
        releases.linked(first, tmp_path / "source" / "data" / f"{case}.h5")
    release = brats2019_h5(tmp_path / "source")
    check_folds(release, (25, 225, 25), (50, 200, 25))
    folder = start_of(release, tmp_path / "Dataset045_BraTS2019")
    image = sitk.ReadImage(str(folder / "imagesTr" / f"{release.training[1].name}_0000.nii.gz"))
    assert image.GetPixelID() == sitk.sitkFloat32 and image.GetSpacing() == (1, 1, 1)
    assert np.array_equal(sitk.GetArrayFromImage(image), releases.noise(5))


def test_la2018(tmp_path: Path):
    """255 becomes 1, spacing is the file's; without validation cases in the papers, the labeled ones validate."""
    release = la2018(releases.official_la(tmp_path / "source", LA.all()))
    assert [[len(fold[key]) for key in ("train", "unlabeled", "val")] for fold in release.folds] == [
        [4, 76, 4],
        [8, 72, 8],
        [16, 64, 16],
    ]
    assert all(fold["val"] == fold["train"] for fold in release.folds)
    assert release.folds[1]["train"] == list(LA.train[:8])
    folder = start_of(release, tmp_path / "Dataset018_LA2018")
    case = release.training[0].name
    image = sitk.ReadImage(str(folder / "imagesTr" / f"{case}_0000.nii.gz"))
    np.testing.assert_allclose(image.GetSpacing(), NRRD_SPACING)
    assert np.array_equal(sitk.GetArrayFromImage(image).transpose(), releases.noise(3))
    label = sitk.ReadImage(str(folder / "labelsTr" / f"{case}.nii.gz"))
    np.testing.assert_allclose(label.GetSpacing(), NRRD_SPACING)
    assert np.array_equal(sitk.GetArrayFromImage(label).transpose(), releases.labels(3, (0, 255)) == 255)


def test_la2018_of_uamt(tmp_path: Path):
    """Arrays are x, y, z."""
    release = la2018_h5(releases.uamt_la(tmp_path / "source", LA.all()))
    folder = start_of(release, tmp_path / "Dataset019_LA2018")
    image = sitk.ReadImage(str(folder / "imagesTr" / f"{release.training[0].name}_0000.nii.gz"))
    assert image.GetSize() == releases.SIZE and image.GetSpacing() == (0.625, 0.625, 0.625)
    assert np.array_equal(sitk.GetArrayFromImage(image).transpose(), releases.noise(4).astype(np.float32) / 500 - 1)


def test_abdomenct1k(tmp_path: Path):
    """A drawn split of 70, 10 and 20 %; scans without a label map become unlabeled ones."""
    source = releases.abdomenct1k(tmp_path / "source", labeled=40, unlabeled=3)
    release = abdomenct1k(source, seed=0)
    check_folds(release, (1, 27, 4), (3, 25, 4), (6, 22, 4))
    assert len(release.test) == 8
    assert abdomenct1k(source, seed=1).folds != release.folds and abdomenct1k(source, seed=0).folds == release.folds
    folder = Path(convert("abdomenct1k", str(source), "Dataset050_Abdomen", output=str(tmp_path)))
    assert names(folder / "imagesTr_unlabeled") == {f"Case_{number:05d}_0000.nii.gz" for number in (41, 42, 43)}
    case = release.training[3].name
    seed = int(case[-5:])
    assert np.array_equal(voxels(folder / "imagesTr" / f"{case}_0000.nii.gz"), releases.noise(seed) - 1000)
    assert np.array_equal(voxels(folder / "labelsTr" / f"{case}.nii.gz"), releases.labels(seed, range(5)))
    assert json.loads((folder / "dataset.json").read_text())["channel_names"] == {"0": "CT"}


def test_decathlon_task_of_several_channels(tmp_path: Path):
    """4D images are taken apart, floats become whole labels, the label 0 is called background."""
    source = releases.decathlon(tmp_path / "Task99_Toy")
    folder = Path(convert("msd", str(source), 99, output=str(tmp_path / "raw")))
    assert folder.name == "Dataset099_Toy"
    assert names(folder / "imagesTs") == {
        f"toy_{case}_{channel:04d}.nii.gz" for case in ("010", "011") for channel in (0, 1)
    }
    for channel in (0, 1):
        image = nib.load(folder / "imagesTr" / f"toy_003_{channel:04d}.nii.gz")
        assert np.array_equal(image.dataobj, releases.noise(3, (*releases.SIZE, 2))[..., channel])
        np.testing.assert_allclose(image.affine, AFFINE, atol=1e-6)
    label = voxels(folder / "labelsTr" / "toy_003.nii.gz")
    assert label.dtype == np.uint8 and np.array_equal(label, releases.labels(3, range(3)))
    content = json.loads((folder / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "left": 1, "right": 2}
    assert content["channel_names"] == {"0": "MR0", "1": "MR1"}
    assert not (folder / "labelsTs").exists(), "labels of the decathlon's test set are not public"


def test_drawn_folds_share_validation_and_grow():
    cases = [f"case_{number}" for number in range(100)]
    folds = drawn_folds(cases, 0.2, seed=5)
    assert [len(fold["train"]) for fold in folds] == [round(share * 80) for share in SHARES]
    assert folds[0]["val"] == folds[1]["val"] == folds[2]["val"]
    assert set(folds[0]["train"]) < set(folds[1]["train"]) < set(folds[2]["train"])
    for fold in folds:
        assert sorted(fold["train"] + fold["unlabeled"] + fold["val"]) == sorted(cases)


def test_label_map_beside_its_image_is_put_onto_its_grid(tmp_path: Path, capsys: pytest.CaptureFixture):
    source = releases.decathlon(tmp_path / "Task98_Shifted", channels=1)
    shifted = AFFINE.copy()
    shifted[0, 3] += 0.5
    releases.write_nifti(source / "labelsTr" / "toy_004.nii.gz", releases.labels(4, range(3)), shifted)
    folder = Path(convert("msd", str(source), 98, output=str(tmp_path)))
    np.testing.assert_allclose(nib.load(folder / "labelsTr" / "toy_004.nii.gz").affine, AFFINE, atol=1e-6)
    assert "note: the headers of 1 label maps" in capsys.readouterr().out


def test_label_map_in_another_orientation_is_reoriented(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Stored mirrored, or with swapped axes, but on the voxels of its image: the same voxels afterwards."""
    source = releases.decathlon(tmp_path / "Task98_Turned", channels=1)
    expected = releases.labels(4, range(3))
    for case, orientation in (("toy_004", "LAS"), ("toy_005", "SPL")):
        image = nib.Nifti1Image(expected, AFFINE)
        turned = image.as_reoriented(nib.orientations.ornt_transform(
            nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(orientation)
        ))  # fmt: skip
        assert "".join(nib.aff2axcodes(turned.affine)) == orientation != "".join(nib.aff2axcodes(AFFINE))
        nib.save(turned, source / "labelsTr" / f"{case}.nii.gz")
    folder = Path(convert("msd", str(source), 98, output=str(tmp_path)))
    for case in ("toy_004", "toy_005"):
        written = nib.load(folder / "labelsTr" / f"{case}.nii.gz")
        np.testing.assert_array_equal(np.asarray(written.dataobj), expected)
        np.testing.assert_allclose(written.affine, AFFINE, atol=1e-6)
    assert "note:" not in capsys.readouterr().out
    elsewhere = turned.affine.copy()
    elsewhere[:3, 3] += 5
    nib.save(nib.Nifti1Image(np.asarray(turned.dataobj), elsewhere), source / "labelsTr" / "toy_005.nii.gz")
    with pytest.raises(InputError, match=r"toy_005\.nii\.gz is stored in another orientation than its image"):
        convert("msd", str(source), 98, output=str(tmp_path), overwrite=True)


@pytest.mark.parametrize("scale", [0.1, 1 / 3])
def test_scaled_labels_are_what_nnunet_reads(scale: float, tmp_path: Path):
    """Integers with a scale, whose products are whole numbers up to rounding in float64."""
    source = releases.decathlon(tmp_path / "Task98_Scaled", channels=1)
    expected = releases.labels(4, range(3))
    image = nib.Nifti1Image(np.rint(expected / scale).astype(np.int16), AFFINE)
    image.header.set_slope_inter(scale, 0)
    nib.save(image, source / "labelsTr" / "toy_004.nii.gz")
    folder = Path(convert("msd", str(source), 98, output=str(tmp_path)))
    np.testing.assert_array_equal(voxels(folder / "labelsTr" / "toy_004.nii.gz"), expected)


def test_no_source_is_written_over(tmp_path: Path):
    source = releases.decathlon(tmp_path / "raw" / "Dataset098_Own", channels=1)
    before = {file: file.read_bytes() for file in source.rglob("*") if file.is_file()}
    with pytest.raises(InputError, match=r"labelsTr/toy_.* would be written over .*labelsTr/toy_"):
        convert("msd", str(source), "Dataset098_Own", output=str(tmp_path / "raw"), overwrite=True)
    assert before == {file: file.read_bytes() for file in source.rglob("*") if file.is_file()}


def test_every_kind_is_documented():
    page = (Path(__file__).resolve().parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
    assert all(f"`{kind}`" in page for kind in KINDS)
    assert all(kind in (convert.__doc__ or "") for kind in KINDS)
