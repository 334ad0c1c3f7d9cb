"""``alhvr predict --uncertainty``: maps in the geometry of the segmentations, which stay nnU-Net's, and scores."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from trained_models import OBLIQUE, assert_same_files, make_images, make_model, predict_with_nnunet

from alhvr_trainer import predict
from alhvr_trainer.errors import InputError

SPACING = (0.9, 1.1, 2.5)
"""x, y, z; the model's 2d plans have the same in y and z, so that nothing is resampled."""
QUICKLY: dict[str, Any] = {"device": "cpu", "num_processes": 1}


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


def inside_the_crop() -> np.ndarray:
    mask = np.ones((9, 24, 20), dtype=bool)
    mask[:, :3], mask[..., -2:] = False, False
    return mask


def read(file: Path) -> np.ndarray:
    found: np.ndarray = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
    return found


def assert_same_grid(file: Path, other: Path) -> None:
    one, two = sitk.ReadImage(str(file)), sitk.ReadImage(str(other))
    for name in ("GetSpacing", "GetOrigin", "GetDirection", "GetSize"):
        assert getattr(one, name)() == pytest.approx(getattr(two, name)()), name


def entropy_of(probabilities: np.ndarray) -> np.ndarray:
    """Of (K, *S), as a share of the largest one."""
    entropy: np.ndarray = -(probabilities * np.log(np.maximum(probabilities, 1e-12))).sum(0) / np.log(
        len(probabilities)
    )
    return entropy


def evidential(inside: np.ndarray) -> np.ndarray:
    """Of a region with this probability, by hand: evidence for "in" and "out"."""
    half = np.log(inside / (1 - inside)) / 2
    return 2 / (np.exp(np.tanh(half) / 0.25) + np.exp(np.tanh(-half) / 0.25) + 2)


@pytest.mark.parametrize("network", ["a", "both"])
def test_two_networks(network: str, images: Path, tmp_path: Path):
    """Maps from the probabilities of both, the segmentation of those that are asked for."""
    model, inside = make_model(tmp_path / "results"), inside_the_crop()
    each = {}
    for name in ("a", "b", network):
        output = tmp_path / name
        predict(input=images, output=output, model_folder=model, network=name, save_probabilities=True, **QUICKLY)
        each[name] = np.load(output / "case.npz")["probabilities"].astype(np.float64)
    output = predict(
        input=images, output=tmp_path / "sure", model_folder=model, network=network, uncertainty=True, **QUICKLY
    )
    np.testing.assert_array_equal(read(output / "case.nii.gz"), read(tmp_path / network / "case.nii.gz"))
    folder = output / "uncertainty"
    names = {"case.json", "scores.csv", *(f"case_{name}.nii.gz" for name in ("entropy", "disagreement", "regions"))}
    assert {file.name for file in folder.iterdir()} == names
    for name in ("entropy", "disagreement", "regions"):
        assert_same_grid(folder / f"case_{name}.nii.gz", output / "case.nii.gz")
    a, b = each["a"], each["b"]
    entropy, disagreement = read(folder / "case_entropy.nii.gz"), read(folder / "case_disagreement.nii.gz")
    expected = entropy_of((a + b) / 2)
    np.testing.assert_allclose(entropy, np.where(inside, expected, 0), atol=2e-3)
    apart = (expected - (entropy_of(a) + entropy_of(b)) / 2) / (np.log(2) / np.log(len(a)))
    np.testing.assert_allclose(disagreement, np.where(inside, apart, 0), atol=4e-3)
    assert entropy.dtype == np.float32 and np.ptp(entropy[inside]) > 0.05 and disagreement.max() > 0.05
    regions = read(folder / "case_regions.nii.gz")
    assert set(np.unique(regions[inside])) == {1, 2, 3} and not regions[~inside].any()
    sure = (a.max(0) + b.max(0)) / 2
    assert sure[inside & (regions == 1)].mean() > sure[inside & (regions == 3)].mean()


