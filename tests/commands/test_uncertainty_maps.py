"""``alhvr predict --uncertainty``: the evidential network's own uncertainty, in the geometry of the segmentation."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from trained_models import OBLIQUE, make_model, predict_with_nnunet

from alhvr_trainer import predict
from alhvr_trainer.errors import InputError

SPACING = (0.9, 1.1, 2.5)
"""x, y, z; the model's 2d plans have the same in y and z, so that nothing is resampled."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One oblique case of two channels with a border of zeros, which nnU-Net crops."""
    folder = tmp_path_factory.mktemp("scans")
    for channel in range(2):
        voxels = np.random.default_rng(channel).uniform(1, 200, (9, 24, 20)).astype(np.float32)
        voxels[:, :3], voxels[..., -2:] = 0, 0
        image = sitk.GetImageFromArray(voxels)
        image.SetSpacing(SPACING)
        image.SetDirection(OBLIQUE)
        image.SetOrigin((-31.5, 12.25, 7.0))
        sitk.WriteImage(image, str(folder / f"case_{channel:04d}.nii.gz"))
    return folder


def uncertainty(inside: np.ndarray) -> np.ndarray:
    """Of a region with this probability, by hand: evidence for "in" and "out"."""
    half = np.log(inside / (1 - inside)) / 2
    return 2 / (np.exp(np.tanh(half) / 0.25) + np.exp(np.tanh(-half) / 0.25) + 2)


def test_a_map_lies_beside_each_segmentation(images: Path, tmp_path: Path):
    """With regions the probabilities determine u; the segmentations are nnU-Net's."""
    model = make_model(tmp_path / "results", trainer="EVILTrainer", regions=True)
    options = {"device": "cpu", "num_processes": 1, "save_probabilities": True}
    output = predict(input=images, output=tmp_path / "out", model_folder=model, uncertainty=True, **options)
    segmentation = sitk.ReadImage(str(output / "case.nii.gz"))
    found = sitk.ReadImage(str(output / "uncertainty" / "case.nii.gz"))
    for name in ("GetSpacing", "GetOrigin", "GetDirection", "GetSize"):
        assert getattr(found, name)() == pytest.approx(getattr(segmentation, name)()), name
    probabilities = np.load(output / "case.npz")["probabilities"].astype(np.float64)
    values = sitk.GetArrayFromImage(found)
    cropped = np.zeros(values.shape, dtype=bool)
    cropped[:, :3], cropped[..., -2:] = True, True
    expected = uncertainty(np.where(cropped, 0.5, probabilities)).max(axis=0)
    np.testing.assert_allclose(values, np.where(cropped, 0, expected), rtol=1e-3)
    assert values.dtype == np.float32 and np.ptp(values[~cropped]) > 0.01

    without = predict_with_nnunet(model, images, tmp_path / "nnunet")
    assert not (without / "uncertainty").exists()
    theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(without / "case.nii.gz")))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(segmentation), theirs)


def test_a_prediction_that_continues_has_all_maps(images: Path, tmp_path: Path):
    """nnU-Net leaves out the case that it has segmented already."""
    model = make_model(tmp_path / "results", trainer="EVILTrainer")
    options = {"input": images, "output": tmp_path / "out", "model_folder": model, "device": "cpu", "num_processes": 1}
    predict(**options)
    with pytest.raises(InputError, match=r"out/case.nii.gz is there without .*/out/uncertainty/case.nii.gz: remove it"):
        predict(**options, uncertainty=True, continue_prediction=True)


def test_maps_do_not_go_where_the_images_are(images: Path, tmp_path: Path):
    scans = tmp_path / "out" / "uncertainty"
    shutil.copytree(images, scans)
    options = {"output": tmp_path / "out", "device": "cpu", "uncertainty": True}
    with pytest.raises(InputError, match=r"out/uncertainty would be written over .*/case_0000.nii.gz, "):
        predict(input=scans, model_folder=make_model(tmp_path / "results", trainer="EVILTrainer"), **options)


@pytest.mark.parametrize("network", ["b", "both"])
def test_the_other_network_has_no_evidence(network: str, images: Path, tmp_path: Path):
    model = make_model(tmp_path / "results", trainer="EVILTrainer")
    with pytest.raises(InputError, match=f"--uncertainty is that of network a alone, not of {network}"):
        predict(input=images, output=tmp_path, model_folder=model, network=network, uncertainty=True, device="cpu")


def test_refused_before_anything_is_written(images: Path, tmp_path: Path):
    def message(**changes: str) -> str:
        model = make_model(tmp_path / f"results{len(changes)}", **changes)
        with pytest.raises(InputError) as caught:
            predict(input=images, output=tmp_path / "out", model_folder=model, uncertainty=True, device="cpu")
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    assert "--uncertainty is for models of EVILTrainer; " in message()
    plans = make_model(tmp_path / "other", trainer="EVILTrainer") / "plans.json"
    plans.write_text(plans.read_text().replace('"SimpleITKIO"', '"NibabelIO"'))
    with pytest.raises(InputError, match=r"--uncertainty needs images that SimpleITK reads; .* name NibabelIO"):
        predict(input=images, output=tmp_path / "out", model_folder=plans.parent, uncertainty=True, device="cpu")
