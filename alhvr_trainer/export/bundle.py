"""Export a trained model as a MONAI bundle: the files of ``bundle/`` with weights and facts filled in."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from alhvr_trainer import __version__
from alhvr_trainer.errors import InputError, one_line
from alhvr_trainer.export.architecture import bundle_network
from alhvr_trainer.export.models import (
    WEIGHTS_FILE,
    Member,
    TrainedModel,
    find_model,
    model_members,
)
from alhvr_trainer.export.native import NATIVE_CONFIG, write_native_config
from alhvr_trainer.resources import bundle_folder
from alhvr_trainer.settings import PLANS_NAME, TRAINER_NAME

EXPORTED_BY = "exported_by"  # in metadata.json: how a bundle of ours is recognised
PAPER = (
    "Lei T. et al. Adaptive Learning of High-Value Regions for Semi-Supervised Medical Image Segmentation. ICCV 2025."
)


def export_bundle(
    dataset: int | str,
    configuration: str,
    fold: int | str | tuple[int | str, ...] = 0,
    plans: str = PLANS_NAME,
    output: str = "bundle",
    network: str = "a",
    trainer: str = TRAINER_NAME,
    weights_file: str = WEIGHTS_FILE,
) -> Path:
    """Write a trained model as a MONAI bundle that predicts what ``nnUNetv2_predict`` predicts.

    The bundle needs monai, pytorch-ignite and nnunetv2 to run, but not this package. It works for models of
    stock trainers as well (-t nnUNetTrainer -p nnUNetPlans).

    Args:
        dataset: id or name.
        configuration: e.g. 2d or 3d_fullres.
        fold: a fold, several ("0,1", an ensemble) or "all".
        plans: plans identifier.
        output: the bundle's folder. A bundle from an earlier export is replaced once the new one is complete
            (what you added to it stays); any other folder that is not empty is refused.
        network: "a", "b", or "both" (an ensemble of the two).
        trainer: trainer class that the model was trained with.
        weights_file: name of the checkpoint file in the fold's folder.

    Returns:
        The bundle's folder.

    Raises:
        InputError: the model, a checkpoint or the network asked for does not exist, the configuration is a
            cascade's second stage, or the folder cannot be written.

    Example:
        alhvr export_bundle -d 27 -c 2d -f 0 -p ALHVRPlans -o acdc_bundle
        python -m monai.bundle run inference --config_file acdc_bundle/configs/inference.json
            --bundle_root acdc_bundle --dataset_dir IN --output_dir OUT
    """
    target = Path(output)
    _refuse_foreign(target)
    model = find_model(dataset, configuration, fold, plans, trainer, weights_file)
    if model.configuration_manager.previous_stage_name is not None:
        raise InputError(
            f"configuration {configuration} is the second stage of a cascade: it needs the predictions of "
            f"{model.configuration_manager.previous_stage_name}, which a bundle cannot run; export another"
        )
    members = model_members(model, network)
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".alhvr_export_", dir=target.absolute().parent) as scratch:
            part = Path(scratch) / "bundle"
            _write_bundle(part, model, members)
            _put_in_place(part, target, Path(scratch) / "previous")
    except (OSError, RuntimeError) as error:  # torch wraps a full disk in a RuntimeError
        raise InputError(f"cannot write {target} ({one_line(error)})") from error
    print(_summary(target, members))
    return target


def _refuse_foreign(target: Path) -> None:
    if target.is_dir() and any(target.iterdir()):
        try:
            ours = EXPORTED_BY in json.loads((target / "configs" / "metadata.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            ours = False
        if not ours:
            raise InputError(f"output {target} is not empty and no bundle of alhvr export_bundle; name another folder")
    elif target.exists() and not target.is_dir():
        raise InputError(f"output {target} is a file; name a folder")


def _write_bundle(folder: Path, model: TrainedModel, members: list[Member]) -> None:
    shutil.copytree(bundle_folder(), folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "models").mkdir()
    network = bundle_network(model, members)
    torch.save(network.weights, folder / "models" / "model.pt")
    _write_json(folder / "plans.json", model.plans)
    _write_json(folder / "dataset.json", model.dataset_json)

    inference = json.loads((folder / "configs" / "inference.json").read_text(encoding="utf-8"))
    axes = members[0].checkpoint.get("inference_allowed_mirroring_axes")
    inference["configuration"] = model.configuration
    inference["network_def"] = network.definition
    inference["mirror_axes"] = None if axes is None else [int(axis) for axis in axes]
    _write_json(folder / "configs" / "inference.json", inference)
    without = write_native_config(folder, model, members, network)
    if without is not None:
        print(f"no configs/{NATIVE_CONFIG}: {without}, which MONAI's transforms cannot express")

    metadata = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
    metadata.update(_metadata(model, members, metadata))
    _write_json(folder / "configs" / "metadata.json", metadata)
    readme = folder / "docs" / "README.md"
    text = readme.read_text(encoding="utf-8").replace("<!-- model -->", _facts(model, members))
    readme.write_text(text, encoding="utf-8")


def _metadata(model: TrainedModel, members: list[Member], template: dict[str, Any]) -> dict[str, Any]:
    channels, labels, outputs = _channels(model), _labels(model), _outputs(model)
    label_text = ", ".join(f"{value} is {name}" for name, value in labels.items())
    foreground = [name for name in labels if name not in ("background", "ignore")]
    semi_supervised = model.trainer.startswith(TRAINER_NAME)
    method = "trained with ALHVR on labelled and unlabelled images" if semi_supervised else "nnU-Net"
    patch = [int(size) for size in model.configuration_manager.patch_size]
    ct = any(scheme == "CTNormalization" for scheme in model.configuration_manager.normalization_schemes)
    image, pred = (
        {**template["network_data_format"][side][key], "spatial_shape": patch}
        for side, key in (("inputs", "image"), ("outputs", "pred"))
    )
    image.update(num_channels=len(channels), channel_def=channels, modality=", ".join(channels.values()))
    image["format"] = "hounsfield" if ct else "magnitude"
    pred.update(num_channels=len(outputs), channel_def=outputs)
    return {
        "monai_version": version("monai"),
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {
            name: _installed(name, least) for name, least in template["required_packages_version"].items()
        },
        "name": f"{model.dataset} {model.configuration}",
        "task": f"Segmentation of {', '.join(foreground)}",
        "description": f"nnU-Net {model.configuration} model of {model.dataset}, {method}",
        "copyright": str(model.dataset_json.get("licence") or model.dataset_json.get("license") or ""),
        "data_source": str(model.dataset_json.get("reference") or model.dataset),
        "data_type": str(model.plans["image_reader_writer"]),
        "image_classes": f"{len(channels)} channels: {', '.join(channels.values())}",
        "label_classes": f"label map: {label_text}",
        "pred_classes": f"logits of {len(outputs)} channels: {', '.join(outputs.values())}",
        "references": [PAPER, *template["references"]] if semi_supervised else template["references"],
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
        "nnunet": {
            "dataset": model.dataset,
            "configuration": model.configuration,
            "trainer": model.trainer,
            "plans": model.plans_name,
            "networks": [str(member) for member in members],
        },
        EXPORTED_BY: f"alhvr-trainer {__version__}",
    }


def _installed(package: str, fallback: str) -> str:
    try:
        return version(package)
    except ModuleNotFoundError:
        return fallback


def _channels(model: TrainedModel) -> dict[str, str]:
    names = model.dataset_json.get("channel_names") or model.dataset_json["modality"]
    return {str(number): str(name) for number, name in names.items()}


def _labels(model: TrainedModel) -> dict[str, Any]:
    return dict(model.dataset_json["labels"])


def _outputs(model: TrainedModel) -> dict[str, str]:
    """Names of the network's output channels: labels, or regions without the background."""
    manager = model.plans_manager.get_label_manager(model.dataset_json)
    names = [name for name in _labels(model) if name != "ignore"]
    if manager.has_regions:
        names = [name for name in names if name != "background"]
    else:
        names.sort(key=lambda name: int(_labels(model)[name]))
    return {str(number): name for number, name in enumerate(names)}


