"""The exported bundle in the hands of programs: images in memory, no file written, MONAI's own ways to load it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import monai.bundle
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImage, LoadImaged, SaveImaged
from nnunet_environment import set_nnunet
from trained_models import environment_without_package, make_images, make_model, predict_with_nnunet

from alhvr_trainer.export.bundle import export_bundle

CASES = ("coronal", "flipped", "oblique")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """An exported bundle, images, and what nnU-Net makes of them."""
    root = tmp_path_factory.mktemp("programs")
    with pytest.MonkeyPatch.context() as patch:
        set_nnunet(patch, nnUNet_results=root / "results")
        model = make_model(root / "results", "2d", trainer="nnUNetTrainer")
        make_images(root / "images")
        predict_with_nnunet(model, root / "images", root / "expected")
        export_bundle(901, "2d", trainer="nnUNetTrainer", output=str(root / "bundle"))
        yield root


@pytest.fixture(scope="module")
def config(workspace) -> dict[str, str]:
    bundle = workspace / "bundle"
    return {"config_file": str(bundle / "configs" / "inference.json"), "bundle_root": str(bundle)}


def files_of(workspace: Path, case: str) -> list[str]:
    return [str(workspace / "images" / f"{case}_{channel:04d}.nii.gz") for channel in range(2)]


def in_memory(workspace: Path, case: str) -> MetaTensor:
    """The image as another program would have it: MONAI's reader, voxels and affine, and nothing else."""
    loaded = LoadImage(reader="NibabelReader")(files_of(workspace, case))
    return MetaTensor(torch.as_tensor(np.asarray(loaded)), affine=loaded.affine)


def expected(workspace: Path, case: str) -> np.ndarray:
    """Labels (x, y, z) that nnU-Net wrote."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(workspace / "expected" / f"{case}.nii.gz"))).transpose(2, 1, 0)


def without(transforms: Compose, kind: type) -> Compose:
    return Compose([transform for transform in transforms.transforms if not isinstance(transform, kind)])


@pytest.mark.parametrize("case", CASES)
def test_an_image_in_memory_through_a_workflow(workspace, config, case):
    """The program replaces the data and takes away the saving; the prediction is nnU-Net's, in its place in space."""
    image = in_memory(workspace, case)
    workflow = ConfigWorkflow(**config, workflow_type="inference", output_dir=str(workspace / "unused"))
    workflow.dataset_data = [{"image": image}]
    workflow.initialize()
    workflow.postprocessing = without(workflow.postprocessing, SaveImaged)
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    pred = workflow.evaluator.state.output[0]["pred"]
    assert isinstance(pred, MetaTensor)
    torch.testing.assert_close(pred.affine, image.affine)
    np.testing.assert_array_equal(pred.numpy()[0], expected(workspace, case))
    assert not (workspace / "unused").exists()


def test_the_parts_one_by_one_as_annotation_tools_take_them(workspace, config):
    """Network, transforms and inferer from the parser, the package imported anew before each, as MONAI Label does."""
    parser = ConfigParser()
    parser.read_config(config["config_file"])
    parser.config.update({"bundle_root": config["bundle_root"], "device": "cpu"})

    def part(name: str):
        for module in [module for module in sys.modules if module.split(".")[0] == "scripts"]:
            del sys.modules[module]
        return parser.get_parsed_content(name)

    network = part("network_def")
    network.load_state_dict(torch.load(workspace / "bundle" / "models" / "model.pt", weights_only=True))
    data = {"image": files_of(workspace, "oblique")}
    preprocessing = part("preprocessing")
    assert [type(t) for t in preprocessing.transforms if isinstance(t, LoadImaged)], "tools look for LoadImaged"
    data = preprocessing(data)
    data["pred"] = part("inferer")(data["image"][None], network.eval())[0]
    data = without(part("postprocessing"), SaveImaged)(data)
    np.testing.assert_array_equal(np.asarray(data["pred"])[0], expected(workspace, "oblique"))
    stored = LoadImage(image_only=True)(files_of(workspace, "oblique")[0])
    torch.testing.assert_close(data["pred"].affine, stored.affine, atol=1e-5, rtol=0)
    assert tuple(data["image"].meta["spatial_shape"]) == tuple(stored.shape)  # to which tools resize predictions


def test_create_workflow_and_load(workspace, config, monkeypatch):
    """``monai.bundle.load`` knows no bundle_root: as for any bundle with scripts, the working folder must tell it."""
    workflow = monai.bundle.create_workflow(
        **config, workflow_type="inference", dataset_dir=str(workspace / "images"), output_dir=str(workspace / "made")
    )
    workflow.run()
    assert sorted(path.name for path in (workspace / "made").iterdir()) == [f"{case}.nii.gz" for case in CASES]
    monkeypatch.chdir(workspace / "bundle")
    network = monai.bundle.load("bundle", bundle_dir=str(workspace), workflow_type="inference", device="cpu")
    for name, tensor in torch.load(workspace / "bundle" / "models" / "model.pt", weights_only=True).items():
        torch.testing.assert_close(network.state_dict()[name], tensor)


def test_two_bundles_in_one_program(workspace, config, tmp_path):
    """Each runs with its own plans: both have a package named ``scripts``."""
    with pytest.MonkeyPatch.context() as patch:
        set_nnunet(patch, nnUNet_results=tmp_path / "results")
        make_model(tmp_path / "results", "3d_fullres", trainer="nnUNetTrainer")
        export_bundle(901, "3d_fullres", trainer="nnUNetTrainer", output=str(tmp_path / "other"))
    other = {"config_file": str(tmp_path / "other" / "configs" / "inference.json"), "bundle_root": tmp_path / "other"}
    dimensions = []
    for each in (config, other, config):
        workflow = ConfigWorkflow(**each, workflow_type="inference", dataset_dir=str(workspace / "images"))
        dimensions.append(len(workflow.parser.get_parsed_content("nnunet").configuration_manager.patch_size))
    assert dimensions == [2, 3, 2]


@pytest.mark.slow
def test_runs_without_network_access(workspace, config, tmp_path):
    """No socket may be opened: hospitals run bundles on machines without internet."""
    environment = environment_without_package(tmp_path / "site")
    blocked = tmp_path / "site" / "sitecustomize.py"
    blocked.write_text(
        blocked.read_text(encoding="utf-8") + "import socket\n"
        "def refuse(self, address, *more):\n"
        "    raise OSError(f'network access to {address}')\n"
        "socket.socket.connect = socket.socket.connect_ex = refuse\n"
    )
    probe = [sys.executable, "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')"]
    assert "network access to" in subprocess.run(probe, env=environment, capture_output=True, text=True).stderr
    command = [sys.executable, "-m", "monai.bundle", "run", "inference"]
    for name, value in {**config, "dataset_dir": workspace / "images", "output_dir": tmp_path / "found"}.items():
        command += [f"--{name}", str(value)]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert sorted(os.listdir(tmp_path / "found")) == [f"{case}.nii.gz" for case in CASES]
