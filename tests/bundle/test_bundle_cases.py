"""Which cases the bundle finds in a folder, and what it says of files that it cannot take."""

from __future__ import annotations

import gzip
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import ORIGIN, SPACING, oblique_image, write_series
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from scripts.cases import ENDINGS, cases_or_problem, find_cases
from scripts.dicom import series_files
from scripts.images import check_image, nnunet_readable, read_image
from scripts.input_error import InputError
from trained_models import OBLIQUE

from alhvr_trainer.resources import bundle_folder

pytestmark = pytest.mark.any_nnunet


def found(folder, channels=1, **options):
    """Case -> names of its files."""
    cases = find_cases(folder, channels, **options)
    return {case["case"]: [file.rsplit("/", 1)[-1] for file in case["image"]] for case in cases}


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_ending(tmp_path, ending):
    touch(tmp_path, f"heart_0000{ending}", f"heart_0001{ending}")
    assert found(tmp_path, 2) == {"heart": [f"heart_0000{ending}", f"heart_0001{ending}"]}


def test_several_endings_and_what_is_no_image(tmp_path):
    touch(tmp_path, "b_0001.nrrd", "b_0000.nii.gz", "a.b_0000.mha", "a.b_0001.mhd", "a.b_0001.raw")
    touch(tmp_path, "notes.txt", "._b_0000.nii.gz", ".DS_Store")
    touch(tmp_path / "empty", "more.txt")
    assert found(tmp_path, 2) == {"a.b": ["a.b_0000.mha", "a.b_0001.mhd"], "b": ["b_0000.nii.gz", "b_0001.nrrd"]}


def test_hidden_files_are_no_cases(tmp_path):
    """Not as the one image that is named either, and not as instances of a series."""
    touch(tmp_path, "a_0000.nii.gz", "._a_0000.nii.gz")
    with pytest.raises(InputError, match=r"dataset_dir .*\._a_0000\.nii\.gz is a hidden file"):
        find_cases(tmp_path / "._a_0000.nii.gz", 1)
    series = write_series(tmp_path / "series", oblique_image())
    expected = series_files(series)
    (series / ".000.dcm").write_bytes((series / "000.dcm").read_bytes())
    (series / "._000.dcm").write_bytes(b"\x00\x05\x16\x07")
    assert series_files(series) == expected and len(expected) == 6


def test_one_channel_needs_no_number(tmp_path):
    touch(tmp_path, "plain.nii.gz", "numbered_0000.nii.gz", "12345.nrrd")
    assert found(tmp_path) == {
        "12345": ["12345.nrrd"],
        "numbered": ["numbered_0000.nii.gz"],
        "plain": ["plain.nii.gz"],
    }


def test_endings_of_the_training_data(tmp_path):
    touch(tmp_path, "cell_0000.png")
    assert found(tmp_path, file_ending=".png") == {"cell": ["cell_0000.png"]}


def test_one_file(tmp_path):
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nrrd", "a_b_0000.nii.gz", "b_0000.nii.gz", "scan_0007.mha", "plain.nii")
    assert found(tmp_path / "a_0000.nii.gz", 2) == {"a": ["a_0000.nii.gz", "a_0001.nrrd"]}
    assert found(tmp_path / "b_0000.nii.gz") == {"b": ["b_0000.nii.gz"]}
    # it is named, so it is meant, with a patient's number in its name or not
    assert found(tmp_path / "scan_0007.mha") == {"scan_0007": ["scan_0007.mha"]}
    assert found(tmp_path / "plain.nii") == {"plain": ["plain.nii"]}


@pytest.mark.parametrize("names", ["{:03d}.dcm", "{:03d}", "1.2.840.113619.{}"])
def test_a_dicom_series_is_a_case(tmp_path, names):
    folder = write_series(tmp_path / "patient", oblique_image(), names=names)
    touch(folder, "report.pdf", "DICOMDIR")
    assert find_cases(folder, 1) == [{"case": "patient", "image": [str(folder)]}]
    shutil.copytree(folder, tmp_path / "other_0000")
    touch(tmp_path, "third.nii.gz")
    assert found(tmp_path) == {"other": ["other_0000"], "patient": ["patient"], "third": ["third.nii.gz"]}


