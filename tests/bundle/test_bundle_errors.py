"""What the exported bundle does when something is wrong: one clear line, and nothing lost that could be done."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import monai.bundle
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunet_environment import set_nnunet
from scripts.input_error import InputError, reason
from scripts.memory import GIB, available_memory, check_memory, logits_bytes, results_device
from trained_models import make_images, make_model

from alhvr_trainer.export.bundle import export_bundle

pytestmark = pytest.mark.any_nnunet
CONFIGS = ("inference", "inference_native")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    root = tmp_path_factory.mktemp("errors")
    with pytest.MonkeyPatch.context() as patch:
        set_nnunet(patch, nnUNet_results=root / "results")
        make_model(root / "results", "2d", trainer="nnUNetTrainer")
        make_images(root / "images")
        export_bundle(901, "2d", trainer="nnUNetTrainer", output=str(root / "bundle"))
        yield root


@pytest.fixture
def images(workspace, tmp_path) -> Path:
    return Path(shutil.copytree(workspace / "images", tmp_path / "images"))


def message_of_run(bundle: Path, images: Path, output: Path, config: str = "inference", **override: object) -> str:
    """The lines with which the program ends."""
    with pytest.raises(SystemExit) as caught:
        monai.bundle.run(
            "inference",
            config_file=str(bundle / "configs" / f"{config}.json"),
            bundle_root=str(bundle),
            dataset_dir=str(images),
            output_dir=str(output),
            **override,
        )
    return str(caught.value)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def as_zip(path: Path) -> None:
    """MONAI's reader of NumPy files would open this one."""
    path.unlink()
    np.savez(path.with_suffix(".npz"), np.zeros((4, 4, 4)))
    path.with_suffix(".npz").rename(path)


@pytest.mark.parametrize(
    ("config", "num_workers", "damage"),
    [
        ("inference", 0, cut_off),
        ("inference", 1, cut_off),
        ("inference_native", 0, cut_off),
        ("inference_native", 0, as_zip),
    ],
)
def test_a_broken_file_stops_no_other_case(workspace, images, tmp_path, config, num_workers, damage):
    broken = images / "flipped_0001.nii.gz"
    damage(broken)
    options = {"config": config, "num_workers": num_workers}
    message = message_of_run(workspace / "bundle", images, tmp_path / "found", **options).splitlines()
    assert message[0] == "bundle: 1 of 3 cases failed, the others are done:"
    assert message[1].startswith("  flipped: cannot read ") and broken.name in message[1]
    assert len(message) == 2
    assert sorted(path.name for path in (tmp_path / "found").iterdir()) == ["coronal.nii.gz", "oblique.nii.gz"]


def without_orientation(path: Path) -> None:
    header = nibabel.load(path)
    header.set_qform(None, code=0)
    header.set_sform(None, code=0)
    nibabel.save(header, path)


def as_film(path: Path) -> None:
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.stack([image.get_fdata()] * 3, -1).astype(np.float32), image.affine), path)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without_orientation, "does not say how it lies in the patient (qform_code and sform_code are 0)"),
        (as_film, "split"),
    ],
)
def test_images_that_no_model_takes_are_named(workspace, images, tmp_path, config, spoil, said):
    for channel in range(2):
        spoil(images / f"coronal_{channel:04d}.nii.gz")
    message = message_of_run(workspace / "bundle", images, tmp_path / "found", config).splitlines()
    assert message[0] == "bundle: 1 of 3 cases failed, the others are done:"
    assert len(message) == 2 and message[1].startswith("  coronal: ") and said in message[1]


def test_unknown_orientation_can_be_allowed(workspace, images, tmp_path):
    for channel in range(2):
        without_orientation(images / f"coronal_{channel:04d}.nii.gz")
    for config in CONFIGS:
        output = tmp_path / config
        monai.bundle.run(
            "inference",
            config_file=str(workspace / "bundle" / "configs" / f"{config}.json"),
            bundle_root=str(workspace / "bundle"),
            dataset_dir=str(images),
            output_dir=str(output),
            allow_unknown_orientation=True,
        )
        assert len(list(output.iterdir())) == 3


@pytest.mark.parametrize("config", CONFIGS)
def test_folders_that_cannot_be_predicted(workspace, images, tmp_path, config):
    (tmp_path / "empty").mkdir()
    (images / "oblique_0001.nii.gz").unlink()
    for folder, said in {
        tmp_path / "nowhere": "does not exist",
        tmp_path / "empty": "is empty",
        images: "case oblique in",
    }.items():
        message = message_of_run(workspace / "bundle", folder, tmp_path / "found", config)
        assert message.startswith("bundle: ") and said in message and "\n" not in message
    assert not (tmp_path / "found").exists()


