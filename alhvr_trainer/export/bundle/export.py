"""Export a trained model as a MONAI bundle: the files of ``bundle/`` with weights and facts filled in."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alhvr_trainer.errors import InputError, one_line
from alhvr_trainer.export.bundle.architecture import BundleNetwork, bundle_network
from alhvr_trainer.export.bundle.card import write_card
from alhvr_trainer.export.bundle.details import FIRST_VERSION, Details, next_changelog
from alhvr_trainer.export.bundle.metadata import EXPORTED_BY, fill_metadata
from alhvr_trainer.export.bundle.metadata import licence as licence_of
from alhvr_trainer.export.bundle.native import NATIVE_CONFIG, native_config, why_not_native
from alhvr_trainer.export.bundle.results import Measured, measured
from alhvr_trainer.export.models import (
    WEIGHTS_FILE,
    Member,
    TrainedModel,
    find_model,
    find_model_in_folder,
    model_members,
)
from alhvr_trainer.files.json_files import read_object
from alhvr_trainer.resources import bundle_folder, bundle_script
from alhvr_trainer.settings import PLANS_NAME, TRAINER_NAME

METADATA_FILE = Path("configs") / "metadata.json"


@dataclass(frozen=True)
class Export:
    """All that is known before the first file is written."""

    model: TrainedModel
    members: list[Member]
    network: BundleNetwork
    details: Details
    measured: Measured
    previous: dict[str, Any]
    """Metadata of the bundle that is replaced; empty if there is none."""

    @property
    def why_not_native(self) -> str | None:
        return why_not_native(self.model, self.network)

    @property
    def changelog(self) -> dict[str, str]:
        text = f"export of {'; '.join(map(str, self.members))} of {self.model.dataset} {self.model.configuration}"
        return next_changelog(self.previous, self.details.version, self.details.changelog, text)


def export_bundle(
    dataset: int | str | None = None,
    configuration: str | None = None,
    fold: int | str | tuple[int | str, ...] = 0,
    plans: str = PLANS_NAME,
    output: str = "bundle",
    network: str = "a",
    trainer: str = TRAINER_NAME,
    weights_file: str = WEIGHTS_FILE,
    model_folder: str | None = None,
    mirroring: bool = True,
    name: str = "",
    version: str = FIRST_VERSION,
    author: str = "",
    licence: str = "",
    data_source: str = "",
    changelog: str = "",
    evaluation: str | None = None,
) -> Path:
    """Write a trained model as a MONAI bundle that predicts what ``nnUNetv2_predict`` predicts.

    The bundle needs monai, pytorch-ignite and nnunetv2 to run, but not this package. It works for models of
    stock trainers as well (-t nnUNetTrainer -p nnUNetPlans). Its metadata and its card, docs/README.md, say what
    plans, dataset json and nnU-Net's validation of the model say, and what you add here.

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
        model_folder: nnU-Net's folder of the model, TRAINER__PLANS__CONFIGURATION with its fold_X folders, in
            place of dataset, configuration, plans and trainer; nnUNet_results need not be set.
        mirroring: the bundle mirrors at test time along the axes that the training allowed; False: not unless
            asked to (--use_mirroring True).
        name: what people see in the model zoo and in the card.
        version: of the bundle, MAJOR.MINOR.PATCH. Over a bundle with an earlier version, that one's history stays
            in the changelog; a lower version than the one there is refused.
        author: several are separated by semicolons.
        licence: terms of the data and so of the weights; default: "licence" in dataset.json.
        data_source: where the training data are from; default: "reference" in dataset.json.
        changelog: what is new in this version.
        evaluation: the metrics.json that ``alhvr evaluate`` wrote about this model; gives the metadata's
            eval_metrics in place of nnU-Net's validation.

    Returns:
        The bundle's folder.

    Raises:
        InputError: the model, a checkpoint or the network asked for does not exist, the configuration is a
            cascade's second stage, an option makes no sense, or the folder cannot be written.

    Example:
        alhvr export_bundle -d 27 -c 2d -f 0 -p ALHVRPlans -o acdc_bundle
        python -m monai.bundle run inference --config_file acdc_bundle/configs/inference.json
            --bundle_root acdc_bundle --dataset_dir IN --output_dir OUT

        alhvr export_bundle -m models/nnUNetTrainer__nnUNetPlans__2d -o heart --name 'Cardiac MR segmentation'
            --version 1.0.0 --author 'A. Doe; B. Roe' --licence 'CC BY 4.0' --changelog 'first release'
    """
    target = Path(output)
    previous = _previous_metadata(target)
    details = Details(name, version, author, licence, data_source, changelog, mirroring)
    model = _find(dataset, configuration, fold, plans, trainer, weights_file, model_folder)
    _refuse_cascade(model)
    members = model_members(model, network)
    export = Export(
        model, members, bundle_network(model, members), details, measured(model, network, evaluation), previous
    )
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".alhvr_export_", dir=target.absolute().parent) as scratch:
            part = Path(scratch) / "bundle"
            _write_bundle(part, export)
            _put_in_place(part, target, Path(scratch) / "previous")
    except (OSError, RuntimeError) as error:  # torch wraps a full disk in a RuntimeError
        raise InputError(f"cannot write {target} ({one_line(error)})") from error
    print(_summary(target, export))
    return target


def _previous_metadata(target: Path) -> dict[str, Any]:
    """Metadata of the bundle of ours that lies there; empty if the folder is new or empty.

    Raises:
        InputError: something else lies there.
    """
    if target.is_dir() and any(target.iterdir()):
        try:
            metadata = read_object(target / METADATA_FILE)
        except InputError:
            metadata = {}
        if EXPORTED_BY not in metadata:
            raise InputError(f"output {target} is not empty and no bundle of alhvr export_bundle; name another folder")
        return metadata
    if target.exists() and not target.is_dir():
        raise InputError(f"output {target} is a file; name a folder")
    return {}


def _find(
    dataset: int | str | None,
    configuration: str | None,
    fold: int | str | tuple[int | str, ...],
    plans: str,
    trainer: str,
    weights_file: str,
    model_folder: str | None,
) -> TrainedModel:
    """The model by its names or by its folder, whichever is given."""
    if model_folder is None:
        if dataset is None or configuration is None:
            raise InputError("name the model: dataset and configuration (-d 27 -c 2d), or model_folder")
        return find_model(dataset, configuration, fold, plans, trainer, weights_file)
    given = {"dataset": dataset, "configuration": configuration}
    given |= {"plans": None if plans == PLANS_NAME else plans, "trainer": None if trainer == TRAINER_NAME else trainer}
    surplus = [option for option, value in given.items() if value is not None]
    if surplus:
        raise InputError(f"model_folder names the model already; leave out {', '.join(surplus)}")
    return find_model_in_folder(model_folder, fold, weights_file)


def _refuse_cascade(model: TrainedModel) -> None:
    previous = model.configuration_manager.previous_stage_name
    if previous is not None:
        raise InputError(
            f"configuration {model.configuration} is the second stage of a cascade: it needs the predictions of "
            f"{previous}, which a bundle cannot run; export another"
        )


def _write_bundle(folder: Path, export: Export) -> None:
    shutil.copytree(bundle_folder(), folder, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    (folder / "models").mkdir()
    torch.save(export.network.weights, folder / "models" / "model.pt")
    _write_json(folder / "plans.json", export.model.plans)
    _write_json(folder / "dataset.json", export.model.dataset_json)
    _fill_config(folder / "configs" / "inference.json", export)
    _fill_native(folder / "configs" / NATIVE_CONFIG, export)

    template = read_object(folder / METADATA_FILE)
    metadata = fill_metadata(
        template, export.model, export.members, export.details, export.changelog, export.measured.metrics
    )
    _write_json(folder / METADATA_FILE, metadata)
    write_card(
        folder / "docs",
        export.model,
        export.members,
        export.details,
        metadata,
        export.measured,
        export.why_not_native,
    )
    bundle_script("checksums").write_checksums(folder)


def _fill_config(config_file: Path, export: Export) -> None:
    """What both ways to predict have in common."""
    config = read_object(config_file)
    axes = export.members[0].checkpoint.get("inference_allowed_mirroring_axes")
    config["mirror_axes"] = None if axes is None else [int(axis) for axis in axes]
    config["use_mirroring"] = export.details.mirroring
    config["network_def"] = export.network.definition
    known = {
        "num_channels": export.model.num_channels,
        "configuration": export.model.configuration,
        "num_outputs": export.model.num_outputs,
        "files_per_case": 1 if _reads_colours(export.model) else export.model.num_channels,
    }
    config.update({key: value for key, value in known.items() if key in config})
    _write_json(config_file, config)


def _reads_colours(model: TrainedModel) -> bool:
    """Whether the channels are the colours of one picture (RGB, RGBA), which nnU-Net's reader takes out of one file."""
    return model.plans["image_reader_writer"] == "NaturalImage2DIO" and model.num_channels in (3, 4)


