"""Trained nnU-Net models without training: tiny random networks in nnU-Net's own folders and files.

Random networks label every voxel by chance, so two predictions are equal only if every step before was equal.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

DATASET = "Dataset901_Tiny"
LABELS = {"background": 0, "shell": 1, "core": 2}
REGIONS = {"background": 0, "whole": [1, 2], "core": 2}
# axes (z, y, x) -> (x, z, y): not its own inverse, so a swap of forward and backward shows
TRANSPOSE_FORWARD, TRANSPOSE_BACKWARD = [2, 0, 1], [1, 2, 0]
KERNELS_2D = [[3, 3], [3, 3], [3, 3]]
STRIDES_2D = [[1, 1], [2, 2], [2, 1]]
KERNELS_3D = [[3, 1, 3], [3, 3, 3], [3, 3, 3]]
STRIDES_3D = [[1, 1, 1], [2, 1, 2], [2, 2, 2]]


def _resampling(order: int, is_seg: bool = False) -> dict[str, Any]:
    return {"is_seg": is_seg, "order": order, "order_z": 0, "force_separate_z": None}


def _architecture(residual: bool, kernels: list, strides: list) -> dict[str, Any]:
    dimensions = len(kernels[0])
    blocks = "n_blocks_per_stage" if residual else "n_conv_per_stage"
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet."
        + ("ResidualEncoderUNet" if residual else "PlainConvUNet"),
        "arch_kwargs": {
            "n_stages": 3,
            "features_per_stage": [4, 8, 8],
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": kernels,
            "strides": strides,
            blocks: [1, 2, 1],
            "n_conv_per_stage_decoder": [1, 1],
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def _configuration(patch: list[int], spacing: list[float], architecture: dict[str, Any]) -> dict[str, Any]:
    return {
        "data_identifier": f"plans_{len(patch)}d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": patch,
        "median_image_size_in_voxels": [float(size) for size in patch],
        "spacing": spacing,
        "normalization_schemes": ["ZScoreNormalization", "CTNormalization"],
        "use_mask_for_norm": [True, False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": _resampling(3),
        "resampling_fn_seg_kwargs": _resampling(1, is_seg=True),
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": _resampling(1),
        "architecture": architecture,
        "batch_dice": False,
    }


def make_plans(name: str, residual: bool = False) -> dict[str, Any]:
    """Plans with ``2d``, ``3d_fullres`` (anisotropic) and ``3d_cascade_fullres``."""
    full = _configuration([16, 8, 16], [0.9, 2.5, 1.2], _architecture(residual, KERNELS_3D, STRIDES_3D))
    flat = _configuration([16, 20], [2.5, 1.1], _architecture(residual, KERNELS_2D, STRIDES_2D))
    statistics = {"mean": 90.0, "std": 40.0, "median": 90.0, "min": 0.0, "max": 250.0}
    statistics |= {"percentile_00_5": 5.0, "percentile_99_5": 200.0}
    return {
        "dataset_name": DATASET,
        "plans_name": name,
        "original_median_spacing_after_transp": [0.9, 2.5, 1.2],
        "original_median_shape_after_transp": [26, 10, 30],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": TRANSPOSE_FORWARD,
        "transpose_backward": TRANSPOSE_BACKWARD,
        "configurations": {
            "2d": {**flat, "alhvr": {"threshold_proportion": 0.8}},
            "3d_fullres": full,
            "3d_lowres": {"inherits_from": "3d_fullres", "next_stage": "3d_cascade_fullres"},
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
        "experiment_planner_used": "ALHVRPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": statistics, "1": statistics},
    }


def random_weights(
    plans: dict[str, Any], configuration: str, seed: int, outputs: int = len(LABELS), channels: int = 2
) -> dict[str, torch.Tensor]:
    """State dict of the configuration's network as training with deep supervision leaves it."""
    architecture = plans["configurations"][configuration]["architecture"]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = get_network_from_plans(
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            input_channels=channels,
            output_channels=outputs,
            deep_supervision=True,
        )
    weights = network.state_dict()
    for name, tensor in weights.items():
        if ".seg_layers." in name:  # without a mean over the features, so that every class wins somewhere
            tensor -= tensor.mean(dim=1, keepdim=True) if name.endswith("weight") else tensor.clone()
    return weights