def test_channels_of_dicom(tmp_path):
    for number in range(2):
        write_series(tmp_path / f"patient_{number:04d}", oblique_image())
    expected = {"patient": ["patient_0000", "patient_0001"]}
    assert found(tmp_path, 2) == found(tmp_path / "patient_0000", 2) == expected


def test_the_folder_one_stands_in(tmp_path, monkeypatch):
    monkeypatch.chdir(write_series(tmp_path / "patient", oblique_image()))
    assert find_cases(".", 1) == [{"case": "patient", "image": ["."]}]


def _two_series(folder):
    write_series(folder / "p", oblique_image(), description="T1")
    write_series(folder / "p", oblique_image(), uid="1.2.3.4", description="localizer", names="l{}.dcm", slices=[1])


@pytest.mark.parametrize(("make", "channels", "message"), [
    (lambda f: f.rmdir(), 1, r"^dataset_dir \S+ does not exist; name a folder"),
    (lambda f: None, 1, r"^no image in dataset_dir \S+: it is empty; supported are \.nii\.gz, .*gipl and DICOM s"),
    (lambda f: touch(f, "a.txt", "b", "c.png") and (f / "d").mkdir(), 1,
     r"^no image in dataset_dir \S+: it holds .png, .txt, no ending, 1 folders without DICOM instances; supp"),
    (lambda f: touch(f, "a_0000.nii.gz"), 2,
     r"^case a in \S+ has 1 channel \(a_0000.nii.gz\), the model needs 2: a_0000, a_0001$"),
    (lambda f: touch(f, "a_0000.nii.gz", "a_0001.nii.gz"), 1,
     r"case a in \S+ has 2 channels \(.*\), the model needs 1: a_0000 \(four digits .* append _0000\)$"),
    (lambda f: touch(f, "a_0000.nii.gz", "a_0002.nii.gz"), 2,
     r"case a in \S+ has channel 0, 2 \(a_0000.nii.gz, a_0002.nii.gz\); rename to a_0000, a_0001$"),
    (lambda f: touch(f, "a.nii.gz"), 2, r"a.nii.gz carries no channel number, .* 2 channels: name them a_0000, a_00"),
    (lambda f: touch(f, "a_0000.nii.gz", "a_0000.mha"), 1, r"case a in \S+ is there twice: a_0000.mha, a_0000.nii.gz;"),
    (lambda f: touch(f, "a_0000.nii.gz", "a.nii.gz"), 1, r"case a in \S+ is there twice: a.nii.gz, a_0000.nii.gz; r"),
    (_two_series, 1,
     r"p holds 2 DICOM series.*: 1\.2\.\S+ \"\S+\" \(\d files\); .* \(\d files\); put each into its own folder$"),
    (lambda f: touch(f / "p", "1.dcm"), 1, r"cannot read the DICOM files in \S+p \(damaged or no images\); export"),
])  # fmt: skip
def test_what_is_wrong_with_a_folder(tmp_path, make, channels, message):
    folder = touch(tmp_path / "in")
    make(folder)
    with pytest.raises(InputError, match=message) as caught:
        find_cases(folder, channels)
    assert "\n" not in str(caught.value)


def test_series_are_told_apart_by_name(tmp_path):
    _two_series(tmp_path)
    with pytest.raises(InputError, match=r'1\.2\.3\.4 "localizer" \(1 files\)') as caught:
        find_cases(tmp_path, 1)
    assert '1.2.826.0.1.3680043.2.1125.1 "T1" (6 files)' in str(caught.value)


