"""How far inference with MONAI alone (b) is from nnU-Net-exact inference (a), and why.

Runs both configs of an exported bundle on a folder of images, compares the label maps, and then takes nnU-Net's
sliding window apart: one of its properties at a time is replaced by MONAI's, to see how many voxels each changes.

    python benchmarks/native_path.py --bundle acdc_bundle --images imagesVal --labels labelsVal --name acdc_2d

``--patch 32,24`` repeats it with smaller windows than the training's: more of them, so their differences show.
"""

from __future__ import annotations

import itertools
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data.utils import compute_importance_map, dense_patch_slices
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

PACKAGES = ("monai", "nnunetv2", "torch", "numpy", "scipy")
NNUNET = {"preprocessing": "nnunet", "positions": "even", "weights": "nnunet", "precision": "half"}
Pieces = list[tuple[tuple[slice, ...], torch.Tensor]]
"""A window and its logits."""
NATIVE = {"preprocessing": "monai", "positions": "even_overlap", "weights": "nnunet", "precision": "single"}
"""What (b) does."""
UNUSED = {"positions_of_fixed_distance": {"positions": "fixed"}, "weights_of_monai": {"weights": "monai"}}
"""What MONAI would do by itself."""


def run(
    bundle: str,
    images: str,
    name: str,
    labels: str | None = None,
    patch: tuple[int, ...] | None = None,
    device: str = "cpu",
    output: str = "benchmarks/results/native_path.json",
) -> None:
    """Measure one bundle and add the figures to a JSON file.

    Args:
        bundle: folder of the exported bundle.
        images: folder of the images, named as nnU-Net wants them.
        name: of the entry in the JSON file.
        labels: folder of the reference label maps, ``<case>.nii.gz``.
        patch: size of the window instead of the plans'.
        device: for both configs.
        output: the JSON file; entries of other names stay.
    """
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        folder = _copy(Path(bundle), work / "bundle", patch)
        maps = {letter: _predict(folder, config, images, work, device) for letter, config in _configs().items()}
        entry: dict[str, Any] = {
            "cases": len(maps["a"]),
            "patch": _read(folder, "inference_native")["inferer"]["roi_size"],
        }
        entry["b_against_a"] = _agreement(maps["b"], maps["a"])
        if labels is not None:
            truth = {case: _load(Path(labels) / f"{case}.nii.gz") for case in maps["a"]}
            entry |= {f"{letter}_against_reference": _dice_summary(maps[letter], truth) for letter in "ab"}
        entry["one_property_replaced"] = _reasons(folder, Path(images), maps["a"])
        entry["half_precision_on_device"] = device != "cpu"
    path = Path(output)
    content = json.loads(path.read_text()) if path.is_file() else {}
    content[name] = {
        "command": f"python benchmarks/native_path.py --bundle BUNDLE --images IMAGES --name {name}"
        + (" --labels LABELS" if labels else "")
        + (f" --patch {','.join(map(str, patch))}" if patch else "")
        + f" --device {device}",
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "device": torch.cuda.get_device_name() if device != "cpu" else platform.machine(),
        **entry,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(json.dumps(content[name], indent=2))


def _configs() -> dict[str, str]:
    return {"a": "inference", "b": "inference_native"}


def _read(bundle: Path, config: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((bundle / "configs" / f"{config}.json").read_text())
    return content


def _copy(bundle: Path, target: Path, patch: tuple[int, ...] | None) -> Path:
    """A copy of the bundle, with windows of another size if asked."""
    shutil.copytree(bundle, target)
    if patch is not None:
        native, plans = _read(target, "inference_native"), json.loads((target / "plans.json").read_text())
        native["inferer"]["roi_size"] = list(patch)
        plans["configurations"][_read(target, "inference")["configuration"]]["patch_size"] = list(patch)
        (target / "configs" / "inference_native.json").write_text(json.dumps(native))
        (target / "plans.json").write_text(json.dumps(plans))
    return target


def _predict(bundle: Path, config: str, images: str, work: Path, device: str) -> dict[str, np.ndarray]:
    found = work / config
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(bundle / "configs" / f"{config}.json")]
    places = ["--bundle_root", str(bundle), "--dataset_dir", str(images), "--output_dir", str(found)]
    subprocess.run([*command, *places, "--device", device], check=True, stdout=subprocess.DEVNULL)
    return {path.name.removesuffix(".nii.gz"): _load(path) for path in sorted(found.glob("*.nii.gz"))}


def _load(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def _dice(one: np.ndarray, other: np.ndarray, label: int) -> float:
    a, b = one == label, other == label
    total = a.sum() + b.sum()
    return float(2 * (a & b).sum() / total) if total else 1.0


def _dice_summary(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Mean and minimum over the cases, per label."""
    names = np.unique(np.concatenate([np.unique(voxels) for voxels in expected.values()]))
    scores = {int(c): [_dice(found[case], expected[case], c) for case in expected] for c in names if c != 0}
    return {str(c): {"mean": round(float(np.mean(s)), 6), "min": round(min(s), 6)} for c, s in scores.items()}


def _agreement(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, Any]:
    different = sum(int((found[case] != expected[case]).sum()) for case in expected)
    foreground = sum(int((voxels != 0).sum()) for voxels in expected.values())
    return {
        "dice": _dice_summary(found, expected),
        "different_voxels": different,
        "foreground_voxels": foreground,
        "voxels": sum(voxels.size for voxels in expected.values()),
        "cases_without_difference": sum(np.array_equal(found[case], expected[case]) for case in expected),
    }


def _reasons(bundle: Path, images: Path, expected: dict[str, np.ndarray]) -> dict[str, Any]:
    """Agreement with (a) of nnU-Net's own steps, with each property of (b) in turn, with all, and with MONAI's own."""
    own = [each for each in NNUNET if NATIVE[each] != NNUNET[each]]
    variants = {"none": NNUNET, **{each: {**NNUNET, each: NATIVE[each]} for each in own}, "all_of_b": NATIVE}
    variants |= {f"unused_{name}": {**NNUNET, **change} for name, change in UNUSED.items()}
    predict = _predictor(bundle, images)
    found: dict[str, dict[str, np.ndarray]] = {name: {} for name in variants}
    for case in expected:
        for name, labels in predict(case, variants):
            found[name][case] = labels
    return {name: _agreement(maps, expected) for name, maps in found.items()}


def _predictor(bundle: Path, images: Path) -> Callable[..., Iterator[tuple[str, np.ndarray]]]:
    parser = ConfigParser(_read(bundle, "inference_native") | {"bundle_root": str(bundle), "device": "cpu"})
    parser.parse()
    network, preprocessing = parser.get_parsed_content("network").eval(), parser.get_parsed_content("preprocessing")
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    plans, dataset_json = PlansManager(str(bundle / "plans.json")), json.loads((bundle / "dataset.json").read_text())
    configuration = plans.get_configuration(_read(bundle, "inference")["configuration"])
    axes = parser.get_parsed_content("inferer").mirror_axes

    def predict(case: str, variants: dict[str, dict[str, str]]) -> Iterator[tuple[str, np.ndarray]]:
        files = sorted(str(path) for path in images.glob(f"{case}_[0-9][0-9][0-9][0-9]*"))
        array, _, properties = DefaultPreprocessor(verbose=False).run_case(
            files, None, plans, configuration, dataset_json
        )
        data = {"nnunet": torch.from_numpy(array), "monai": preprocessing({"image": files})["image"].as_tensor()}
        done: dict[tuple[str, str], Pieces] = {}
        for name, how in variants.items():
            key = (how["preprocessing"], how["positions"])
            if key not in done:
                done[key] = _pieces(data[key[0]], network, tuple(configuration.patch_size), axes, key[1])
            logits = _together(done[key], tuple(data[key[0]].shape[1:]), tuple(configuration.patch_size), how)
            labels = convert_predicted_logits_to_segmentation_with_correct_shape(
                logits.numpy(), plans, configuration, plans.get_label_manager(dataset_json), dict(properties)
            )
            yield name, np.asarray(labels).transpose(2, 1, 0)

    return predict


def _padding(shape: tuple[int, ...], patch: tuple[int, ...]) -> list[tuple[int, int]]:
    """Zeros before and after each axis that is shorter than the window; all of the first axis for a 2D network."""
    whole = (*shape[: len(shape) - len(patch)], *patch)
    missing = [max(size - there, 0) for size, there in zip(whole, shape, strict=True)]
    return [(each // 2, each - each // 2) for each in missing]


@torch.inference_mode()
def _pieces(
    image: torch.Tensor, network: torch.nn.Module, patch: tuple[int, ...], axes: tuple[int, ...], positions: str
) -> Pieces:
    """Each window and its logits ``(K, *S)``, of an image ``(C, *S)``; a 2D network takes the slices as a batch."""
    pads = [number for pair in _padding(tuple(image.shape[1:]), patch)[::-1] for number in pair]
    image = torch.nn.functional.pad(image, pads)
    pieces = []
    for window in _windows(tuple(image.shape[-len(patch) :]), patch, positions):
        part = image[(..., *window)]
        flat = len(patch) == 2
        logits = _mirrored(part.transpose(0, 1) if flat else part[None], network, axes)
        pieces.append((window, logits.transpose(0, 1) if flat else logits[0]))
    return pieces


def _together(pieces: Pieces, shape: tuple[int, ...], patch: tuple[int, ...], how: dict[str, str]) -> torch.Tensor:
    """Logits ``(K, *S)`` of the whole image."""
    dtype = torch.half if how["precision"] == "half" else torch.float
    if how["weights"] == "nnunet":
        weights = compute_gaussian(patch, value_scaling_factor=10, device=torch.device("cpu"), dtype=dtype)
    else:
        weights = 10 * compute_importance_map(patch, "gaussian", 0.125, dtype=torch.float).to(dtype)
    padding = _padding(shape, patch)
    padded = [size + before + after for size, (before, after) in zip(shape, padding, strict=True)]
    total = torch.zeros((len(pieces[0][1]), *padded), dtype=dtype)
    count = torch.zeros(padded, dtype=dtype)
    for window, logits in pieces:
        total[(..., *window)] += logits * weights
        count[(..., *window)] += weights
    inner = tuple(slice(before, before + size) for size, (before, _) in zip(shape, padding, strict=True))
    return (total / count)[(slice(None), *inner)]


def _windows(shape: tuple[int, ...], window: tuple[int, ...], positions: str) -> list[tuple[slice, ...]]:
    if positions == "even":
        starts = compute_steps_for_sliding_window(shape, window, 0.5)
        return [
            tuple(slice(s, s + size) for s, size in zip(start, window, strict=True))
            for start in itertools.product(*starts)
        ]
    from scripts.windows import even_overlap  # the bundle's own: its config has put it on the path

    overlap = even_overlap(shape, window, 0.5) if positions == "even_overlap" else [0.5] * len(window)
    intervals = [max(int(size * (1 - share)), 1) for size, share in zip(window, overlap, strict=True)]
    return list(dense_patch_slices(shape, window, intervals))


def _mirrored(part: torch.Tensor, network: torch.nn.Module, axes: tuple[int, ...]) -> torch.Tensor:
    flips = [[a + 2 for a in some] for n in range(len(axes) + 1) for some in itertools.combinations(axes, n)]
    total = sum(torch.flip(network(torch.flip(part, flip)), flip) for flip in flips)
    assert isinstance(total, torch.Tensor)
    return total / len(flips)


if __name__ == "__main__":
    fire.Fire(run)