def test_scores_compare_the_segmentations(images: Path, tmp_path: Path):
    """The model's 2d grid is the image's, so that they can be had from the files."""
    model = make_model(tmp_path / "results")
    for name in ("a", "b"):
        predict(input=images, output=tmp_path / name, model_folder=model, network=name, **QUICKLY)
    output = predict(input=images, output=tmp_path / "sure", model_folder=model, uncertainty=True, **QUICKLY)
    found = json.loads((output / "uncertainty" / "case.json").read_text(encoding="utf-8"))
    labels = json.loads((model / "dataset.json").read_text(encoding="utf-8"))["labels"]
    one, other = read(tmp_path / "a" / "case.nii.gz"), read(tmp_path / "b" / "case.nii.gz")
    dice = {}
    for name, value in labels.items():
        masks = one == value, other == value
        if value and any(mask.any() for mask in masks):
            dice[name] = 2 * np.count_nonzero(masks[0] & masks[1]) / sum(map(np.count_nonzero, masks))
            assert found["classes"][name]["expected_dice"] == pytest.approx(dice[name])
    assert dice and found["expected_dice"] == pytest.approx(sum(dice.values()) / len(dice))
    assert 0 < found["entropy"] < 1
    rows = list(csv.reader((output / "uncertainty" / "scores.csv").open(encoding="utf-8")))
    assert rows[1][:3] == ["case", "mean", f"{found['expected_dice']:.4f}"] and len(rows) == 2 + len(found["classes"])


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_one_network_is_asked_about_mirrored_copies(configuration: str, tmp_path: Path):
    """Of a stock model; resampled, permuted and cropped images; the segmentations are nnU-Net's."""
    axes = (0, 1) if configuration == "2d" else (0, 2)
    model = make_model(tmp_path / "results", configuration, trainer="nnUNetTrainer", mirror_axes=axes)
    images = make_images(tmp_path / "images")
    output = predict(input=images, output=tmp_path / "sure", model_folder=model, uncertainty=True, **QUICKLY)
    assert_same_files(output, predict_with_nnunet(model, images, tmp_path / "nnunet"))
    for case in ("oblique", "coronal", "flipped"):
        assert not (output / "uncertainty" / f"{case}_regions.nii.gz").exists()
        for name in ("entropy", "disagreement"):
            file = output / "uncertainty" / f"{case}_{name}.nii.gz"
            assert_same_grid(file, output / f"{case}.nii.gz")
            values = read(file)
            assert 0 <= values.min() < values.max() <= 1
        scores = json.loads((output / "uncertainty" / f"{case}.json").read_text(encoding="utf-8"))
        assert 0 < scores["expected_dice"] < 1


def test_all_folds_are_asked(images: Path, tmp_path: Path):
    """Two folds of one network each: entropy of the mean of both."""
    model = make_model(tmp_path / "results", trainer="nnUNetTrainer", folds=(0, 1))
    options = {"input": images, "model_folder": model, **QUICKLY}
    each = []
    for fold in (0, 1):
        output = predict(output=tmp_path / f"{fold}", fold=fold, save_probabilities=True, **options)
        each.append(np.load(output / "case.npz")["probabilities"].astype(np.float64))
    output = predict(output=tmp_path / "sure", fold=(0, 1), uncertainty=True, **options)
    expected = predict(output=tmp_path / "plain", fold=(0, 1), **options)
    np.testing.assert_array_equal(read(output / "case.nii.gz"), read(expected / "case.nii.gz"))
    entropy = np.where(inside_the_crop(), entropy_of(np.mean(each, axis=0)), 0)
    np.testing.assert_allclose(read(output / "uncertainty" / "case_entropy.nii.gz"), entropy, atol=2e-3)


def test_an_evidential_network_has_a_map_of_its_own(images: Path, tmp_path: Path):
    """With regions the probabilities determine u; the segmentations are nnU-Net's."""
    model, inside = make_model(tmp_path / "results", trainer="EVILTrainer", regions=True), inside_the_crop()
    options = {"save_probabilities": True, "uncertainty": True, **QUICKLY}
    output = predict(input=images, output=tmp_path / "out", model_folder=model, **options)
    file = output / "uncertainty" / "case_evidential.nii.gz"
    assert_same_grid(file, output / "case.nii.gz")
    probabilities = np.load(output / "case.npz")["probabilities"].astype(np.float64)
    expected = evidential(np.where(inside, probabilities, 0.5)).max(axis=0)
    values = read(file)
    np.testing.assert_allclose(values, np.where(inside, expected, 0), rtol=2e-3)
    assert np.ptp(values[inside]) > 0.01

    without = predict_with_nnunet(model, images, tmp_path / "nnunet")
    assert not (without / "uncertainty").exists()
    np.testing.assert_array_equal(read(output / "case.nii.gz"), read(without / "case.nii.gz"))


def test_a_prediction_that_continues_has_all_maps(images: Path, tmp_path: Path):
    """nnU-Net leaves out the case that it has segmented already."""
    model = make_model(tmp_path / "results")
    options = {"input": images, "output": tmp_path / "out", "model_folder": model, **QUICKLY}
    predict(**options)
    with pytest.raises(InputError, match=r"out/case.nii.gz is there without .*/out/uncertainty/case.json: remove it"):
        predict(**options, uncertainty=True, continue_prediction=True)


