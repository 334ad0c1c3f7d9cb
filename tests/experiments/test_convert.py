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
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from tiny_releases import AFFINE, NRRD_SPACING, SIZE, labels, noise

from alhvr_trainer import cli
from alhvr_trainer.data.cases import load_splits
from alhvr_trainer.errors import InputError
from alhvr_trainer.experiments.convert.command import KINDS, PUBLISHED, convert
from alhvr_trainer.experiments.convert.drawn import abdomenct1k
from alhvr_trainer.experiments.convert.published import paper_split
from alhvr_trainer.experiments.convert.raw_dataset import write_dataset
from alhvr_trainer.experiments.convert.release import Release

pytestmark = pytest.mark.any_nnunet


def voxels(file: Path) -> np.ndarray:
    return np.asarray(nib.load(file).dataobj)


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def check_folds(release: Release, *counts: tuple[int, int, int]) -> None:
    """Numbers of labeled, unlabeled and validation cases; no case is lost, hidden twice, or in the test set."""
    training, test = ({case.name for case in cases} for cases in (release.training, release.test))
    assert [(len(fold["train"]), len(fold["unlabeled"]), len(fold["val"])) for fold in release.folds] == list(counts)
    for fold in release.folds:
        assert set(fold["train"]).isdisjoint(fold["unlabeled"]) and set(fold["val"]).isdisjoint(fold["unlabeled"])
        assert {case for cases in fold.values() for case in cases} == training
    assert training.isdisjoint(test)
    assert all(set(few["train"]) < set(more["train"]) for few, more in pairwise(release.folds))


ACDC_FOLDS = (6, 134, 20), (14, 126, 20), (28, 112, 20)
BRATS_FOLDS = (25, 225, 25), (50, 200, 25)
LA_FOLDS = (4, 76, 4), (8, 72, 8), (16, 64, 16)
NIFTI_SPACING = (1.5, 1.5, 8)
TUMOR = labels(9, (0, 1, 2, 4))


@pytest.mark.parametrize(
    ("kind", "folds", "images", "label", "spacing"),
    [
        (
            *("acdc_h5", ACDC_FOLDS, [noise(1, SIZE[::-1]).T.astype(np.float32) / 2000]),
            *(labels(1, range(4), SIZE[::-1]).T, (1, 1, 10)),
        ),
        ("brats2019", BRATS_FOLDS, [noise(n) for n in range(4)], np.where(TUMOR == 4, 3, TUMOR), NIFTI_SPACING),
        ("brats2019_flair", BRATS_FOLDS, [noise(0)], TUMOR > 0, NIFTI_SPACING),
        ("brats2019_h5", BRATS_FOLDS, [noise(5).astype(np.float32)], labels(5, (0, 1)), (1, 1, 1)),
        ("la2018", LA_FOLDS, [noise(3)], labels(3, (0, 255)) == 255, NRRD_SPACING),
        ("la2018_h5", LA_FOLDS, [noise(4).astype(np.float32) / 500 - 1], labels(4, (0, 1)), (0.625,) * 3),
    ],
)
def test_published(kind: str, folds: tuple, images: list, label: np.ndarray, spacing: tuple, tmp_path: Path, capfd):
    """Every channel and label as in the release, and nnU-Net's own check of the dataset passes."""
    build = releases.brats2019 if kind == "brats2019_flair" else getattr(releases, kind)
    release = PUBLISHED[kind](build(tmp_path / "source"))
    check_folds(release, *folds)
    folder = tmp_path / "Dataset027_Toy"
    write_dataset(replace(release, training=release.training[:2], test=release.test[:1]), folder)
    for case, part in ((release.training[1].name, "Tr"), (release.test[0].name, "Ts")):
        assert len(list((folder / f"images{part}").glob(f"{case}_*"))) == len(images)
        files = [folder / f"images{part}" / f"{case}_{channel:04d}.nii.gz" for channel in range(len(images))]
        for file, expected in [
            *zip(files, images, strict=True),
            (folder / f"labels{part}" / f"{case}.nii.gz", label.astype(np.uint8)),
        ]:
            written = sitk.ReadImage(str(file))
            np.testing.assert_allclose(written.GetSpacing(), spacing)
            np.testing.assert_array_equal(sitk.GetArrayFromImage(written).T, expected)
            assert sitk.GetArrayFromImage(written).dtype == expected.dtype
    verify_dataset_integrity(str(folder), num_processes=1)
    assert "Warning" not in capfd.readouterr().out


