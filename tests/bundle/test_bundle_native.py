"""``configs/inference_native.json``: MONAI's transforms give what nnU-Net gives, step by step and as a whole.

Random networks label by chance, so labels agree only where the logits do to their last digits; nnU-Net adds them up in
half precision, MONAI in single.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from monai.bundle import ConfigParser
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.data.utils import dense_patch_slices
from monai.transforms import LoadImage, LoadImaged, SaveImaged
from nnunet_environment import set_nnunet
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from scripts.native import case_name
from scripts.windows import even_overlap
from trained_models import (
    CORONAL,
    DATASET,
    LABELS,
    LEFT_TO_RIGHT,
    OBLIQUE,
    REGIONS,
    environment_without_package,
    make_images,
    make_model,
    make_plans,
    predict_with_nnunet,
    random_weights,
    run_command,
)

from alhvr_trainer.export.bundle import export_bundle
from alhvr_trainer.export.bundle.architecture import BundleNetwork, network_config
from alhvr_trainer.export.bundle.native_config import native_config, why_not_native
from alhvr_trainer.models import TrainedModel
from alhvr_trainer.resources import bundle_folder

STRAIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
OWN_SPACING = [3.2, 1.1, 0.8]
"""z, y, x of the image below in mm: nothing is resampled."""
BLOCKED = ("alhvr_trainer", "nnunetv2", "batchgenerators", "acvl_utils", "dynamic_network_architectures")


def write_case(folder: Path, direction: tuple = STRAIGHT, channels: int = 2, ending: str = ".nii.gz") -> list[str]:
    """Smooth positive images in a border of zeros, with a hole of zeros inside; sizes (9, 31, 25), int16."""
    folder.mkdir(parents=True, exist_ok=True)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, size) for size in (9, 31, 25)), indexing="ij")
    files = []
    for channel in range(channels):
        voxels = 120 + 90 * np.sin(3 * x + channel) * np.cos(4 * y + x) + 30 * z
        voxels[:, :3], voxels[..., -2:], voxels[3:5, 12:16, 8:13] = 0, 0, 0
        image = sitk.GetImageFromArray(voxels.astype(np.int16))
        image.SetSpacing(OWN_SPACING[::-1])
        image.SetDirection(direction)
        image.SetOrigin((-31.5, 12.25, 7.0))
        files.append(str(folder / f"case_{channel:04d}{ending}"))
        sitk.WriteImage(image, files[-1])
    return files


def model_of(configuration: str = "3d_fullres", labels: dict[str, Any] = LABELS, **changes: Any) -> TrainedModel:
    """A model of given plans: what ``changes`` names is changed in the plans or in the configuration."""
    plans = make_plans("ALHVRPlans")
    for name, value in changes.items():
        (plans if name in plans else plans["configurations"][configuration])[name] = value
    if "transpose_forward" in changes:
        plans["transpose_backward"] = np.argsort(plans["transpose_forward"]).tolist()
    dataset_json = {"channel_names": {"0": "T2", "1": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    folder = Path("nowhere")
    return TrainedModel(DATASET, configuration, "t", "p", (0,), folder, "w", plans, dataset_json)


def config_of(model: TrainedModel, mirror_axes: tuple[int, ...] | None = None) -> dict[str, Any]:
    template = json.loads((bundle_folder() / "configs" / "inference_native.json").read_text(encoding="utf-8"))
    filled = {"num_channels": model.num_channels, "num_outputs": model.num_outputs, "mirror_axes": mirror_axes}
    filled |= {"network_def": network_config(model, PlainConvUNet), "bundle_root": str(bundle_folder())}
    return {**native_config(template, model), **filled}


def parser_of(model: TrainedModel, mirror_axes: tuple[int, ...] | None = None, **override: Any) -> ConfigParser:
    parser = ConfigParser({**config_of(model, mirror_axes), "device": "cpu", "verified": True, **override})
    parser.parse()
    return parser


def nnunet_preprocessed(model: TrainedModel, files: list[str]) -> np.ndarray:
    configuration = model.configuration_manager
    return DefaultPreprocessor(verbose=False).run_case(
        files, None, model.plans_manager, configuration, model.dataset_json
    )[0]


def assert_preprocessed_alike(model: TrainedModel, files: list[str], tolerance: float) -> None:
    expected = nnunet_preprocessed(model, files)
    found = parser_of(model).get_parsed_content("preprocessing")({"image": files})["image"]
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=tolerance * np.abs(expected).max())


def own_spacing(transpose: list[int]) -> list[float]:
    return [OWN_SPACING[axis] for axis in transpose]


@pytest.mark.parametrize(
    ("schemes", "masks"),
    [
        (["ZScoreNormalization"] * 2, [False, False]),
        (["ZScoreNormalization"] * 2, [True, True]),
        (["ZScoreNormalization", "CTNormalization"], [True, False]),
        (["CTNormalization"] * 2, [False, False]),
        (["NoNormalization"] * 2, [False, False]),
        (["RescaleTo01Normalization"] * 2, [False, False]),
        (["RGBTo01Normalization", "NoNormalization"], [False, False]),
    ],
    ids=["zscore", "zscore-masked", "mixed", "ct", "none", "rescale", "rgb-none"],
)
def test_normalization(schemes, masks, tmp_path):
    """No resampling: equal up to rounding."""
    forward = [2, 0, 1]
    model = model_of(
        normalization_schemes=schemes, use_mask_for_norm=masks, spacing=own_spacing(forward), transpose_forward=forward
    )
    assert_preprocessed_alike(model, write_case(tmp_path), 1e-6)


@pytest.mark.parametrize("forward", [[0, 1, 2], [1, 2, 0], [2, 1, 0]])
@pytest.mark.parametrize(
    ("reader", "direction"),
    [
        ("SimpleITKIO", OBLIQUE),
        ("NibabelIO", CORONAL),
        ("NibabelIOWithReorient", CORONAL),
        ("SimpleITKIOWithReorient", LEFT_TO_RIGHT),
    ],
)
def test_orientation_and_transposition(reader, direction, forward, tmp_path):
    files = write_case(tmp_path, direction)
    # turned to RAS, the axes of a coronal image are others
    spacing = [OWN_SPACING[axis] for axis in ((1, 0, 2) if reader == "NibabelIOWithReorient" else (0, 1, 2))]
    target = [spacing[axis] for axis in forward]
    model = model_of(image_reader_writer=reader, transpose_forward=forward, spacing=target)
    assert_preprocessed_alike(model, files, 1e-5)


@pytest.mark.parametrize(
    ("configuration", "spacing"),
    [
        ("3d_fullres", [0.9, 2.5, 1.2]),
        ("3d_fullres", [1.0, 1.0, 1.0]),
        ("3d_fullres", [0.5, 6.0, 0.7]),
        ("3d_fullres", [2.0, 3.1, 2.2]),
        ("2d", [2.5, 1.1]),
        ("2d", [3.2, 1.4]),
    ],
)
@pytest.mark.parametrize("thickness", [3.2, 2.0], ids=["thick-slices", "thin-slices"])
def test_resampling(configuration, spacing, thickness, tmp_path):
    """Thick slices (over three times the width of a voxel) are resampled one by one, thin ones as a volume."""
    files = write_case(tmp_path)
    for file in files:
        image = sitk.ReadImage(file)
        image.SetSpacing((0.8, 1.1, thickness))
        sitk.WriteImage(image, file)
    assert_preprocessed_alike(model_of(configuration, spacing=spacing), files, 1e-6)


def test_an_image_of_zeros_is_kept_whole(tmp_path):
    image = MetaTensor(torch.zeros(2, 8, 7, 6), affine=np.diag([0.9, 1.2, 2.5, 1]))
    preprocessing = parser_of(model_of()).get_parsed_content("preprocessing")
    preprocessing.transforms = preprocessing.transforms[1:]
    assert preprocessing({"image": image})["image"].shape[1:] == (8, 6, 7)


@pytest.mark.parametrize("ending", [".nrrd", ".mha", "dicom"])
def test_other_formats_give_the_same_array(ending, tmp_path):
    direction = STRAIGHT
    nifti = write_case(tmp_path / "nifti", direction, channels=1)
    model = model_of(normalization_schemes=["ZScoreNormalization"], use_mask_for_norm=[False])
    model.dataset_json["channel_names"] = {"0": "T2"}
    other = (
        [str(write_dicom(nifti[0], tmp_path / "series"))]
        if ending == "dicom"
        else write_case(tmp_path / "other", direction, 1, ending)
    )
    arrays, affines = [], []
    for files in (nifti, other):
        preprocessing = parser_of(model).get_parsed_content("preprocessing")
        arrays.append(preprocessing({"image": files})["image"].numpy())
        affines.append(LoadImage()(files).affine)
    np.testing.assert_allclose(arrays[1], arrays[0], atol=1e-5)
    np.testing.assert_allclose(affines[1], affines[0], atol=1e-4)


def write_dicom(file: str, folder: Path) -> Path:
    folder.mkdir()
    image = sitk.ReadImage(file)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number in range(image.GetDepth()):
        part = image[:, :, number]
        x, y, z = image.TransformIndexToPhysicalPoint((0, 0, number))
        for tag, value in {
            "0008|0060": "MR",
            "0020|000e": "1.2.826.0.1.3680043.2.1125.1",
            "0020|000d": "1.2.826.0.1.3680043.2.1125.2",
            "0008|0018": f"1.2.826.0.1.3680043.2.1125.1.{number + 1}",
            "0020|0032": f"{x}\\{y}\\{z}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0013": str(number),
            "0018|0050": str(image.GetSpacing()[2]),
        }.items():
            part.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{number}.dcm"))
        writer.Execute(part)
    return folder


@pytest.mark.parametrize(
    ("configuration", "patch", "mirror_axes"),
    [("2d", [16, 20], (0, 1)), ("2d", [40, 40], None), ("3d_fullres", [16, 8, 20], (0, 1, 2))],
    ids=["2d", "2d-padded-no-mirroring", "3d"],
)
def test_logits(configuration, patch, mirror_axes):
    """Two windows per axis at most: there nnU-Net and MONAI place them alike. What differs is half precision."""
    model = model_of(configuration, patch_size=patch)
    image = torch.rand((2, 24, 12, 30), generator=torch.Generator().manual_seed(1))
    parser = parser_of(model, mirror_axes)
    network = parser.get_parsed_content("network_def").eval()
    weights = random_weights(model.plans, configuration, seed=1)
    network.load_state_dict(weights, strict=False)
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, use_mirroring=mirror_axes is not None)
    predictor.manual_initialization(
        network,
        model.plans_manager,
        model.configuration_manager,
        [network.state_dict()],
        model.dataset_json,
        "",
        mirror_axes,
    )
    expected = predictor.predict_logits_from_preprocessed_data(image).float()
    with torch.no_grad():
        found = parser.get_parsed_content("inferer")(image[None], network)[0]
    assert expected.std() > 0.1
    # along the edges of a volume nnU-Net's weights underflow in half precision
    inner = (slice(None), slice(2, -2), slice(2, -2), slice(2, -2)) if configuration == "3d_fullres" else ...
    torch.testing.assert_close(found[inner], expected[inner], rtol=0, atol=2e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("size", [30, 64, 65, 96, 110, 128, 200, 333])
def test_windows_lie_where_nnunet_puts_them(size):
    """As many, and each up to one voxel per window beside nnU-Net's."""
    expected = compute_steps_for_sliding_window((max(size, 64),), (64,), 0.5)[0]
    interval = int(64 * (1 - even_overlap([size], [64], 0.5)[0]))
    found = [min(number * interval, max(size - 64, 0)) for number in range(len(expected))]
    assert found[-1] == expected[-1]
    assert all(abs(a - b) <= number for number, (a, b) in enumerate(zip(found, expected, strict=True)))
    assert len({each.start for (each,) in dense_patch_slices((max(size, 64),), (64,), (interval,))}) == len(expected)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    root = tmp_path_factory.mktemp("native")
    make_images(root / "images")
    with pytest.MonkeyPatch.context() as patch:
        set_nnunet(patch, nnUNet_results=root / "results")
        yield root