def make_model(
    results: Path,
    configuration: str = "2d",
    trainer: str = "ALHVRTrainer",
    plans_name: str = "ALHVRPlans",
    folds: Sequence[int | str] = (0,),
    residual: bool = False,
    mirror_axes: tuple[int, ...] | None = (0, 1),
    regions: bool = False,
    channels: int = 2,
) -> Path:
    """The folder that a training would leave, its networks with random weights. Returns it.

    An ALHVR trainer's checkpoints carry network b under "alhvr".
    """
    plans = make_plans(plans_name, residual)
    for each in plans["configurations"].values():
        for key in {"normalization_schemes", "use_mask_for_norm"} & set(each):
            each[key] = each[key][:channels]
    dataset_json = {
        "channel_names": dict(list({"0": "T2", "1": "CT"}.items())[:channels]),
        "labels": REGIONS if regions else LABELS,
        **({"regions_class_order": [1, 2]} if regions else {}),
        "numTraining": 3,
        "file_ending": ".nii.gz",
        "unlabeled": ["imagesTr_unlabeled", "/elsewhere/scans"],
    }
    folder = results / DATASET / f"{trainer}__{plans_name}__{configuration}"
    folder.mkdir(parents=True)
    fingerprint = {"spacings": [[2.5, 1.2, 0.9]], "unlabeled": {"cases": ["secret_name"]}}
    for name, content in {
        "plans.json": plans,
        "dataset.json": dataset_json,
        "dataset_fingerprint.json": fingerprint,
    }.items():
        (folder / name).write_text(json.dumps(content))
    outputs = 2 if regions else len(LABELS)
    for number, fold in enumerate(folds):
        weights = [random_weights(plans, configuration, 10 * number + each, outputs, channels) for each in range(2)]
        checkpoint = {
            "network_weights": weights[0],
            "optimizer_state": {"state": {}, "param_groups": []},
            "grad_scaler_state": None,
            "logging": {"ema_fg_dice": [np.float64(0.5)]},
            "_best_ema": 0.5,
            "current_epoch": 3,
            "init_args": {
                "plans": plans,
                "configuration": configuration,
                "fold": fold,
                "dataset_json": dataset_json,
                "device": torch.device("cpu"),
            },
            "trainer_name": trainer,
            "inference_allowed_mirroring_axes": mirror_axes,
        }
        if trainer.startswith("ALHVR"):
            checkpoint["alhvr"] = {"network_b_weights": weights[1], "seed": 1, "history": {"gamma": [0.9]}}
        (folder / f"fold_{fold}").mkdir()
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


# direction cosines, columns are the image's x, y, z in LPS
OBLIQUE = sitk.Euler3DTransform((0, 0, 0), 0.1, -0.2, 0.3).GetMatrix()
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0)
LEFT_TO_RIGHT = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)


def make_images(folder: Path) -> Path:
    """Three cases of two channels: anisotropic; oblique, permuted and flipped axes; a border of zeros."""
    geometries = {
        "oblique": ((0.8, 1.1, 3.2), OBLIQUE, (-31.5, 12.25, 7.0), (9, 31, 25)),
        "coronal": ((1.3, 0.7, 2.0), CORONAL, (100.0, -50.5, 3.0), (12, 22, 28)),
        "flipped": ((0.9, 1.2, 2.5), LEFT_TO_RIGHT, (0.0, 20.0, -80.0), (7, 26, 24)),
    }
    folder.mkdir(parents=True)
    for seed, (case, (spacing, direction, origin, shape)) in enumerate(geometries.items()):
        random = np.random.default_rng(seed)
        for channel, dtype in enumerate((np.int16, np.float32)):
            voxels = random.uniform(1, 200, shape)
            voxels[:, :3], voxels[..., -2:] = 0, 0
            image = sitk.GetImageFromArray(voxels.astype(dtype))
            image.SetSpacing(spacing)
            image.SetDirection(direction)
            image.SetOrigin(origin)
            sitk.WriteImage(image, str(folder / f"{case}_{channel:04d}.nii.gz"))
    return folder


