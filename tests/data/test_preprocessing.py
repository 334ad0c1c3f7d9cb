"""Reading, checking and preprocessing unlabeled cases with nnU-Net's own reader and preprocessor."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import time
from copy import deepcopy
from pathlib import Path

import data_builders
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from alhvr_trainer.data import workers
from alhvr_trainer.data.case_images import read_case
from alhvr_trainer.data.dataset import Cases, Dataset
from alhvr_trainer.data.preprocessing import (
    missing_cases,
    preprocess_unlabeled,
    remove_other_cases,
    unlabeled_folder,
)
from alhvr_trainer.data.sources import companions, same_sources, source_stamps
from alhvr_trainer.data.workers import run_on_cases
from alhvr_trainer.errors import InputError

RESAMPLING = {"order": 1, "order_z": 0, "force_separate_z": None}
PLANS = {
    "dataset_name": "Dataset901_Tiny",
    "plans_name": "Test",
    "image_reader_writer": "SimpleITKIO",
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "label_manager": "LabelManager",
    "foreground_intensity_properties_per_channel": {
        "0": {"mean": 150.0, "std": 40.0, "percentile_00_5": 60.0, "percentile_99_5": 250.0}
    },
    "configurations": {
        "2d": {
            "data_identifier": "Test_2d",
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": 4,
            "patch_size": [32, 32],
            "spacing": [1.5, 1.5],
            "normalization_schemes": ["CTNormalization"],
            "use_mask_for_norm": [False],
            "resampling_fn_data": "resample_data_or_seg_to_shape",
            "resampling_fn_data_kwargs": {"is_seg": False, **RESAMPLING},
            "resampling_fn_seg": "resample_data_or_seg_to_shape",
            "resampling_fn_seg_kwargs": {"is_seg": True, **RESAMPLING},
            "architecture": {},
        }
    },
}


def managers(plans: dict = PLANS):
    manager = PlansManager(deepcopy(plans))
    return manager, manager.get_configuration("2d")


def changed_plans(**entries: object) -> dict:
    plans = deepcopy(PLANS)
    plans["configurations"]["2d"].update(entries)
    return plans


def preprocess(cases: Cases, dataset: Path, folder: Path, plans: dict = PLANS) -> None:
    dataset_json = data_builders.read_dataset_json(dataset)
    preprocess_unlabeled(cases, *managers(plans), dataset_json, str(folder), num_processes=0, show_progress=False)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return data_builders.make_dataset(tmp_path / "raw", labeled=2, unlabeled=3)


def source(raw: Path) -> Dataset:
    return Dataset(raw.name, str(raw), "", data_builders.read_dataset_json(raw))


@pytest.fixture
def cases(dataset: Path) -> Cases:
    """case_001 of the split, scan_000 to scan_002 of the folder."""
    data_builders.write_splits(dataset, {"train": ["case_000"], "unlabeled": ["case_001"], "val": []})
    return source(dataset).fold(0, ["case_000"], []).unlabeled


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(unlabeled_folder(str(tmp_path / "preprocessed" / "Test_2d")))


def test_folder_lies_beside_that_of_nnunet() -> None:
    assert unlabeled_folder("/data/Dataset027_ACDC/Plans_2d/") == "/data/Dataset027_ACDC/Plans_2d_unlabeled"


def test_images_are_as_nnunet_preprocesses_them(cases: Cases, dataset: Path, folder: Path) -> None:
    preprocess(cases, dataset, folder)
    stored = nnUNetDatasetBlosc2(str(folder))
    assert stored.identifiers == ["case_001", "scan_000", "scan_001", "scan_002"]
    manager, configuration = managers()
    label = str(dataset / "labelsTr" / "case_001.nii.gz")
    dataset_json = data_builders.read_dataset_json(dataset)
    expected, labels, _ = DefaultPreprocessor(verbose=False).run_case(
        cases["case_001"], label, manager, configuration, dataset_json
    )
    data, segmentation, _, properties = stored.load_case("case_001")
    np.testing.assert_array_equal(data[:], expected)
    assert data.shape == (1, 4, 21, 19)
    assert labels.max() == 2, "the comparison needs a label to hide"
    assert not segmentation[:].any()
    assert "class_locations" not in properties


def test_outside_of_the_nonzero_mask_is_marked(dataset: Path, folder: Path) -> None:
    image = data_builders.ellipsoid(0)[0]
    image[:, :10, :9] = 0
    image[:, :4] = 0
    file = data_builders.write_image(dataset / "imagesTr_unlabeled" / "scan_000_0000.nii.gz", image)
    preprocess({"scan_000": [str(file)]}, dataset, folder, changed_plans(spacing=[1.0, 1.0]))
    _, segmentation, _, properties = nnUNetDatasetBlosc2(str(folder)).load_case("scan_000")
    assert properties["bbox_used_for_cropping"][1] == [4, 32]
    np.testing.assert_array_equal(segmentation[:] == -1, image[None, :, 4:] == 0)


@pytest.mark.parametrize("damage", ["garbage", "removed"])
def test_labels_of_unlabeled_cases_are_never_touched(
    cases: Cases, dataset: Path, folder: Path, tmp_path: Path, damage: str
) -> None:
    preprocess(cases, dataset, folder)
    for file in (dataset / "labelsTr").iterdir():
        file.write_bytes(b"no image") if damage == "garbage" else file.unlink()
    again = tmp_path / "again"
    preprocess(cases, dataset, again)
    for case in cases:
        before, after = (nnUNetDatasetBlosc2(str(where)).load_case(case) for where in (folder, again))
        np.testing.assert_array_equal(before[0][:], after[0][:])
        np.testing.assert_array_equal(before[1][:], after[1][:])


def test_only_what_is_missing_is_done(cases: Cases, dataset: Path, folder: Path) -> None:
    assert missing_cases(str(folder), cases, *managers()) == list(cases)
    preprocess(cases, dataset, folder)
    assert missing_cases(str(folder), cases, *managers()) == []
    times = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert len(times) == 3 * len(cases), "nothing but the cases may be left in the folder"
    (folder / "scan_001.pkl").unlink()  # as after a kill: the .pkl comes last
    (folder / "scan_002.pkl").write_bytes(b"half")
    assert missing_cases(str(folder), cases, *managers()) == ["scan_001", "scan_002"]
    preprocess(cases, dataset, folder)
    redone = {file.name for file in folder.iterdir() if file.stat().st_mtime_ns != times[file.name]}
    ending = (".b2nd", "_seg.b2nd", ".pkl")
    assert redone == {f"{case}{end}" for case in ("scan_001", "scan_002") for end in ending}


def test_changed_image_is_done_again(cases: Cases, dataset: Path, folder: Path) -> None:
    preprocess(cases, dataset, folder)
    image, _ = data_builders.ellipsoid(seed=77)
    data_builders.write_image(Path(cases["scan_001"][0]), image)
    assert missing_cases(str(folder), cases, *managers()) == ["scan_001"]
    old = nnUNetDatasetBlosc2(str(folder)).load_case("scan_001")[0][:]
    preprocess(cases, dataset, folder)
    new = nnUNetDatasetBlosc2(str(folder)).load_case("scan_001")[0][:]
    assert np.abs(new - old).max() > 0.1
    assert missing_cases(str(folder), cases, *managers()) == []


@pytest.mark.parametrize(
    ("plans", "matters"),
    [
        (changed_plans(spacing=[2.0, 2.0]), True),
        (changed_plans(normalization_schemes=["ZScoreNormalization"]), True),
        (changed_plans(use_mask_for_norm=[True]), True),
        (changed_plans(resampling_fn_data_kwargs={"is_seg": False, **RESAMPLING, "order": 3}), True),
        ({**PLANS, "transpose_forward": [1, 0, 2]}, True),
        ({**PLANS, "foreground_intensity_properties_per_channel": {"0": {"mean": 1.0}}}, True),
        ({**PLANS, "image_reader_writer": "NibabelIO"}, True),
        (changed_plans(batch_size=2, patch_size=[16, 16], alhvr={"threshold_proportion": 0.9}), False),
    ],
)
def test_changed_plans(cases: Cases, dataset: Path, folder: Path, plans: dict, matters: bool) -> None:
    some = {"scan_000": cases["scan_000"]}
    preprocess(some, dataset, folder)
    assert missing_cases(str(folder), some, *managers(plans)) == (["scan_000"] if matters else [])
    # nor does it matter whether the plans come from a file
    assert missing_cases(str(folder), some, *managers(json.loads(json.dumps(PLANS)))) == []


def test_plans_that_change_back_do_not_revive_old_data(cases: Cases, dataset: Path, folder: Path) -> None:
    some = {"scan_000": cases["scan_000"]}
    for plans in (PLANS, changed_plans(spacing=[3.0, 3.0]), PLANS):
        preprocess(some, dataset, folder, plans)
        shape = nnUNetDatasetBlosc2(str(folder)).load_case("scan_000")[0].shape
    assert shape == (1, 4, 21, 19)


def test_a_bad_image_stops_but_keeps_what_is_done(cases: Cases, dataset: Path, folder: Path) -> None:
    bad = Path(cases["scan_001"][0])
    bad.write_bytes(bad.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"cannot read .*scan_001_0000.nii.gz"):
        preprocess(cases, dataset, folder)
    assert missing_cases(str(folder), cases, *managers()) == ["scan_001", "scan_002"]
    assert {file.name.split(".")[0].removesuffix("_seg") for file in folder.iterdir()} == {
        "case_001",
        "scan_000",
    }


def test_leftovers_of_killed_runs_go_after_a_day(cases: Cases, dataset: Path, folder: Path) -> None:
    old, new = folder / ".partial_old", folder / ".partial_new"
    for leftover in (old, new):
        (leftover / "scan_000").mkdir(parents=True)
    two_days_ago = time.time() - 48 * 3600
    os.utime(old, (two_days_ago, two_days_ago))
    preprocess(cases, dataset, folder)
    assert not old.exists()
    assert new.exists()


def test_rgb_images(tmp_path: Path) -> None:
    """One file per case with three channels."""
    images = tmp_path / "imagesTr_unlabeled"
    images.mkdir()
    pixels = np.random.default_rng(0).integers(1, 255, (20, 24, 3), dtype=np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=True), str(images / "photo_0000.png"))
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "imagesTr" / "a_0000.png").touch()
    dataset_json = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0},
        "file_ending": ".png",
    }
    plans = changed_plans(
        normalization_schemes=["ZScoreNormalization"] * 3, use_mask_for_norm=[False] * 3, spacing=[1.0, 1.0]
    )
    plans["foreground_intensity_properties_per_channel"] = {str(channel): {} for channel in range(3)}
    plans["image_reader_writer"] = "NaturalImage2DIO"
    cases = Dataset("", str(tmp_path), "", dataset_json).unlabeled_images
    preprocess_unlabeled(cases, *managers(plans), dataset_json, str(tmp_path / "out"), 0, show_progress=False)
    assert nnUNetDatasetBlosc2(str(tmp_path / "out")).load_case("photo")[0].shape == (3, 1, 20, 24)
    two_channels = {**dataset_json, "channel_names": {"0": "R", "1": "G"}}
    with pytest.raises(InputError, match=r"photo_0000.png: found 3 image channels, dataset.json names 2"):
        preprocess_unlabeled(cases, *managers(plans), two_channels, str(tmp_path / "two"), 0, show_progress=False)


def broken_image(folder: Path, kind: str) -> list[Path]:
    image, _ = data_builders.ellipsoid(0, (6, 40, 40))
    if kind in ("NaN", "Inf"):
        image[2, 3, 4] = np.nan if kind == "NaN" else np.inf
    if kind == "empty":
        image[:] = 0
    ending = ".nrrd" if "nrrd" in kind else ".nii" if "nibabel" in kind else ".nii.gz"
    file = data_builders.write_image(folder / f"x_0000{ending}", image)
    if "truncated" in kind:
        file.write_bytes(file.read_bytes()[:-100])
    if kind == "no image":
        file.write_bytes(b"something else")
    if kind == "missing":
        file.unlink()
    files = [file]
    if kind == "shape":
        files.append(data_builders.write_image(folder / "x_0001.nii.gz", image[:4]))
    if kind == "NaN in a channel":
        image[0, 0, 0] = np.nan
        files.append(data_builders.write_image(folder / "x_0001.nii.gz", image))
    return files


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"x_0000.nii.gz does not exist"),
        ("no image", r"cannot read .*x_0000.nii.gz: "),
        ("truncated", r"cannot read .*x_0000.nii.gz \(damaged.*: it ends before the last of its"),
        ("truncated nrrd", r"cannot read .*x_0000.nrrd: "),
        ("truncated nibabel", r"cannot read .*x_0000.nii: "),
        ("NaN", r"x_0000.nii.gz has 1 NaN or infinite voxel; replace"),
        ("Inf", r"x_0000.nii.gz has 1 NaN or infinite voxel; replace"),
        ("NaN in a channel", r"x_0001.nii.gz has 1 NaN"),
        ("empty", r"x_0000.nii.gz is an empty image: all voxels are zero"),
        ("shape", r"cannot read .*x_0000.nii.gz, x_0001.nii.gz: its channels differ in shape or spacing"),
    ],
)
def test_images_that_would_spoil_training(tmp_path: Path, kind: str, message: str) -> None:
    """ITK itself reads a truncated .nii.gz without an error, and NaN as 0."""
    files = [str(file) for file in broken_image(tmp_path, kind)]
    with pytest.raises(InputError, match=message) as error:
        read_case(files, NibabelIO() if "nibabel" in kind else SimpleITKIO())
    assert "\n" not in str(error.value)


def test_a_good_image_is_what_the_reader_gives(tmp_path: Path) -> None:
    image, _ = data_builders.ellipsoid(0)
    file = str(data_builders.write_image(tmp_path / "x_0000.nii.gz", image, spacing=(1.0, 2.0, 5.0)))
    data, properties = read_case([file], SimpleITKIO())
    np.testing.assert_array_equal(data, image[None])
    assert properties["spacing"] == [5.0, 2.0, 1.0]


def test_huge_values_are_no_infinities(tmp_path: Path) -> None:
    """Their sum overflows, they do not."""
    image = np.full((4, 5, 6), 3e38, dtype=np.float32)
    file = str(data_builders.write_image(tmp_path / "x_0000.nrrd", image))
    assert read_case([file], SimpleITKIO())[0].max() == np.float32(3e38)


def test_processes_give_the_same_as_none() -> None:
    numbers = {name: (name,) for name in "3142"}
    for processes in (0, 2):
        assert run_on_cases(int, numbers, processes, "", show_progress=False) == {name: int(name) for name in "3142"}


def test_preprocessing_in_other_processes(
    cases: Cases, dataset: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny cases of the other tests are done in this process."""
    assert workers.useful_processes(2, cases) == 0
    monkeypatch.setattr(workers, "BYTES_WORTH_A_PROCESS", 0)
    assert workers.useful_processes(2, cases) == 2
    Path(cases["scan_002"][0]).write_bytes(b"no image")
    dataset_json = data_builders.read_dataset_json(dataset)
    with pytest.raises(InputError, match=r"scan_002_0000.nii.gz"):
        preprocess_unlabeled(cases, *managers(), dataset_json, str(folder), 2, show_progress=False)
    assert missing_cases(str(folder), cases, *managers()) == ["scan_002"]