def run_native(bundle: Path, images: Path, output: Path, **override: Any) -> Path:
    config = str(bundle / "configs" / "inference_native.json")
    places = {"dataset_dir": str(images), "output_dir": str(output)}
    monai.bundle.run("inference", config_file=config, bundle_root=str(bundle), device="cpu", **places, **override)
    return output


def share_of_equal_voxels(found: Path, expected: Path) -> float:
    """Smallest over the cases; files, type and geometry are the same."""
    names = sorted(path.name for path in expected.glob("*.nii.gz"))
    assert sorted(path.name for path in found.iterdir()) == names
    assert len(names) == 3
    shares = []
    for name in names:
        ours, theirs = sitk.ReadImage(str(found / name)), sitk.ReadImage(str(expected / name))
        assert ours.GetPixelIDTypeAsString() == theirs.GetPixelIDTypeAsString()
        for geometry in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(getattr(ours, geometry)(), getattr(theirs, geometry)(), atol=1e-5)
        voxels = sitk.GetArrayFromImage(theirs)
        assert len(np.unique(voxels)) >= 2
        shares.append(np.mean(sitk.GetArrayFromImage(ours) == voxels))
    return float(min(shares))


def widen(model: Path, configuration: str, patch: list[int]) -> Path:
    """Give the plans another patch size: of two windows per axis at most, so that both place them alike."""
    plans = json.loads((model / "plans.json").read_text(encoding="utf-8"))
    plans["configurations"][configuration]["patch_size"] = patch
    (model / "plans.json").write_text(json.dumps(plans))
    return model