def predict_with_nnunet(
    model: Path, images: Path, output: Path, folds: Sequence[int | str] = (0,), weights: list | None = None
) -> Path:
    """nnU-Net's own prediction, in this process. ``weights``: state dicts instead of those of the folds."""
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), tuple(folds))
    if weights is not None:
        predictor.list_of_parameters = weights
    output.mkdir(parents=True)
    predictor.predict_from_files_sequential(str(images), str(output))
    return output


def assert_same_files(found: Path, expected: Path) -> None:
    """Same label maps: file names, voxels, type and geometry; and maps that could differ at all."""
    files = sorted(path.name for path in expected.glob("*.nii.gz"))
    assert len(files) == 3
    assert sorted(path.name for path in found.glob("*.nii.gz")) == files
    for name in files:
        ours, theirs = sitk.ReadImage(str(found / name)), sitk.ReadImage(str(expected / name))
        assert ours.GetPixelIDTypeAsString() == theirs.GetPixelIDTypeAsString()
        assert ours.GetSize() == theirs.GetSize()
        assert ours.GetSpacing() == theirs.GetSpacing()
        assert ours.GetOrigin() == theirs.GetOrigin()
        assert ours.GetDirection() == theirs.GetDirection()
        voxels = sitk.GetArrayFromImage(theirs)
        assert len(np.unique(voxels)) >= 2
        np.testing.assert_array_equal(sitk.GetArrayFromImage(ours), voxels)


def share_of_different_voxels(one: Path, other: Path) -> float:
    """Mean over the cases."""
    shares = []
    for path in sorted(one.glob("*.nii.gz")):
        pair = [sitk.GetArrayFromImage(sitk.ReadImage(str(folder / path.name))) for folder in (one, other)]
        shares.append(np.mean(pair[0] != pair[1]))
    return float(np.mean(shares))


def checkpoint_of(model: Path, fold: int | str = 0) -> dict[str, Any]:
    return torch.load(model / f"fold_{fold}" / "checkpoint_final.pth", weights_only=False)


def both_weights(model: Path, fold: int | str = 0) -> list[dict[str, torch.Tensor]]:
    """State dicts of networks a and b."""
    checkpoint = checkpoint_of(model, fold)
    return [checkpoint["network_weights"], checkpoint["alhvr"]["network_b_weights"]]


def python_path(first: Path) -> str:
    """PYTHONPATH with a folder in front; what it has, e.g. another nnU-Net than the installed one, stays."""
    return os.pathsep.join([str(first), *filter(None, [os.environ.get("PYTHONPATH")])])


def environment_without_package(
    folder: Path, blocked: Sequence[str] = ("alhvr_trainer",), **variables: str
) -> dict[str, str]:
    """This process's environment, but ``import`` of the blocked packages fails in every Python started with it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {tuple(blocked)}:\n"
        "            raise ModuleNotFoundError(f'{name} is blocked', name=name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("nnUNet_")}
    environment |= {"PYTHONPATH": python_path(folder), "nnUNet_def_n_proc": "1", **variables}
    check = subprocess.run(
        [sys.executable, "-c", "import alhvr_trainer"], env=environment, capture_output=True, text=True
    )
    assert "alhvr_trainer is blocked" in check.stderr
    return environment


def run_command(*words: object, env: dict[str, str], cwd: Path) -> str:
    """Run an installed command (by its name) or a program; its output. Fails with that output."""
    program = Path(sysconfig.get_path("scripts")) / str(words[0])
    command = [str(program) if program.is_file() else str(words[0]), *map(str, words[1:])]
    result = subprocess.run(command, env=env, cwd=cwd, capture_output=True, encoding="utf-8", timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writing more than ``size`` bytes into a file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