@pytest.mark.parametrize("processes", [0, 2])
def test_the_error_of_a_case_is_raised(processes: int) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        run_on_cases(int, {"a": ("1",), "b": ("x",), "c": ("2",)}, processes, "", show_progress=False)


def test_a_dead_process_is_noticed() -> None:
    with pytest.raises(RuntimeError, match="one of 2 worker processes died"):
        run_on_cases(os._exit, {"a": (9,), "b": (9,)}, 2, "", show_progress=False)


def test_sources_are_written_down(cases: Cases, dataset: Path, folder: Path) -> None:
    preprocess(cases, dataset, folder)
    record = pickle.loads((folder / "scan_000.pkl").read_bytes())["preprocessed_with"]
    status = Path(cases["scan_000"][0]).stat()
    digest = hashlib.blake2b(Path(cases["scan_000"][0]).read_bytes(), digest_size=16).hexdigest()
    assert record["files"] == [["scan_000_0000.nii.gz", status.st_size, status.st_mtime_ns, digest]]
    assert record["settings"]["spacing"] == [1.5, 1.5]


def test_contents_decide_where_times_differ(cases: Cases, dataset: Path, folder: Path) -> None:
    """Copied with new times: nothing to do. The same size and the time of a copy, but other voxels: again."""
    preprocess(cases, dataset, folder)
    file = Path(cases["scan_000"][0])
    os.utime(file, (1, 1))
    assert missing_cases(str(folder), cases, *managers()) == []
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert missing_cases(str(folder), cases, *managers()) == ["scan_000"]