def test_one_file_that_is_no_image(tmp_path):
    with pytest.raises(InputError, match=r"notes.txt is not an image; supported are"):
        find_cases(touch(tmp_path, "notes.txt") / "notes.txt", 1)


def test_the_problem_is_kept_for_the_run(tmp_path):
    cases = cases_or_problem(tmp_path / "nowhere", 1)
    assert cases == []
    assert cases.problem.startswith(f"dataset_dir {tmp_path / 'nowhere'} does not exist")


def test_finding_needs_neither_torch_nor_nnunet(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(bundle_folder())!r}); from scripts import cases\n"
        f"cases.find_cases({str(touch(tmp_path, 'a.nii.gz'))!r}, 1)\n"
        "print(sorted({'torch', 'monai', 'nnunetv2', 'SimpleITK'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def _same_voxels_and_place(image, expected, tolerance):
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(expected))
    for what in ("Spacing", "Origin", "Direction"):
        values, meant = (getattr(each, f"Get{what}")() for each in (image, expected))
        np.testing.assert_allclose(values, meant, rtol=0, atol=tolerance)


# DICOM writes decimal strings, NIfTI single precision
@pytest.mark.parametrize(("reader", "tolerance"), [(SimpleITKIO, 1e-12), (NibabelIO, 1e-5)])
@pytest.mark.parametrize("kind", [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl", "dicom"])
def test_conversion_changes_nothing(tmp_path, kind, reader, tolerance):
    image = oblique_image()
    if kind == ".gipl":  # has no direction
        image.SetDirection(np.eye(3).ravel())
    if kind == "dicom":
        file = write_series(tmp_path / "case_0000", image)
    else:
        file = tmp_path / f"case_0000{kind}"
        sitk.WriteImage(image, str(file))
    endings = reader.supported_file_endings
    (readable,) = nnunet_readable([str(file)], endings, tmp_path / "converted")
    taken = kind in endings
    assert (readable == str(file)) == taken
    assert readable.endswith(tuple(endings))
    from_file = 1e-5 if kind in (".nii", ".nii.gz", ".gipl", "dicom") else 1e-12
    _same_voxels_and_place(sitk.ReadImage(readable), image, max(tolerance, from_file))
    if not taken:
        _same_voxels_and_place(sitk.ReadImage(readable), read_image(file), tolerance)
    voxels, properties = reader().read_images([readable])
    np.testing.assert_array_equal(voxels[0], sitk.GetArrayFromImage(image))
    np.testing.assert_allclose(properties["spacing"], SPACING[::-1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.float32, np.float64])
def test_conversion_keeps_the_type(tmp_path, dtype):
    voxels = np.array([[[1, 2], [3, 250]], [[5, 6], [7, 8]]], dtype)
    if np.issubdtype(dtype, np.floating):
        voxels = voxels / 3
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / "a.nrrd"))
    for endings in ([".mha"], [".nii"], [".nii.gz"]):
        (readable,) = nnunet_readable([tmp_path / "a.nrrd"], endings, tmp_path / endings[0])
        read = sitk.GetArrayFromImage(sitk.ReadImage(readable))
        assert read.dtype == dtype
        np.testing.assert_array_equal(read, voxels)


def test_channels_do_not_overwrite_each_other(tmp_path):
    files = []
    for channel in range(2):
        files.append(tmp_path / f"{channel}" / "same.mhd")
        files[-1].parent.mkdir()
        sitk.WriteImage(oblique_image() + channel, str(files[-1]))
    one, other = nnunet_readable(files, [".nii.gz"], tmp_path / "converted")
    difference = sitk.GetArrayFromImage(sitk.ReadImage(other) - sitk.ReadImage(one))
    assert (difference == 1).all()


