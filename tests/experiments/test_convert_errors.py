"""What ``alhvr convert`` refuses: one line that names the file and says what to do; nothing is overwritten."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tiny_releases as releases
from tiny_releases import SIZE, labels, noise, write_h5, write_nifti

from alhvr_trainer import cli
from alhvr_trainer.errors import InputError
from alhvr_trainer.experiments.convert.acdc import acdc
from alhvr_trainer.experiments.convert.brats2019 import brats2019
from alhvr_trainer.experiments.convert.command import convert
from alhvr_trainer.experiments.convert.folds import paper_split
from alhvr_trainer.experiments.convert.la2018 import la2018
from alhvr_trainer.experiments.convert.labels import mapped_values
from alhvr_trainer.experiments.convert.volumes import HDF5Volume, ImageFile

pytestmark = pytest.mark.any_nnunet


@pytest.fixture(scope="module")
def unchanged_task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return releases.decathlon(tmp_path_factory.mktemp("release") / "Task99_Toy", channels=1)


@pytest.fixture
def task(unchanged_task: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(unchanged_task, tmp_path / "Task99_Toy"))


def refused(message: str, source: Path, kind: str = "msd", dataset: object = 99, **options: object) -> Path:
    """Converting fails with the message; the dataset's folder."""
    raw = source.parent / "raw"
    with pytest.raises(InputError, match=re.escape(message)) as error:
        convert(kind, str(source), dataset, output=str(raw), **options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return raw / "Dataset099_Toy"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "acdc2"}, "\"kind\" is 'acdc2'; it must be one of: acdc, acdc_h5"),
        ({"dataset": 1000}, '"dataset" must be a number from 1 to 999'),
        ({"dataset": "ACDC"}, '"dataset" must be a number from 1 to 999 or a name like Dataset027_ACDC'),
        ({"dataset": "Dataset027_../x"}, '"dataset" must be'),
        ({"seed": -1}, '"seed" must be a whole number of at least 0, found -1'),
    ],
)
def test_bad_arguments(task: Path, options: dict, message: str):
    refused(message, task, **options)


def test_source_is_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert cli.main(["convert", "acdc", str(tmp_path / "nothing"), "-d", "27", "-o", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f'alhvr: "source" is {tmp_path / "nothing"}, which is not a folder\n'


def test_wrong_folder_names_what_is_looked_for(task: Path):
    refused("holds no file like patient001/patient001_frame01.nii.gz", task, kind="acdc")
    refused("holds no file like data/BraTS19_2013_8_1.h5", task, kind="brats2019_h5")
    refused("holds no file like Case_00001_0000.nii.gz", task, kind="abdomenct1k")


def test_acdc_patients(tmp_path: Path):
    patients = paper_split("acdc").train[:2]
    source = releases.official_acdc(tmp_path, patients)
    with pytest.raises(InputError, match=r"has 0 annotated frames of patient050 \(none\); the release has 2"):
        acdc(source)
    folder = source / "database" / "training" / "patient099"
    (folder / "patient099_frame12.nii.gz").unlink()
    with pytest.raises(InputError, match=r"has 1 annotated frames of patient099 \(patient099_frame01\)"):
        acdc(source)
    (folder / "patient099_frame01_gt.nii.gz").unlink()
    with pytest.raises(InputError, match=r"lacks patient099_frame01_gt.nii.gz, the label map of patient099_frame01"):
        acdc(source)


def test_missing_and_doubled_files(tmp_path: Path):
    cases = paper_split("brats2019").all()
    source = releases.official_brats(tmp_path / "brats", cases)
    (gone,) = source.rglob(f"{cases[7]}_t1ce.nii.gz")
    gone.unlink()
    with pytest.raises(InputError, match=f"lacks {cases[7]}_t1ce.nii.gz: complete the release"):
        brats2019(source)
    (file,) = source.rglob(f"{cases[3]}_seg.nii.gz")
    releases.linked(file, source / "copy" / file.name)
    with pytest.raises(InputError, match=f"{file.name} are the same case: leave one of them"):
        brats2019(source)
    atria = releases.official_la(tmp_path / "la", paper_split("la2018").all())
    (atria / "Training Set" / "UPT6DX9IQY9JAZ7HJKA7" / "laendo.nrrd").unlink()
    with pytest.raises(InputError, match=r"lacks UPT6DX9IQY9JAZ7HJKA7/laendo.nrrd"):
        la2018(atria)


def test_label_map_without_image(tmp_path: Path):
    source = releases.abdomenct1k(tmp_path / "source", labeled=10, unlabeled=0)
    (source / "AbdomenCT-1K-ImagePart1" / "Case_00004_0000.nii.gz").unlink()
    refused("lacks Case_00004_0000.nii.gz, the image of", source, kind="abdomenct1k")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modality": None}, '"modality" must name 0, 1, …'),
        ({"labels": {"1": "left"}}, '"labels" must name 0, 1, …'),
        ({"labels": {"0": "background", "1": 5}}, '"labels" must hold names'),
        ({"training": "imagesTr"}, '"training" must be a list of files'),
        ({"training": ["./imagesTr/toy_000.nii.gz"]}, '"training" must list {"image": file, "label": file}'),
        ({"test": ["../../secret/x.nii.gz"]}, "must name files like ./imagesTr/case_001.nii.gz"),
        ({"test": ["./imagesTs/toy_999.nii.gz"]}, "toy_999.nii.gz does not exist, but"),
    ],
)
def test_dataset_json_of_a_task(task: Path, change: dict, message: str):
    content = json.loads((task / "dataset.json").read_text())
    (task / "dataset.json").write_text(json.dumps(content | change))
    refused(message, task)