def change(file: Path, content: bytes) -> None:
    """As an editor would, even within one tick of the clock."""
    file.write_bytes(content)
    os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns + 1))


@pytest.mark.parametrize("ending", [".mhd", ".nhdr", ".img", ".hdr", ".tif"])
def test_files_beside_an_image_count(ending: str, tmp_path: Path) -> None:
    """Voxels in a file of their own, and the spacing of a 3D TIFF; each reader's own files, written by its library."""
    image = tmp_path / f"scan_0000{ending}"
    if ending == ".tif":
        image.write_bytes(b"a TIFF")
        (tmp_path / "scan.json").write_text('{"spacing": [8, 3, 3]}')
    else:
        sitk.WriteImage(sitk.GetImageFromArray(np.ones((2, 3, 4), np.uint8)), str(image))
    (other,) = [file for file in tmp_path.iterdir() if file != image]
    assert companions(str(image)) == [str(other)]
    stamps = source_stamps([str(image)])
    assert [stamp[0] for stamp in stamps] == [image.name, other.name] and same_sources(stamps, [str(image)])
    content = other.read_bytes()
    change(other, content)
    assert same_sources(stamps, [str(image)])
    change(other, content[::-1] if content != content[::-1] else bytes(len(content)))
    assert not same_sources(stamps, [str(image)])
    other.unlink()
    assert not same_sources(stamps, [str(image)])


