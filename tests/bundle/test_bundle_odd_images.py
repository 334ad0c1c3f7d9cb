"""Images that spoil a prediction in silence elsewhere: both of a bundle's workflows do as nnU-Net does, or refuse."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nnunet_environment import set_nnunet
from trained_models import make_model, predict_with_nnunet

from alhvr_trainer.export.bundle import export_bundle

CONFIGS = ("inference", "inference_native")
AFFINE = np.diag([0.9, 1.2, 2.5, 1.0])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Reader -> a model that reads with it, and its bundle."""
    root = tmp_path_factory.mktemp("odd")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        set_nnunet(patch, nnUNet_results=root / "results")
        for reader in ("SimpleITKIO", "NibabelIO", "NibabelIOWithReorient"):
            model = make_model(root / "results", "2d", "nnUNetTrainer", f"{reader}Plans")
            plans = json.loads((model / "plans.json").read_text())
            plans["image_reader_writer"] = reader
            (model / "plans.json").write_text(json.dumps(plans))
            bundle = export_bundle(
                901, "2d", plans=f"{reader}Plans", trainer="nnUNetTrainer", output=str(root / f"bundle_{reader}")
            )
            found[reader] = (model, bundle)
    return found


def run(bundle: Path, config: str, images: Path, output: Path, **override: Any) -> Path:
    file = str(bundle / "configs" / f"{config}.json")
    places = {"dataset_dir": str(images), "output_dir": str(output)}
    monai.bundle.run("inference", config_file=file, bundle_root=str(bundle), device="cpu", **places, **override)
    return output


def image(seed: int) -> np.ndarray:
    """(x, y, z), float32."""
    voxels = np.random.default_rng(seed).uniform(1, 200, (24, 26, 7)).astype(np.float32)
    voxels[:3] = 0
    return voxels


def equal_share(found: Path, expected: Path) -> float:
    ours, theirs = (np.asarray(nib.load(folder / "case.nii.gz").dataobj) for folder in (found, expected))
    assert len(np.unique(theirs)) > 1
    return float(np.mean(ours == theirs))


def write(folder: Path, *channels: nib.Nifti1Image) -> Path:
    folder.mkdir()
    for number, channel in enumerate(channels):
        nib.save(channel, folder / f"case_{number:04d}.nii.gz")
    return folder


def predicted_alike(models: dict, reader: str, images: Path, root: Path) -> None:
    model, bundle = models[reader]
    expected = predict_with_nnunet(model, images, root / "expected")
    assert equal_share(run(bundle, "inference", images, root / "exact"), expected) == 1.0
    assert equal_share(run(bundle, "inference_native", images, root / "native"), expected) > 0.99


@pytest.mark.parametrize("scaled", [False, True])
def test_nan_in_nifti_is_what_itk_makes_of_it(models, scaled, tmp_path):
    """0 before scaling; a lone NaN must not turn the whole image into background."""
    bad = image(0)
    bad[10, 12, 3], bad[20, 3, 2], bad[5, 5, 5] = np.nan, np.inf, -np.inf
    first = nib.Nifti1Image(bad, AFFINE)
    if scaled:
        first.header.set_slope_inter(2, 7)
    images = write(tmp_path / "images", first, nib.Nifti1Image(image(1), AFFINE))
    predicted_alike(models, "SimpleITKIO", images, tmp_path)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("reader", "ending"), [
    ("SimpleITKIO", ".mha"), ("SimpleITKIO", ".nrrd"), ("NibabelIO", ".nii.gz"),
])  # fmt: skip
def test_nan_that_stays_is_counted_and_refused(models, reader, ending, config, tmp_path, capsys):
    bad = image(0)
    bad[10, 12, 2:4], bad[5, 5, 5] = np.nan, np.inf
    (tmp_path / "images").mkdir()
    for number, voxels in enumerate((bad, image(1))):
        stored = sitk.GetImageFromArray(voxels.transpose())
        stored.SetSpacing((0.9, 1.2, 2.5))
        sitk.WriteImage(stored, str(tmp_path / "images" / f"case_{number:04d}{ending}"))
    with pytest.raises(SystemExit, match=r"case: .*case_0000.* has 3 NaN or infinite voxels; replace them"):
        run(models[reader][1], config, tmp_path / "images", tmp_path / "out")
    assert not list((tmp_path / "out").glob("case*"))


@pytest.mark.parametrize("reader", ["NibabelIO", "NibabelIOWithReorient"])
def test_sheared_axes_where_the_model_reads_with_nibabel(models, reader, tmp_path):
    sheared = np.array([[0, -0.9, 0, 3], [1.2, 0.4, 0, -7], [0, 0, -2.5, 1], [0, 0, 0, 1.0]])
    channels = [nib.Nifti1Image(image(number), sheared) for number in (0, 1)]
    predicted_alike(models, reader, write(tmp_path / "images", *channels), tmp_path)
    with pytest.raises(SystemExit, match=r"case: .*case_0000"):
        run(models["SimpleITKIO"][1], "inference", tmp_path / "images", tmp_path / "itk")


def test_two_spacings_in_one_header(models, tmp_path):
    """nnU-Net's nibabel reader goes by pixdim; MONAI's transforms by the affine, so the native workflow refuses."""
    model, bundle = models["NibabelIO"]
    channels = [nib.Nifti1Image(image(number), AFFINE) for number in (0, 1)]
    for channel in channels:
        channel.header["pixdim"][1:4] = (1.8, 1.2, 2.5)
    images = write(tmp_path / "images", *channels)
    if np.allclose(nib.load(images / "case_0000.nii.gz").header.get_zooms(), (0.9, 1.2, 2.5)):
        pytest.fail("nibabel has mended the header")
    expected = predict_with_nnunet(model, images, tmp_path / "expected")
    assert equal_share(run(bundle, "inference", images, tmp_path / "exact"), expected) == 1.0
    with pytest.raises(SystemExit, match=r"nnU-Net goes by the one, MONAI by the other"):
        run(bundle, "inference_native", images, tmp_path / "native")


def test_a_file_called_gz_that_is_not_compressed(models, tmp_path):
    channels = [nib.Nifti1Image(image(number), AFFINE) for number in (0, 1)]
    images = write(tmp_path / "images", *channels)
    for file in images.iterdir():
        file.write_bytes(gzip.decompress(file.read_bytes()))
    predicted_alike(models, "SimpleITKIO", images, tmp_path)
