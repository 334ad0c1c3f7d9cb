"""``--uncertainty True`` of exported bundles: the maps and scores of ``alhvr predict --uncertainty``, both configs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import pytest
import SimpleITK as sitk
from trained_models import assert_same_files, environment_without_package, make_images, make_model, run_command

from alhvr_trainer import predict
from alhvr_trainer.export.bundle import export_bundle

CONFIGS = ["inference", "inference_native"]
BLOCKED = ("alhvr_trainer", "nnunetv2", "batchgenerators")
CASES = ("oblique", "coronal", "flipped")


def read(file: Path) -> sitk.Image:
    return sitk.ReadImage(str(file))


def run(bundle: Path, config: str, images: Path, output: Path, **override: Any) -> Path:
    monai.bundle.run(
        "run",
        config_file=str(bundle / "configs" / f"{config}.json"),
        bundle_root=str(bundle),
        dataset_dir=str(images),
        output_dir=str(output),
        device="cpu",
        uncertainty=True,
        **override,
    )
    return output


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("scans") / "images")


def exported(tmp_path: Path, network: str, **model: Any) -> tuple[Path, Path]:
    """Model, in 3D with two windows per axis at most, which both configs place alike, and bundle."""
    folder = make_model(tmp_path / "results", **model)
    plans = json.loads((folder / "plans.json").read_text(encoding="utf-8"))
    plans["configurations"]["3d_fullres"]["patch_size"] = [32, 12, 32]
    (folder / "plans.json").write_text(json.dumps(plans), encoding="utf-8")
    bundle = tmp_path / "bundle"
    export_bundle(model_folder=folder, output=str(bundle), network=network)
    return folder, bundle


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(
    ("network", "model"),
    [
        ("both", {}),
        ("both", {"configuration": "3d_fullres", "regions": True}),
        ("a", {"configuration": "3d_fullres", "trainer": "nnUNetTrainer", "mirror_axes": (0, 2)}),
    ],
    ids=["two networks", "two networks and regions", "one network"],
)
def test_equals_the_package(config: str, network: str, model: dict[str, Any], images: Path, tmp_path: Path):
    folder, bundle = exported(tmp_path, network, **model)
    found = run(bundle, config, images, tmp_path / "found")
    expected = predict(
        input=images,
        output=tmp_path / "expected",
        model_folder=folder,
        network=network,
        uncertainty=True,
        device="cpu",
        num_processes=1,
    )
    same = config == "inference"
    if same:
        assert_same_files(found, expected)
    names = {file.name for file in (expected / "uncertainty").iterdir()}
    assert {file.name for file in (found / "uncertainty").iterdir()} == names
    assert any("regions" in name for name in names) == (network == "both" and not model)
    for name in (name for name in names if name.endswith(".nii.gz")):
        one, other = (read(output / "uncertainty" / name) for output in (found, expected))
        for what in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection", "GetPixelIDTypeAsString"):
            assert getattr(one, what)() == pytest.approx(getattr(other, what)(), abs=1e-5), (name, what)
        voxels = [sitk.GetArrayFromImage(image).astype(float) for image in (one, other)]
        if "regions" in name:
            assert np.mean(voxels[0] != voxels[1]) <= (0 if same else 0.02)
        else:
            apart = np.abs(voxels[0] - voxels[1])
            # nnU-Net adds up logits in half precision, and its weights vanish along the edges
            assert apart.max() < 1e-5 if same else (apart.mean() < 1e-3 and np.mean(apart > 0.02) < 2e-3)
            assert np.ptp(voxels[1]) > 0.02
    for case in CASES:
        one, other = (json.loads((o / "uncertainty" / f"{case}.json").read_text()) for o in (found, expected))
        assert one["classes"].keys() == other["classes"].keys()
        for score in ("expected_dice", "entropy"):
            assert one[score] == pytest.approx(other[score], abs=1e-6 if same else 0.01)


@pytest.mark.parametrize("config", CONFIGS)
def test_one_opinion_is_too_few(config: str, tmp_path: Path, images: Path):
    _, bundle = exported(tmp_path, "a", mirror_axes=None)
    with pytest.raises(RuntimeError) as caught:
        run(bundle, config, images, tmp_path / "out")
    assert "uncertainty needs several networks, or one that was trained with mirrored" in str(caught.value.__cause__)


def test_on_the_command_line_without_the_package(tmp_path: Path, images: Path):
    _, bundle = exported(tmp_path, "a")
    words = ["-m", "monai.bundle", "run", "--config_file", "configs/inference_native.json", "--uncertainty", "True"]
    words += ["--dataset_dir", str(images), "--output_dir", str(tmp_path / "out"), "--device", "cpu"]
    run_command(sys.executable, *words, env=environment_without_package(tmp_path / "site", BLOCKED), cwd=bundle)
    assert (tmp_path / "out" / "uncertainty" / "scores.csv").read_text(encoding="utf-8").count("\n") > 3