def test_a_reader_of_pictures_cannot_take_volumes(tmp_path):
    sitk.WriteImage(oblique_image(), str(tmp_path / "a.nrrd"))
    with pytest.raises(InputError, match=r"a.nrrd cannot be converted for this model, it reads .png, .tif only"):
        nnunet_readable([tmp_path / "a.nrrd"], [".png", ".tif"], tmp_path)
    (tmp_path / "b.png").touch()
    assert nnunet_readable([tmp_path / "b.png"], [".png"], tmp_path) == [str(tmp_path / "b.png")]


def _write(file, voxels, **options):
    sitk.WriteImage(sitk.GetImageFromArray(voxels, **options), str(file))


def _patch(file, offset, form, *values):
    """Change the header of an uncompressed NIfTI file."""
    content = bytearray(file.read_bytes())
    struct.pack_into(form, content, offset, *values)
    file.write_bytes(content)


def _change_line(file, start, line):
    head, rest = file.read_bytes().split(start.encode(), 1)
    file.write_bytes(head + line.encode() + rest[rest.index(b"\n") :])


def _no_orientation(file):
    sitk.WriteImage(oblique_image(), str(file))
    _patch(file, 252, "<hh", 0, 0)


def _spacing(file, value):
    sitk.WriteImage(oblique_image(), str(file))
    _patch(file, 252, "<hh", 1, 0)  # with both codes ITK takes the spacing from the other
    _patch(file, 80, "<f", value)


def _spacing_of_metaimage(file, value):
    sitk.WriteImage(oblique_image(), str(file))
    _change_line(file, "ElementSpacing", f"ElementSpacing = {value} 1 1")


def _truncated(file):
    """ITK reads it without a word and makes up the rest."""
    sitk.WriteImage(oblique_image(), str(file), file.suffix == ".gz")
    file.write_bytes(file.read_bytes()[:-40])
    assert sitk.ReadImage(str(file)).GetSize() == (8, 9, 6)


def _singular(file):
    sitk.WriteImage(oblique_image(), str(file))
    _change_line(file, "TransformMatrix", "TransformMatrix = 1 0 0 1 0 0 0 0 1")


@pytest.mark.parametrize(("name", "write", "message"), [
    ("a.nii", lambda f: _write(f, np.zeros((3, 4, 5, 6), np.uint8), isVector=False),
     r"a.nii is a 4D image of 6 x 5 x 4 x 3 voxels; the model takes one 3D volume: split it"),
    ("a.nrrd", lambda f: _write(f, np.zeros((3, 4, 5, 3), np.uint8), isVector=True),
     r"a.nrrd has 3 components per voxel \(5 x 4 x 3 voxels, e.g. color\); the model takes one"),
    ("a.nii", lambda f: _write(f, np.zeros((1, 1, 1), np.uint8)), r"a.nii is an image of 1 x 1 x 1 voxels; that is no"),
    ("a.nii", _no_orientation, r"a.nii does not say how it lies in the patient .*: left and right are unknown; write"),
    ("a.nii", lambda f: _spacing(f, 0.0), r"a\.nii has a spacing of 0 x 0.8 x 2.5 mm; correct"),
    ("a.nii", lambda f: _spacing(f, float("nan")), r"a\.nii has a spacing of nan x 0.8 x 2.5 mm; correct"),
    ("a.nii", lambda f: _spacing(f, float("inf")), r"a\.nii has a spacing of inf x 0.8 x 2.5 mm; correct"),
    ("a.mha", lambda f: _spacing_of_metaimage(f, 0), r"a.mha has a spacing of 0 x 1 x 1 mm; correct its header"),
    ("a.mha", lambda f: _spacing_of_metaimage(f, -1), r"a.mha has a spacing of -1 x 1 x 1 mm; correct its header"),
    ("a.mha", _singular, r"a.mha has direction cosines that span no space \(1 1 0 0 0 0 0 0 1\); correct its header"),
    ("a.nii", lambda f: _truncated(f),
     r"cannot read \S+a.nii \(damaged.*: it ends before the last of its 8 x 9 x 6 voxels; copy"),
    ("a.nii.gz", lambda f: _truncated(f),
     r"cannot read \S+a.nii.gz \(damaged.*: it ends before the last of its 8 x 9 x 6 voxels"),
    ("a.nrrd", lambda f: f.write_text("no image"), r"cannot read \S+a.nrrd \(damaged or not an image\): \S+"),
])  # fmt: skip
def test_images_that_no_model_takes(tmp_path, name, write, message):
    write(tmp_path / name)
    for check in (check_image, lambda file: nnunet_readable([file], [".nii", ".mha"], tmp_path)):
        with pytest.raises(InputError, match=message) as caught:
            check(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_unknown_orientation_can_be_allowed(tmp_path):
    _no_orientation(tmp_path / "a.nii")
    check_image(tmp_path / "a.nii", allow_unknown_orientation=True)
    assert nnunet_readable([tmp_path / "a.nii"], [".nii"], tmp_path, True) == [str(tmp_path / "a.nii")]


def test_a_file_packed_in_several_parts_is_complete(tmp_path):
    """As bgzip and concatenated archives are: the last count is that of the last part."""
    sitk.WriteImage(oblique_image(), str(tmp_path / "a.nii"))
    content = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content[:500]) + gzip.compress(content[500:]))
    check_image(tmp_path / "a.nii.gz")