@pytest.mark.parametrize(
    ("configuration", "patch", "kind"),
    [
        ("2d", [16, 20], {"plans_name": "NativePlans"}),
        ("3d_fullres", [32, 12, 32], {"plans_name": "NativePlans", "mirror_axes": (0, 1, 2)}),
        ("2d", [16, 20], {"plans_name": "RegionPlans", "regions": True, "mirror_axes": None}),
    ],
    ids=["2d", "3d", "2d-regions"],
)
def test_labels(workspace, configuration, patch, kind, tmp_path):
    model = widen(make_model(workspace / "results", configuration, "nnUNetTrainer", **kind), configuration, patch)
    expected = predict_with_nnunet(model, workspace / "images", tmp_path / "expected")
    bundle = export_bundle(
        901, configuration, plans=kind["plans_name"], trainer="nnUNetTrainer", output=str(tmp_path / "bundle")
    )
    found = run_native(bundle, workspace / "images", tmp_path / "found")
    assert share_of_equal_voxels(found, expected) > 0.995


@pytest.fixture(scope="module")
def bundle(workspace) -> Path:
    make_model(workspace / "results", "2d", "nnUNetTrainer", "PlainPlans")
    return export_bundle(901, "2d", plans="PlainPlans", trainer="nnUNetTrainer", output=str(workspace / "bundle"))