def test_labeled_cases_are_the_first_of_the_papers(tmp_path: Path):
    """BraTS: 25; left atrium: 8, which validate as well, as the papers have no validation cases."""
    brats = PUBLISHED["brats2019_h5"](releases.brats2019_h5(tmp_path / "brats")).folds
    assert brats[0]["train"] == sorted(paper_split("brats2019").train[:25])
    atria = PUBLISHED["la2018_h5"](releases.la2018_h5(tmp_path / "la")).folds
    assert atria[1]["train"] == sorted(paper_split("la2018").train[:8]) and atria[1]["val"] == atria[1]["train"]


@pytest.fixture(scope="module")
def acdc_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return releases.acdc(tmp_path_factory.mktemp("acdc"))


@pytest.fixture(scope="module")
def acdc_folder(acdc_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = tmp_path_factory.mktemp("raw")
    assert cli.main(["convert", "acdc", str(acdc_source), "-d", "27", "-o", str(raw)]) == 0
    return raw / "Dataset027_ACDC"


def test_acdc(acdc_folder: Path, acdc_source: Path):
    """Two frames of each of the 100 training patients, byte for byte; 4D files and testing patients are left out."""
    assert names(acdc_folder) == {"imagesTr", "labelsTr", "imagesTs", "labelsTs", "dataset.json", "splits_final.json"}
    for part, count in (("Tr", 160), ("Ts", 40)):
        images, label_maps = names(acdc_folder / f"images{part}"), names(acdc_folder / f"labels{part}")
        assert len(images) == count and label_maps == {name.replace("_0000", "") for name in images}
    for case, part in (("patient090_frame04", "Tr"), ("patient099_frame12", "Tr"), ("patient001_frame01", "Ts")):
        source = acdc_source / "database" / "training" / case[:10] / f"{case}.nii.gz"
        assert (acdc_folder / f"images{part}" / f"{case}_0000.nii.gz").read_bytes() == source.read_bytes()
        label = acdc_folder / f"labels{part}" / f"{case}.nii.gz"
        np.testing.assert_array_equal(voxels(label), voxels(source.with_name(f"{case}_gt.nii.gz")))
        np.testing.assert_allclose(nib.load(label).affine, AFFINE, atol=1e-6)
    content = json.loads((acdc_folder / "dataset.json").read_text())
    assert content["channel_names"] == {"0": "cineMRI"} and content["licence"] == "CC BY-NC-SA 4.0"
    assert content["labels"] == {"background": 0, "RV": 1, "MLV": 2, "LVC": 3} and content["numTraining"] == 160


def test_acdc_folds_are_the_papers(acdc_folder: Path):
    """3, 7 and 14 patients, the first of SSL4MIS's list, both frames of each; we read them from the raw folder."""
    splits = load_splits(str(acdc_folder), "")
    assert [tuple(len(fold[key]) for key in ("train", "unlabeled", "val")) for fold in splits] == list(ACDC_FOLDS)
    assert splits[0]["train"] == sorted(
        f"patient{patient}_{frame}" for patient in ("038", "050", "099") for frame in ("frame01", "frame12")
    )
    seven = {"patient021", "patient038", "patient049", "patient050", "patient058", "patient099", "patient100"}
    assert {case[:10] for case in splits[1]["train"]} == seven
    cases = {case for fold in splits for part in fold.values() for case in part}
    assert {f"{case}.nii.gz" for case in cases} == names(acdc_folder / "labelsTr")


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


def test_abdomenct1k(tmp_path: Path):
    """A drawn split of 70, 10 and 20 %; scans without a label map become unlabeled ones."""
    source = releases.abdomenct1k(tmp_path / "source", labeled=40, unlabeled=3)
    release = abdomenct1k(source, seed=0)
    check_folds(release, (1, 27, 4), (3, 25, 4), (6, 22, 4))
    assert len(release.test) == 8 and len({tuple(fold["val"]) for fold in release.folds}) == 1
    assert abdomenct1k(source, seed=1).folds != release.folds and abdomenct1k(source, seed=0).folds == release.folds
    folder = Path(convert("abdomenct1k", str(source), "Dataset050_Abdomen", output=str(tmp_path)))
    assert names(folder / "imagesTr_unlabeled") == {f"Case_{number:05d}_0000.nii.gz" for number in (41, 42, 43)}
    case = release.training[3].name
    np.testing.assert_array_equal(voxels(folder / "imagesTr" / f"{case}_0000.nii.gz"), noise(int(case[-5:])) - 1000)
    np.testing.assert_array_equal(voxels(folder / "labelsTr" / f"{case}.nii.gz"), labels(int(case[-5:]), range(5)))
    assert json.loads((folder / "dataset.json").read_text())["channel_names"] == {"0": "CT"}


def test_decathlon_task_of_several_channels(tmp_path: Path):
    """4D images are taken apart, floats become whole labels, the label 0 is called background."""
    source = releases.decathlon(tmp_path / "Task99_Toy", channels=2)
    folder = Path(convert("msd", str(source), 99, output=str(tmp_path / "raw")))
    assert folder.name == "Dataset099_Toy" and not (folder / "labelsTs").exists()
    assert names(folder / "imagesTs") == {f"toy_01{case}_000{channel}.nii.gz" for case in (0, 1) for channel in (0, 1)}
    for channel in (0, 1):
        image = nib.load(folder / "imagesTr" / f"toy_003_{channel:04d}.nii.gz")
        np.testing.assert_array_equal(image.dataobj, noise(3, (*SIZE, 2))[..., channel])
        np.testing.assert_allclose(image.affine, AFFINE, atol=1e-6)
    label = voxels(folder / "labelsTr" / "toy_003.nii.gz")
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, labels(3, range(3)))
    content = json.loads((folder / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "left": 1, "right": 2}
    assert content["channel_names"] == {"0": "MR0", "1": "MR1"}


def test_label_map_off_the_grid_of_its_image_is_put_onto_it(tmp_path: Path, capsys: pytest.CaptureFixture):
    source = releases.decathlon(tmp_path / "Task98_Shifted")
    shifted = AFFINE.copy()
    shifted[0, 3] += 0.5
    releases.write(source / "labelsTr" / "toy_004.nii.gz", labels(4, range(3)), shifted)
    folder = Path(convert("msd", str(source), 98, output=str(tmp_path)))
    np.testing.assert_allclose(nib.load(folder / "labelsTr" / "toy_004.nii.gz").affine, AFFINE, atol=1e-6)
    assert "note: 1 label maps" in capsys.readouterr().out


def test_label_map_in_another_orientation_is_reoriented(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Stored mirrored, or with swapped axes, but on the voxels of its image: the same voxels afterwards."""
    source = releases.decathlon(tmp_path / "Task98_Turned")
    expected = labels(4, range(3))
    for case, orientation in (("toy_004", "LAS"), ("toy_005", "SPL")):
        axes = nib.orientations.ornt_transform(
            nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(orientation)
        )  # fmt: skip
        turned = nib.Nifti1Image(expected, AFFINE).as_reoriented(axes)
        assert "".join(nib.aff2axcodes(turned.affine)) == orientation != "".join(nib.aff2axcodes(AFFINE))
        nib.save(turned, source / "labelsTr" / f"{case}.nii.gz")
    folder = Path(convert("msd", str(source), 98, output=str(tmp_path)))
    for case in ("toy_004", "toy_005"):
        written = nib.load(folder / "labelsTr" / f"{case}.nii.gz")
        np.testing.assert_array_equal(written.dataobj, expected)
        np.testing.assert_allclose(written.affine, AFFINE, atol=1e-6)
    assert "note:" not in capsys.readouterr().out
    elsewhere = turned.affine.copy()
    elsewhere[:3, 3] += 5
    releases.write(source / "labelsTr" / "toy_005.nii.gz", np.asarray(turned.dataobj), elsewhere)
    with pytest.raises(InputError, match=r"toy_005\.nii\.gz is stored in another orientation than its image"):
        convert("msd", str(source), 98, output=str(tmp_path), overwrite=True)


@pytest.mark.parametrize("scale", [0.1, 1 / 3])
def test_scaled_labels_are_what_nnunet_reads(scale: float, tmp_path: Path):
    """Integers with a scale, whose products are whole numbers up to rounding in float64."""
    source = releases.decathlon(tmp_path / "Task98_Scaled")
    expected = labels(4, range(3))
    image = nib.Nifti1Image(np.rint(expected / scale).astype(np.int16), AFFINE)
    image.header.set_slope_inter(scale, 0)
    nib.save(image, source / "labelsTr" / "toy_004.nii.gz")
    folder = Path(convert("msd", str(source), 98, output=str(tmp_path)))
    np.testing.assert_array_equal(voxels(folder / "labelsTr" / "toy_004.nii.gz"), expected)


def test_every_kind_is_documented():
    page = (Path(__file__).resolve().parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
    assert all(f"`{kind}`" in page and kind in (convert.__doc__ or "") for kind in KINDS)
