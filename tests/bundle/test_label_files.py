"""Label maps as people have them, read as nnU-Net reads them."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from alhvr_trainer.bundle.scripts import label_files, metrics
from alhvr_trainer.bundle.scripts.label_files import read_label_map
from alhvr_trainer.bundle.scripts.metrics import case_metrics, surface_distances
from PIL import Image
from skimage import io

from alhvr_trainer.errors import InputError
from alhvr_trainer.evaluation.evaluate import evaluate

pytestmark = pytest.mark.any_nnunet

NIFTI = {"labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}
AFFINE = np.diag([2.0, 3.0, 4.0, 1.0])


def volume(first: int = 2) -> np.ndarray:
    """(x, y, z), a block of the label that begins at x = ``first``."""
    voxels = np.zeros((9, 8, 7), np.uint8)
    voxels[first : first + 4, 2:6, 2:5] = 1
    return voxels


def folders(root: Path, ending: str) -> tuple[Path, Path]:
    for name in ("p", "r"):
        (root / name).mkdir()
    return root / "p" / f"case{ending}", root / "r" / f"case{ending}"


def scores(root: Path, dataset_json: dict) -> dict:
    result = evaluate(root / "p", root / "r", dataset_json)
    return {**result["cases"]["case"]["organ"], "unit": result["unit"]}


def save(voxels: np.ndarray, file: Path, affine: np.ndarray = AFFINE) -> None:
    nib.save(nib.Nifti1Image(voxels, affine), file)


@pytest.mark.parametrize("spacing", [None, (4, 3, 2)])
def test_a_volume_in_tiff_has_the_spacing_of_its_json(spacing, tmp_path, capsys):
    """Resolution tags, which nnU-Net does not read, do not matter."""
    for file, first in zip(folders(tmp_path, ".tif"), (2, 3), strict=True):
        tifffile.imwrite(file, volume(first).transpose(), resolution=(0.1, 0.1), resolutionunit="CENTIMETER")
        if spacing:
            file.with_suffix(".json").write_text(json.dumps({"spacing": spacing}))
    found = scores(tmp_path, {**NIFTI, "file_ending": ".tif"})
    expected = case_metrics(volume(2).transpose(), volume(3).transpose(), {"organ": 1}, spacing or (1, 1, 1))["organ"]
    assert found == {**expected, "unit": "mm" if spacing else "voxels"}
    assert found["HD95"] == (2.0 if spacing else 1.0)
    assert f"HD95 {found['unit']}" in capsys.readouterr().out


def test_pictures(tmp_path):
    """With one bit per pixel, 1 is 1; a color picture is not a label map."""
    prediction, reference = folders(tmp_path, ".png")
    for file in (prediction, reference):
        Image.fromarray(volume()[..., 3] > 0).save(file)
        assert Image.open(file).mode == "1"
    found = scores(tmp_path, {**NIFTI, "file_ending": ".png"})
    assert (found["Dice"], found["HD95"], found["unit"]) == (1.0, 0.0, "voxels")
    io.imsave(prediction, np.repeat(volume()[..., 3:4], 3, axis=2), check_contrast=False)
    with pytest.raises(InputError, match=r"case\.png has 3 values per voxel, as a color picture; a label map has one"):
        scores(tmp_path, {**NIFTI, "file_ending": ".png"})


def test_a_file_called_gz_that_is_not_compressed(tmp_path):
    prediction, reference = folders(tmp_path, ".nii.gz")
    save(volume(), reference)
    prediction.write_bytes(gzip.decompress(reference.read_bytes()))
    assert scores(tmp_path, NIFTI)["Dice"] == 1.0


@pytest.mark.parametrize("scale", [0.1, 1 / 3])
def test_scaled_integers_and_floats_with_rounding(scale, tmp_path):
    prediction, reference = folders(tmp_path, ".nii.gz")
    image = nib.Nifti1Image(np.rint(volume() / scale).astype(np.int16), AFFINE)
    image.header.set_slope_inter(scale, 0)
    nib.save(image, reference)
    save(volume() * (1 - 1e-12), prediction)
    assert scores(tmp_path, NIFTI)["Dice"] == 1.0


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd"])
@pytest.mark.parametrize(("value", "message"), [
    (np.nan, "are NaN or infinite"), (np.inf, "are NaN or infinite"), (0.25, "are no whole number"),
])  # fmt: skip
def test_what_is_no_number_or_no_whole_one_is_counted(ending, value, message, tmp_path):
    prediction, reference = folders(tmp_path, ending)
    array = volume().astype(np.float32).transpose()
    sitk.WriteImage(sitk.GetImageFromArray(array), str(prediction))
    array[:2, 0, 0] = value
    sitk.WriteImage(sitk.GetImageFromArray(array), str(reference))
    with pytest.raises(InputError, match=rf"case\{ending}: 2 voxels {message}"):
        scores(tmp_path, {**NIFTI, "file_ending": ending})


@pytest.mark.parametrize("reader", ["NibabelIO", "NibabelIOWithReorient"])
def test_sheared_affines_where_nibabel_reads(reader, tmp_path):
    """ITK refuses them, and so does nnU-Net where it reads with ITK."""
    sheared = AFFINE.copy()
    sheared[0, 1] = 1.0
    for file, first in zip(folders(tmp_path, ".nii.gz"), (2, 3), strict=True):
        save(volume(first), file, sheared)
    found = scores(tmp_path, {**NIFTI, "overwrite_image_reader_writer": reader})
    spacing = nib.load(file).header.get_zooms()[::-1]
    expected = case_metrics(volume(2).transpose(), volume(3).transpose(), {"organ": 1}, spacing)["organ"]
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    with pytest.raises(InputError, match=r"cannot read .*case\.nii\.gz"):
        scores(tmp_path, NIFTI)


def test_a_volume_of_one_slice_is_an_image():
    one, other = (volume(first)[:, :, 3:4] for first in (2, 3))
    flat = case_metrics(one[:, :, 0], other[:, :, 0], {"organ": 1}, (2, 3))["organ"]
    assert case_metrics(one, other, {"organ": 1}, (2, 3, 4))["organ"] == flat
    assert flat["HD95"] == 2.0
    assert case_metrics(one.transpose(), other.transpose(), {"organ": 1}, (4, 3, 2))["organ"]["HD95"] == 2.0


def test_large_surfaces_are_measured_alike(monkeypatch):
    """The distances of a checkerboard, and of balls, by the transform that bounds memory and time."""
    board = np.indices((12, 11, 10)).sum(0) % 2 == 0
    noise = np.random.default_rng(0).random((2, 12, 11, 10)) < 0.2
    for pair in ((board, ~board), tuple(noise)):
        searched = surface_distances(*pair, (1.5, 0.7, 2.0))
        monkeypatch.setattr(metrics, "MOST_SURFACE_VOXELS", 1)
        transformed = surface_distances(*pair, (1.5, 0.7, 2.0))
        monkeypatch.undo()
        for one, other in zip(searched, transformed, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_allclose(one, other, rtol=1e-6)


def test_nothing_is_written_over(tmp_path):
    prediction, reference = folders(tmp_path, ".nii.gz")
    for file in (prediction, reference):
        save(volume(), file)
    dataset_json = tmp_path / "p" / "metrics.json"
    dataset_json.write_text(json.dumps(NIFTI))
    with pytest.raises(InputError, match=r"metrics\.json would be written over .*p/metrics\.json, which is an input"):
        evaluate(tmp_path / "p", tmp_path / "r", dataset_json, tmp_path / "p")
    assert json.loads(dataset_json.read_text()) == NIFTI


@pytest.mark.parametrize("reader", [None, "NibabelIO"])
def test_without_nnunet_the_same_is_read(reader, tmp_path, monkeypatch):
    """On a server where a bundle runs with MONAI alone."""
    file = tmp_path / "case.nii.gz"
    save(volume(), file, np.array([[0, -3.0, 0, 5], [2.0, 0, 0, 6], [0, 0, -4.0, 7], [0, 0, 0, 1]]))
    content = {**NIFTI, **({"overwrite_image_reader_writer": reader} if reader else {})}
    expected = read_label_map(file, content)
    monkeypatch.setitem(sys.modules, "nnunetv2.imageio.reader_writer_registry", None)
    found = label_files.read_label_map(file, content)
    np.testing.assert_array_equal(found.array, expected.array)
    assert (found.spacing, found.unit, found.grid) == (expected.spacing, expected.unit, expected.grid)