def test_runs_without_nnunet(workspace, bundle, tmp_path):
    env = environment_without_package(tmp_path / "site", BLOCKED)
    command = f"-m monai.bundle run --config_file {bundle}/configs/inference_native.json --bundle_root {bundle}"
    places = ("--dataset_dir", workspace / "images", "--output_dir", tmp_path / "found", "--device", "cpu")
    printed = run_command(sys.executable, *command.split(), *places, env=env, cwd=tmp_path)
    here = run_native(bundle, workspace / "images", tmp_path / "here")
    assert share_of_equal_voxels(tmp_path / "found", here) > 0.999
    assert "it/s" in printed


def test_options_take_effect(workspace, bundle, tmp_path):
    plain = run_native(bundle, workspace / "images", tmp_path / "run")
    for override in ({"use_mirroring": False}, {"overlap": 0.75}):
        other = run_native(bundle, workspace / "images", tmp_path / next(iter(override)), **override)
        assert share_of_equal_voxels(other, plain) < 0.999
    workers = run_native(bundle, workspace / "images", tmp_path / "workers", num_workers=1)
    assert share_of_equal_voxels(workers, plain) == 1


@pytest.mark.parametrize("channel_first", [True, False])
def test_image_in_memory(workspace, bundle, channel_first, tmp_path):
    """As servers do: their own image instead of a file, nothing written."""
    files = [str(workspace / "images" / f"oblique_{channel:04d}.nii.gz") for channel in range(2)]
    image = LoadImage(ensure_channel_first=True)(files)
    affine, before = image.affine.clone(), image.clone()
    if channel_first:
        image = MetaTensor(image.as_tensor(), affine=affine)
    else:
        image = MetaTensor(image.as_tensor().movedim(0, -1), affine=affine, meta={"original_channel_dim": -1})
    pred = predict_in_memory(bundle, image)
    assert isinstance(pred, MetaTensor)
    assert pred.shape == (1, *before.shape[1:])
    np.testing.assert_allclose(pred.affine, affine, atol=1e-9)
    if channel_first:
        torch.testing.assert_close(image.as_tensor(), before.as_tensor(), rtol=0, atol=0)
    (tmp_path / "images").mkdir()
    for file in files:
        (tmp_path / "images" / Path(file).name).write_bytes(Path(file).read_bytes())
    written = run_native(bundle, tmp_path / "images", tmp_path / "found") / "oblique.nii.gz"
    torch.testing.assert_close(pred[0].as_tensor(), LoadImage(dtype=np.uint8)(written).as_tensor())