def test_a_case_that_cannot_be_written_stops_no_other(workspace, images, tmp_path):
    (tmp_path / "found" / "flipped.nii.gz").mkdir(parents=True)
    message = message_of_run(workspace / "bundle", images, tmp_path / "found").splitlines()
    assert len(message) == 2 and message[1].startswith("  flipped: ")
    assert (tmp_path / "found" / "oblique.nii.gz").is_file()


def test_a_volume_too_large_for_memory_is_refused_before_it_is_resampled(workspace, images, tmp_path):
    """Voxels of 3 m, as a wrong header has them, mean terabytes at the model's spacing of millimeters."""
    for channel in range(2):
        path = str(images / f"flipped_{channel:04d}.nii.gz")
        image = sitk.ReadImage(path)
        image.SetSpacing((3000.0, 3000.0, 3000.0))
        sitk.WriteImage(image, path)
    message = message_of_run(workspace / "bundle", images, tmp_path / "found").splitlines()
    assert message[1].startswith("  flipped: a volume of 7 x 26 x 24 voxels needs about ")
    assert message[1].endswith("crop it, or use a machine with more memory")
    assert (tmp_path / "found" / "oblique.nii.gz").is_file()


def test_memory_is_estimated():
    assert logits_bytes((10, 10, 10), outputs=3, channels=2) == 1000 * (2 * 4 + 4 * 2)
    assert 0 < available_memory() < 2**50
    check_memory((100, 100, 100), (100, 100, 100), outputs=3, available=GIB)
    with pytest.raises(
        InputError, match=r"^a volume of 100 x 100 x 100 voxels needs about 0\.9 GiB .* 0\.5 GiB are free"
    ):
        check_memory((100, 100, 100), (100, 100, 100), outputs=100, available=GIB // 2)


@pytest.mark.parametrize(("free", "place"), [(100 * GIB, "cuda"), (GIB, "cpu")])
def test_results_move_to_main_memory_where_the_gpu_is_too_small(free, place):
    assert results_device((512, 512, 512), outputs=10, device="cuda", free=free).type == place
    assert results_device((512, 512, 512), outputs=10, device="cpu").type == "cpu"


@pytest.mark.parametrize("overlap", [1, -0.1])
def test_overlap_out_of_range(workspace, images, tmp_path, overlap):
    with pytest.raises(RuntimeError) as caught:
        monai.bundle.run(
            "inference",
            config_file=str(workspace / "bundle" / "configs" / "inference.json"),
            bundle_root=str(workspace / "bundle"),
            dataset_dir=str(images),
            output_dir=str(tmp_path / "found"),
            overlap=overlap,
        )
    assert f"overlap is {overlap}; it must be at least 0 and less than 1" in reason(caught.value)


def test_an_image_with_another_number_of_channels(workspace):
    """For programs that hand over images: the shape is checked where no file was."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(workspace / "bundle" / "configs" / "inference.json"))
    parser["bundle_root"] = str(workspace / "bundle")
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("preprocessing")({"image": torch.zeros(3, 8, 8, 8)})
    assert reason(caught.value) == (
        "an image of shape (3, 8, 8, 8): the model needs 2 channel(s) first, then two or three axes"
    )


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda bundle: flip_a_byte(bundle / "models" / "model.pt"), "models/model.pt is damaged or changed"),
        (lambda bundle: flip_a_byte(bundle / "plans.json"), "plans.json is damaged or changed"),
        (lambda bundle: (bundle / "scripts" / "memory.py").unlink(), "scripts/memory.py is missing"),
        (lambda bundle: (bundle / "checksums.sha256").unlink(), "cannot read "),
    ],
    ids=["weights", "plans", "script", "checksums"],
)
def test_a_damaged_bundle_does_not_run(workspace, images, tmp_path, damage, said):
    bundle = Path(shutil.copytree(workspace / "bundle", tmp_path / "bundle"))
    damage(bundle)
    message = message_of_run(bundle, images, tmp_path / "found")
    assert message.startswith("bundle: ") and said in message and "export the bundle again" in message
    assert "\n" not in message
    assert not (tmp_path / "found").exists()


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_checksums_are_those_of_sha256sum(workspace):
    command = ["sha256sum", "--strict", "--check", "checksums.sha256"]
    result = subprocess.run(command, cwd=workspace / "bundle", capture_output=True, text=True)
    assert result.returncode == 0 and "models/model.pt: OK" in result.stdout, result.stdout + result.stderr


def test_weights_are_tensors_only(workspace):
    weights = torch.load(workspace / "bundle" / "models" / "model.pt", weights_only=True)
    assert weights and all(type(name) is str and type(value) is torch.Tensor for name, value in weights.items())