def test_good_images_pass(tmp_path):
    for name, voxels in {"flat.mha": np.zeros((4, 5), np.uint8), "thin.nii": np.zeros((1, 4, 5), np.int16)}.items():
        _write(tmp_path / name, voxels)
        check_image(tmp_path / name)
    check_image(write_series(tmp_path / "series", oblique_image()))
    check_image(write_series(tmp_path / "one slice", oblique_image(), slices=[0]))
    # positions rounded as scanners do
    check_image(write_series(tmp_path / "rounded", oblique_image(), shift=(0.004, -0.004, 0.004)))


@pytest.mark.parametrize(("options", "message"), [
    ({"slices": [0, 1, 2, 4, 5]}, r"slices 3 and 4 of 5 are 5 mm apart, the others 2.5 mm; slices are missing"),
    ({"slices": [0, 1, 3, 5]}, r"not a regular volume: slices 1 and 2 of 4 are 2.5 mm apart, the others 5 mm"),
    ({"shift": (0.0, 0.3, 0.0)}, r"shifted against each other \(gantry tilt \d+\.\d°\); resample"),
])  # fmt: skip
def test_series_that_are_no_volume(tmp_path, options, message):
    folder = write_series(tmp_path / "p", oblique_image(), **options)
    with pytest.raises(InputError, match=message):
        nnunet_readable([folder], [".mha"], tmp_path)


def test_double_and_turned_slices(tmp_path):
    image = oblique_image()
    twice = write_series(tmp_path / "twice", image)
    write_series(twice, image, names="again{}.dcm", slices=[2])
    with pytest.raises(InputError, match=r"slices 3 and 4 of 7 are 0 mm apart, the others 2.5 mm"):
        check_image(twice)


def test_where_a_series_lies(tmp_path):
    image = read_image(write_series(tmp_path / "p", oblique_image(), names="{:03d}"))
    np.testing.assert_allclose(image.GetOrigin(), ORIGIN, atol=1e-5)
    np.testing.assert_allclose(image.GetDirection(), OBLIQUE, atol=1e-5)


def test_predictions_do_not_replace_the_labels_of_a_raw_dataset(tmp_path):
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    touch(tmp_path / "imagesTr", "a_0000.nii.gz")
    (tmp_path / "dataset.json").write_text("{}")
    found = {
        folder: cases_or_problem(tmp_path / "imagesTr", 1, None, tmp_path / folder) for folder in ("labelsTr", "p")
    }
    assert "belongs to the raw dataset" in found["labelsTr"].problem and not found["labelsTr"]
    assert found["p"].problem == "" and len(found["p"]) == 1