def test_files_listed_in_a_header_count(tmp_path: Path) -> None:
    header = tmp_path / "a.mhd"
    for text, names in (("ElementDataFile = LIST\r\ns1.raw\r\ns2.raw\r\n", ["s1.raw", "s2.raw"]), ("", [])):
        header.write_bytes(f"NDims = 3\r\n{text}".encode())
        assert companions(str(header)) == [str(tmp_path / name) for name in names]
    header.write_bytes(b"ObjectType = Image\nElementDataFile = LOCAL\n\x00\xff")
    assert companions(str(header)) == []


def test_a_folder_that_cannot_be_written(cases: Cases, dataset: Path, folder: Path) -> None:
    """Nobody writes into it where nothing is to be done."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("a file is in its place")
    with pytest.raises(InputError, match=r"cannot be written \(.* unlabeled cases, .*, still have to be preprocessed"):
        preprocess(cases, dataset, folder)


def test_cases_without_images_are_removed(cases: Cases, dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "Dataset901_Tiny" / "Test_2d_unlabeled"
    preprocess(cases, dataset, folder)
    gone, *kept = cases
    assert remove_other_cases(str(folder.parent), kept) == [gone]
    assert nnUNetDatasetBlosc2(str(folder)).identifiers == sorted(kept)
    assert not list(folder.glob(f"{gone}*"))