def test_folder_of_no_task(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    refused("dataset.json does not exist; name the folder of one task", tmp_path / "empty")


@pytest.mark.parametrize(
    ("file", "array", "message"),
    [
        ("labelsTr/toy_002.nii.gz", labels(0, (0, 1, 7)), "toy_002.nii.gz has the label 7; expected 0, 1, 2"),
        ("labelsTr/toy_002.nii.gz", np.full(SIZE, 0.5, np.float32), "toy_002.nii.gz: 60 voxels are no whole number"),
        ("labelsTr/toy_002.nii.gz", labels(0, (0, 1), (5, 4, 2)), "has 5 × 4 × 2 voxels, its image 5 × 4 × 3"),
        ("imagesTr/toy_002.nii.gz", noise(0, (*SIZE, 2)), "must be a 3D image, found 5 × 4 × 3 × 2 voxels"),
        ("imagesTr/toy_002.nii.gz", noise(0, (5, 4)), "must be a 3D image, found 5 × 4 voxels"),
    ],
)
def test_odd_volumes(task: Path, file: str, array: np.ndarray, message: str):
    """The unfinished dataset has neither dataset.json nor splits, and half a case of nothing."""
    write_nifti(task / file, array)
    folder = refused(message, task)
    assert not (folder / "dataset.json").exists() and not (folder / "splits_final.json").exists()
    assert not list(folder.glob(".convert_*"))
    convert_again = write_nifti(task / file, labels(2, range(3)) if "label" in file else noise(2))
    convert("msd", str(task), 99, output=str(folder.parent))
    assert (folder / "dataset.json").exists(), f"goes on once {convert_again} is corrected"


def test_damaged_files(task: Path, tmp_path: Path):
    image = task / "imagesTr" / "toy_001.nii.gz"
    image.write_bytes(image.read_bytes()[:-40])
    refused(f"cannot read {image} (damaged or not an image)", task)
    image.write_bytes(b"nothing")
    refused(f"cannot read {image} (damaged or not an image)", task)
    broken = tmp_path / "broken.nrrd"
    releases.write_nrrd(broken, noise(0, (64, 64, 30)))
    broken.write_bytes(broken.read_bytes()[:9000])
    with pytest.raises(InputError, match=r"cannot read .*broken.nrrd"):
        ImageFile(broken).read()


def test_several_values_per_voxel(tmp_path: Path):
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 5, 3), np.uint8), isVector=True), str(tmp_path / "rgb.nrrd"))
    with pytest.raises(InputError, match=r"rgb.nrrd must be a 3D image"):
        ImageFile(tmp_path / "rgb.nrrd").geometry()


def test_hdf5_files(tmp_path: Path):
    spacing = (1.0, 1.0, 1.0)
    file = write_h5(tmp_path / "case.h5", image=noise(0), flat=noise(0, (5, 4)))
    with pytest.raises(InputError, match=r'case.h5 has no "label"; it holds: flat, image'):
        HDF5Volume(file, "label", spacing).read()
    with pytest.raises(InputError, match=r'"flat" in .*case.h5 is int16 of shape \(5, 4\), not a 3D image'):
        HDF5Volume(file, "flat", spacing).read()
    file.write_bytes(b"no HDF5")
    with pytest.raises(InputError, match=r"cannot read .*case.h5 \(damaged or no HDF5 file\)"):
        HDF5Volume(file, "image", spacing).read()


def test_channels_on_different_grids(tmp_path: Path):
    source = releases.official_brats(tmp_path / "brats", paper_split("brats2019").all())
    (file,) = source.rglob("BraTS19_2013_10_1_t2.nii.gz")
    file.unlink()
    write_nifti(file, noise(0, (5, 4, 4)))
    refused(f"{file} has another grid than", source, kind="brats2019", dataset=43)


def test_existing_datasets_are_kept(task: Path):
    """Another conversion, other splits, unknown cases, a number in use: all refused, nothing changed."""
    folder = Path(convert("msd", str(task), 99, output=str(task.parent / "raw")))
    refused("dataset.json differs from what converting this msd gives", task, seed=1)
    splits = (folder / "splits_final.json").read_text()
    (folder / "splits_final.json").write_text("[]")
    refused("splits_final.json differs from what converting this msd gives", task)
    images = {file: file.stat().st_mtime_ns for file in (folder / "imagesTr").iterdir()}
    convert("msd", str(task), 99, output=str(folder.parent), overwrite=True)
    assert all(file.stat().st_mtime_ns != time for file, time in images.items())
    assert (folder / "splits_final.json").read_text() == splits
    (folder / "imagesTr" / "mine_0000.nii.gz").touch()
    refused("mine_0000.nii.gz is not a file of this release: remove it", task, overwrite=True)
    (folder / "imagesTr" / "mine_0000.nii.gz").unlink()
    (folder / "dataset.json").unlink()
    refused("holds images but no dataset.json", task)
    refused("the number 099 is taken by Dataset099_Toy in", task, dataset="Dataset099_Other")


def test_label_values():
    assert mapped_values(np.array([[0, 4], [2, 1]]), {0: 0, 1: 1, 2: 2, 4: 3}, "x").tolist() == [[0, 3], [2, 1]]
    with pytest.raises(InputError, match="x has the label nan; expected 0, 1"):
        mapped_values(np.array([0.0, np.nan]), {0: 0, 1: 1}, "x")
