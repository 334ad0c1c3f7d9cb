"""An exported bundle where hospitals run it: in MONAI Label, and in a MONAI Deploy application.

Both are needed for real (``make test-apps``); what they make must be what ``monai.bundle run`` makes of the same image.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import monai.bundle
import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import oblique_image, write_series
from nnunet_environment import set_nnunet
from trained_models import make_images, make_model

from alhvr_trainer.export.bundle import export_bundle

pytestmark = [
    pytest.mark.apps,
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("monailabel") is None or find_spec("monai.deploy") is None,
        reason="MONAI Label and MONAI Deploy are not installed; make test-apps installs and runs",
    ),
]
CONFIGS = ("inference", "inference_native")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A bundle of a 3D model of one channel, and images as files and as a DICOM series."""
    root = tmp_path_factory.mktemp("apps")
    with pytest.MonkeyPatch.context() as patch:
        set_nnunet(patch, nnUNet_results=root / "results")
        names = {"trainer": "nnUNetTrainer", "plans_name": "nnUNetPlans"}
        make_model(root / "results", "3d_fullres", channels=1, **names)
        export_bundle(901, "3d_fullres", plans="nnUNetPlans", trainer="nnUNetTrainer", output=str(root / "bundle"))
    make_images(root / "images")
    voxels = np.random.default_rng(3).integers(0, 200, (10, 24, 21))
    image = oblique_image(voxels)
    image.SetSpacing((0.8, 0.8, 2.5))  # square pixels: MONAI Deploy 4.0.0 confuses rows and columns of others
    write_series(root / "dicom", image)
    return root


def bundle_with(workspace: Path, folder: Path, config: str) -> Path:
    """The bundle with one of its configs as the one that applications take."""
    if not (workspace / "bundle" / "configs" / f"{config}.json").is_file():
        pytest.skip(f"the bundle has no {config}.json")
    shutil.copytree(workspace / "bundle", folder)
    if config != "inference":
        shutil.copy(folder / "configs" / f"{config}.json", folder / "configs" / "inference.json")
    return folder


def expected_segmentation(bundle: Path, image: Path, output: Path) -> sitk.Image:
    config = str(bundle / "configs" / "inference.json")
    places = {"bundle_root": str(bundle), "dataset_dir": str(image), "output_dir": str(output)}
    monai.bundle.run(config_file=config, device="cpu", **places)
    (file,) = output.rglob("*.nii.gz")
    return sitk.ReadImage(str(file))


@pytest.mark.parametrize("config", CONFIGS)
def test_monai_label(workspace, config, tmp_path):
    from monailabel.tasks.infer.bundle import BundleInferTask

    bundle = bundle_with(workspace, tmp_path / "bundle", config)
    task = BundleInferTask(str(bundle), {"preload": "false"})
    assert task.is_valid()
    assert task.labels == {"shell": 1, "core": 2}
    for case in ("oblique", "coronal", "flipped"):
        image = workspace / "images" / f"{case}_0000.nii.gz"
        request = {"model": "bundle", "image": str(image), "device": "cpu", "result_extension": ".nii.gz"}
        file, details = task(request)
        found = sitk.ReadImage(file)
        Path(file).unlink()
        assert details["label_names"] == {"shell": 1, "core": 2}
        expected = expected_segmentation(bundle, image, tmp_path / f"expected_{case}")
        np.testing.assert_array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(expected))
        assert len(np.unique(sitk.GetArrayFromImage(found))) == 3
        for what in ("Spacing", "Origin", "Direction"):
            values, meant = (getattr(each, f"Get{what}")() for each in (found, sitk.ReadImage(str(image))))
            np.testing.assert_allclose(values, meant, rtol=0, atol=1e-4)


def run_app(bundle: Path, dicom: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(bundle / "docs" / "deploy_app.py"), "-i", str(dicom), "-o", "seg"]
    environment = {name: value for name, value in os.environ.items() if name != "HOLOSCAN_MODEL_PATH"}
    text = {"encoding": "utf-8", "errors": "replace"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=300, **text)


def test_monai_deploy_refuses_pixels_that_are_not_square(workspace, tmp_path):
    write_series(tmp_path / "dicom", oblique_image())
    done = run_app(workspace / "bundle", tmp_path / "dicom", tmp_path)
    assert done.returncode != 0
    assert "are 0.8 x 0.75 mm; MONAI Deploy exchanges the two" in done.stdout + done.stderr


@pytest.mark.parametrize("config", CONFIGS)
def test_monai_deploy(workspace, config, tmp_path):
    """Every frame of the DICOM SEG shows one label in one slice; slices without it have none."""
    import pydicom

    bundle = bundle_with(workspace, tmp_path / "bundle", config)
    done = run_app(bundle, workspace / "dicom", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = (tmp_path / "seg").glob("*.dcm")
    seg = pydicom.dcmread(file)
    assert seg.SOPClassUID.name == "Segmentation Storage"
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == ["shell", "core"]

    expected = expected_segmentation(bundle, workspace / "dicom", tmp_path / "expected")
    voxels = np.zeros(expected.GetSize()[::-1], int)
    for pixels, frame in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        column, row, number = expected.TransformPhysicalPointToIndex([float(mm) for mm in position])
        assert (column, row) == (0, 0)
        voxels[number][pixels > 0] = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    np.testing.assert_array_equal(voxels, sitk.GetArrayFromImage(expected))
    assert len(np.unique(voxels)) == 3