def _facts(model: TrainedModel, members: list[Member]) -> str:
    channels = "; ".join(f"`_{int(number):04d}` {name}" for number, name in _channels(model).items())
    labels = "; ".join(f"{value} {name}" for name, value in _labels(model).items())
    rows = {
        "trained on": f"{model.dataset}, by `{model.trainer}`",
        "configuration": f"`{model.configuration}` of `{model.plans_name}`",
        "networks": "; ".join(map(str, members)),
        "channels": channels,
        "labels": labels,
        "file ending": f"`{model.dataset_json['file_ending']}`",
    }
    lines = [f"| {key} | {value} |" for key, value in rows.items()]
    return "\n".join(["| this model | |", "|---|---|", *lines])


def _put_in_place(part: Path, target: Path, previous: Path) -> None:
    """Swap the complete bundle in; what the user added beside our own entries goes over into the new one."""
    if target.is_dir():
        os.replace(target, previous)
    os.replace(part, target)
    if previous.is_dir():
        for entry in previous.iterdir():
            if not (target / entry.name).exists():
                shutil.move(entry, target / entry.name)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


def _summary(target: Path, members: list[Member]) -> str:
    size = (target / "models" / "model.pt").stat().st_size / 2**20
    return (
        f"wrote bundle {target} ({'; '.join(map(str, members))}; {size:.1f} MiB of weights)\n"
        f"run it with:\n"
        f"  python -m monai.bundle run inference --config_file {target / 'configs' / 'inference.json'} "
        f"--bundle_root {target} --dataset_dir IN --output_dir OUT"
    )
