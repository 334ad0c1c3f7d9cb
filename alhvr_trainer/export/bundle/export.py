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

from alhvr_trainer.bundle.scripts.checksums import write_checksums
from alhvr_trainer.config.files import read_object
from alhvr_trainer.config.plans import planned_proportion
from alhvr_trainer.errors import InputError, one_line
from alhvr_trainer.export.bundle.architecture import BundleNetwork, bundle_network
from alhvr_trainer.export.bundle.card import write_card
from alhvr_trainer.export.bundle.details import Details, next_changelog
from alhvr_trainer.export.bundle.metadata import EXPORTED_BY, data_license, fill_metadata
from alhvr_trainer.export.bundle.native_config import NATIVE_CONFIG, native_config, why_not_native
from alhvr_trainer.export.bundle.results import Measured, measured
from alhvr_trainer.models import Member, TrainedModel, model_members, model_named
from alhvr_trainer.resources import bundle_folder

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
    def threshold_proportion(self) -> float | None:
        """ALHVR's beta, where the bundle can map its regions: by networks a and b of one fold, of exclusive classes."""
        regions = self.model.plans_manager.get_label_manager(self.model.dataset_json).has_regions
        if regions or [member.network for member in self.members] != ["a", "b"]:
            return None
        return planned_proportion(self.model.configuration_manager.configuration)

    @property
    def changelog(self) -> dict[str, str]:
        text = f"export of {'; '.join(map(str, self.members))} of {self.model.dataset} {self.model.configuration}"
        return next_changelog(self.previous, self.details.version, self.details.changelog, text)


def export(
    dataset: int | str | None,
    configuration: str | None,
    fold: int | str | tuple[int | str, ...],
    plans: str | None,
    output: str,
    network: str,
    trainer: str,
    weights_file: str,
    model_folder: str | None,
    details: Details,
    evaluation: str | None,
) -> Path:
    """What :func:`alhvr_trainer.export_bundle` does."""
    target = Path(output)
    previous = _previous_metadata(target)
    model = model_named(dataset, configuration, fold, plans, trainer, weights_file, model_folder)
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
    """Metadata of an earlier bundle of ours in the folder; empty if the folder is new or empty.

    Raises:
        InputError: the folder contains something else.
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


def _refuse_cascade(model: TrainedModel) -> None:
    previous = model.configuration_manager.previous_stage_name
    if previous is not None:
        raise InputError(
            f"configuration {model.configuration} is the second stage of a cascade: it needs the predictions of "
            f"{previous}, which a bundle cannot run; export another"
        )


def _write_bundle(folder: Path, export: Export) -> None:
    shutil.copytree(bundle_folder(), folder, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    (folder / "__init__.py").unlink()  # belongs to this package, not to bundles
    (folder / "models").mkdir()
    torch.save(export.network.weights, folder / "models" / "model.pt")
    _write_json(folder / "plans.json", export.model.plans)
    _write_json(folder / "dataset.json", export.model.dataset_json)
    _fill_config(folder / "configs" / "inference.json", export)
    native = folder / "configs" / NATIVE_CONFIG
    if export.why_not_native is None:
        _write_json(native, native_config(read_object(native), export.model))
        _fill_config(native, export)
    else:
        native.unlink()

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
    write_checksums(folder)


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
        "threshold_proportion": export.threshold_proportion,
        "files_per_case": 1 if _reads_colors(export.model) else export.model.num_channels,
    }
    config.update({key: value for key, value in known.items() if key in config})
    _write_json(config_file, config)


def _reads_colors(model: TrainedModel) -> bool:
    """Whether the channels are the colors of one picture (RGB, RGBA), which nnU-Net's reader takes out of one file."""
    return model.plans["image_reader_writer"] == "NaturalImage2DIO" and model.num_channels in (3, 4)


def _put_in_place(part: Path, target: Path, previous: Path) -> None:
    """Put the complete bundle in place; files that the user added to the old one are moved into it."""
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
    """What was written, what its metadata report as measured, and what only the exporting user could add."""
    size = (target / "models" / "model.pt").stat().st_size / 2**20
    members = "; ".join(map(str, export.members))
    lines = [f"wrote bundle {target} {export.details.version} ({members}; {size:.1f} MiB of weights)"]
    if export.why_not_native:
        lines.append(f"no configs/{NATIVE_CONFIG}: {export.why_not_native}")
    means = ", ".join(f"{key} {value}" for key, value in export.measured.metrics.items() if key.startswith("mean_"))
    lines.append(f"measured: {means}" if means else f"no eval_metrics: {export.measured.missing}")
    stated = {"author": export.details.author, "license": data_license(export.model, export.details)}
    unsaid = [option for option, text in stated.items() if not text]
    if unsaid:
        lines.append(f"not stated: {', '.join(unsaid)} (see alhvr export_bundle --help)")
    return "\n".join(lines)