def test_scores_of_two_models_are_not_mixed(images: Path, tmp_path: Path):
    """The same checkpoints go on; others of the same name, and scores of unknown origin, are refused."""
    model = make_model(tmp_path / "results", folds=(0, 1))
    options: dict[str, Any] = {"input": images, "output": tmp_path / "out", "uncertainty": True, **QUICKLY}
    predict(model_folder=model, **options)
    scores = tmp_path / "out" / "uncertainty" / "case.json"
    before = scores.read_bytes()
    predict(model_folder=model, continue_prediction=True, **options)
    assert scores.read_bytes() == before

    match = r"uncertainty/case.json was predicted by .*fold_0/checkpoint_final.pth \(SHA-256 .{8}, network a, with"
    with pytest.raises(InputError, match=f"{match} mirroring.*, and now .*network b, with mirroring.* is named: "):
        predict(model_folder=model, network="b", continue_prediction=True, **options)
    with pytest.raises(InputError, match=rf"{match} .*fold_1.*: choose another --output"):
        predict(model_folder=model, fold=(0, 1), continue_prediction=True, **options)
    shutil.copyfile(model / "fold_1" / "checkpoint_final.pth", model / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(InputError, match=match):
        predict(model_folder=model, continue_prediction=True, **options)
    for unknown in ({}, {"predicted_by": 3}, {"predicted_by": [{"model": 3}]}):
        scores.write_text(json.dumps({**json.loads(before), "predicted_by": None, **unknown}))
        with pytest.raises(InputError, match=r"case.json was predicted by an unknown model, and now"):
            predict(model_folder=model, continue_prediction=True, **options)


def test_maps_of_another_model_do_not_stay(images: Path, tmp_path: Path):
    """Two folds of two networks have no regions."""
    model = make_model(tmp_path / "results", folds=(0, 1))
    options: dict[str, Any] = {"input": images, "output": tmp_path / "out", "uncertainty": True, **QUICKLY}
    regions = tmp_path / "out" / "uncertainty" / "case_regions.nii.gz"
    predict(model_folder=model, **options)
    assert regions.exists()
    predict(model_folder=model, fold=(0, 1), **options)
    assert not regions.exists()


def test_maps_do_not_go_where_the_images_are(images: Path, tmp_path: Path):
    scans = tmp_path / "out" / "uncertainty"
    shutil.copytree(images, scans)
    options = {"output": tmp_path / "out", "device": "cpu", "uncertainty": True}
    with pytest.raises(InputError, match=r"out/uncertainty would be written over .*/case_0000.nii.gz, "):
        predict(input=scans, model_folder=make_model(tmp_path / "results"), **options)


@pytest.mark.parametrize("network", ["b", "both"])
def test_the_other_network_has_no_evidence(network: str, images: Path, tmp_path: Path):
    model = make_model(tmp_path / "results", trainer="EVILTrainer")
    with pytest.raises(InputError, match=f"EVILTrainer is that of network a alone: leave out --network {network}"):
        predict(input=images, output=tmp_path, model_folder=model, network=network, uncertainty=True, device="cpu")


@pytest.mark.parametrize("how", ["no mirroring", "trained without mirroring"])
def test_one_opinion_is_too_few(how: str, images: Path, tmp_path: Path):
    axes = (0, 1) if how == "no mirroring" else None
    model = make_model(tmp_path / "results", trainer="nnUNetTrainer", mirror_axes=axes)
    options = {"input": images, "output": tmp_path / "out", "model_folder": model, "mirroring": axes is None}
    with pytest.raises(InputError, match=r"compares predictions, and .* makes one only: leave out --nomirroring"):
        predict(**options, uncertainty=True, device="cpu")
    assert not (tmp_path / "out").exists()


def test_other_readers_than_simpleitk_are_refused(images: Path, tmp_path: Path):
    plans = make_model(tmp_path / "results") / "plans.json"
    plans.write_text(plans.read_text().replace('"SimpleITKIO"', '"NibabelIO"'))
    with pytest.raises(InputError, match=r"--uncertainty needs images that SimpleITK reads; .* name NibabelIO"):
        predict(input=images, output=tmp_path / "out", model_folder=plans.parent, uncertainty=True, device="cpu")


def test_a_partner_of_another_architecture_is_not_asked(images: Path, tmp_path: Path):
    """MCF's second network: one network, mirrored, is left."""
    model = make_model(tmp_path / "results", trainer="MCFTrainer")
    file = model / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False)
    weights = checkpoint["network_weights"]
    checkpoint["alhvr"] = {"network_b_weights": {f"other.{key}": value for key, value in weights.items()}}
    torch.save(checkpoint, file)
    output = predict(input=images, output=tmp_path / "out", model_folder=model, uncertainty=True, **QUICKLY)
    assert not (output / "uncertainty" / "case_regions.nii.gz").exists()
    assert read(output / "uncertainty" / "case_disagreement.nii.gz").max() > 0