def predict_in_memory(bundle: Path, image: MetaTensor) -> torch.Tensor:
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference_native.json"))
    parser.config.update(bundle_root=str(bundle), device="cpu")
    parser.parse()
    pre, post, network, inferer = (
        parser.get_parsed_content(name) for name in ("preprocessing", "postprocessing", "network", "inferer")
    )
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True), strict=False)
    data = {"image": image}
    for transform in pre.transforms:
        if not isinstance(transform, LoadImaged):
            data = transform(data)
    batch = list_data_collate([data])
    with torch.no_grad():
        batch["pred"] = inferer(batch["image"], network.eval())
    data = decollate_batch(batch)[0]
    for transform in post.transforms:
        if not isinstance(transform, SaveImaged):
            data = transform(data)
    return data["pred"]


def test_one_slice_stays_a_volume(bundle, tmp_path):
    for channel in range(2):
        image = sitk.GetImageFromArray(np.random.default_rng(channel).uniform(1, 9, (1, 24, 20)).astype(np.float32))
        (tmp_path / "images").mkdir(exist_ok=True)
        sitk.WriteImage(image, str(tmp_path / "images" / f"thin_{channel:04d}.nii.gz"))
    found = run_native(bundle, tmp_path / "images", tmp_path / "found")
    assert sitk.ReadImage(str(found / "thin.nii.gz")).GetSize() == (20, 24, 1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image_reader_writer": "NaturalImage2DIO"}, "images are read by NaturalImage2DIO"),
        ({"preprocessor_name": "MyPreprocessor"}, "preprocessor is MyPreprocessor"),
        ({"label_manager": "MyManager"}, "label manager is MyManager"),
        ({"normalization_schemes": ["ZScoreNormalization", "Mine"]}, "normalization is Mine"),
        ({"resampling_fn_data": "resample_torch_fornnunet"}, "resampling of data is resample_torch_fornnunet"),
        ({"resampling_fn_data_kwargs": {"force_separate_z": True}}, "resampling of data has options"),
        ({"resampling_fn_probabilities_kwargs": {"order": 0, "force_separate_z": None}}, "not resampled linearly"),
    ],
)
def test_what_cannot_be_expressed(change, reason):
    network = BundleNetwork({"_target_": "MyNetwork"}, {}, native=True)
    assert why_not_native(model_of(), network) is None
    assert reason in why_not_native(model_of(**change), network)


def test_network_of_a_library_cannot_be_expressed():
    network = BundleNetwork({"_target_": "MyNetwork"}, {}, native=False)
    assert why_not_native(model_of(), network) == "the network is MyNetwork"


def test_export_says_why_the_config_is_missing(tmp_path, capsys, monkeypatch):
    set_nnunet(monkeypatch, nnUNet_results=tmp_path)
    folder = make_model(tmp_path, "2d", "nnUNetTrainer", "OddPlans")
    plans = json.loads((folder / "plans.json").read_text(encoding="utf-8"))
    plans["image_reader_writer"] = "Tiff3DIO"
    (folder / "plans.json").write_text(json.dumps(plans))
    odd = export_bundle(901, "2d", plans="OddPlans", trainer="nnUNetTrainer", output=str(tmp_path / "bundle"))
    assert not (odd / "configs" / "inference_native.json").exists()
    assert (odd / "configs" / "inference.json").exists()
    assert "no configs/inference_native.json: the images are read by Tiff3DIO" in capsys.readouterr().out


def test_regions_and_many_labels():
    regions = model_of(labels={**REGIONS, "ignore": 3})
    regions.dataset_json["regions_class_order"] = [1, 2]
    (regions_to_labels,) = steps_of(regions, "scripts.native.RegionsToLabelsd")
    assert regions_to_labels["order"] == [1, 2]
    many = model_of(labels={"background": 0, **{f"part {number}": number for number in range(1, 300)}})
    (labels,), (save,) = (steps_of(many, name) for name in ("AsDiscreted", "SaveImaged"))
    assert (labels["dtype"], save["output_dtype"]) == ("$torch.int32", "$np.uint16")


def steps_of(model: TrainedModel, name: str) -> list[dict[str, Any]]:
    """Of the postprocessing, those of one kind."""
    return [step for step in config_of(model)["postprocessing"]["transforms"] if step["_target_"] == name]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("/a/patient_0000.nii.gz", "patient"),
        ("/a/scan_2021.nrrd", "scan_2021"),
        ("/a/1.2.840.113", "1.2.840.113"),
    ],
)
def test_names_of_output_files(file, name):
    saver = SaveImaged(keys="pred", output_postfix="", separate_folder=False, output_name_formatter=case_name)
    kwargs = case_name({"filename_or_obj": file}, saver)
    assert Path(saver.saver.folder_layout.filename(**kwargs)).name == f"{name}.nii.gz"