def _fill_native(config_file: Path, export: Export) -> None:
    if export.why_not_native is not None:
        config_file.unlink()
        return
    _write_json(config_file, native_config(read_object(config_file), export.model))
    _fill_config(config_file, export)


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


def _summary(target: Path, export: Export) -> str:
    size = (target / "models" / "model.pt").stat().st_size / 2**20
    return (
        f"wrote bundle {target} {export.details.version} ({'; '.join(map(str, export.members))}; "
        f"{size:.1f} MiB of weights)\n"
        f"{_said(export)}\n"
        f"run it with:\n"
        f"  python -m monai.bundle run inference --config_file {target / 'configs' / 'inference.json'} "
        f"--bundle_root {target} --dataset_dir IN --output_dir OUT"
    )


def _said(export: Export) -> str:
    """What its metadata state as measured, and what only the one who exports could add."""
    stated = {"author": export.details.author, "licence": licence_of(export.model, export.details)}
    unsaid = [option for option, text in stated.items() if not text]
    means = ", ".join(f"{key} {value}" for key, value in export.measured.metrics.items() if key.startswith("mean_"))
    lines = [f"no configs/{NATIVE_CONFIG}: {export.why_not_native}"] if export.why_not_native else []
    lines += [f"measured: {means}" if means else f"no eval_metrics: {export.measured.missing}"]
    if unsaid:
        lines.append(f"not stated: {', '.join(unsaid)} (see alhvr export_bundle --help)")
    return "\n".join(lines)
