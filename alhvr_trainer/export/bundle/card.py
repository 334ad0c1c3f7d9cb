"""``docs/`` of a bundle: the card (README.md, a jinja2 template) with its plots, and the terms of the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from alhvr_trainer.config.files import is_whole
from alhvr_trainer.config.methods import semi_supervised_method_of
from alhvr_trainer.config.names import SETTINGS_KEY
from alhvr_trainer.export.bundle import facts
from alhvr_trainer.export.bundle.card_plots import copy_training_plots, plot_dice
from alhvr_trainer.export.bundle.details import Details
from alhvr_trainer.export.bundle.metadata import NOT_STATED, data_license, data_source
from alhvr_trainer.export.bundle.results import Measured, Results
from alhvr_trainer.models import Member, TrainedModel

DATA_LICENSE = "data_license.txt"
_PLOTS = {
    "validation": "Dice of each validation case",
    "evaluation": "Dice of each case",
    "training": "Training curves",
}


def write_card(
    docs: Path,
    model: TrainedModel,
    members: list[Member],
    details: Details,
    metadata: dict[str, Any],
    measured: Measured,
    why_not_native: str | None = None,
) -> None:
    """Fill in ``docs/README.md``, and write the plots, and ``data_license.txt`` if terms are known.

    Args:
        docs: the bundle's folder ``docs`` with the template.
        model: whose folder is exported.
        members: its exported networks.
        details: given by the exporting user.
        metadata: content of the bundle's metadata.json, which the card repeats.
        measured: results to show.
        why_not_native: why the bundle lacks configs/inference_native.json; None if it has it.
    """
    plots = [plot_dice(results, docs / _plot_name(results)) for results in measured.results]
    names = [plot.name for plot in (*plots, *copy_training_plots(model, docs)) if plot]
    terms, source = data_license(model, details), data_source(model, details)
    readme = docs / "README.md"
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["cell"] = _cell
    card = environment.from_string(readme.read_text(encoding="utf-8")).render(
        metadata=metadata,
        measured=measured,
        why_not_native=why_not_native,
        terms=terms,
        mirroring=details.mirroring,
        plots={name: _PLOTS[name.split("_")[0]] for name in names},
        unit=_unit,
        overview=_overview(model, members, details, metadata),
        data=_data(model, details),
        training=_training(model, members),
        trainer=model.trainer,
        paper=semi_supervised_method_of(model.trainer),
        **_facts(model),
    )
    readme.write_text(card, encoding="utf-8")
    if terms or source != model.dataset:
        text = f"Training data: {source}\nLicense: {terms or NOT_STATED}\n"
        (docs / DATA_LICENSE).write_text(text, encoding="utf-8")


def _plot_name(results: Results) -> str:
    return "validation_dice.png" if "validation" in results.title else "evaluation_dice.png"


def _unit(metric: str, of_distances: str) -> str:
    return {"Dice": "", "Jaccard": " (IoU)"}.get(metric, f" ({of_distances})")


def _facts(model: TrainedModel) -> dict[str, Any]:
    manager, classes = model.configuration_manager, facts.foreground(model)
    regions = {name: ", ".join(map(str, sorted(values))) for name, values in classes.items()}
    sizes = manager.network_arch_init_kwargs.get("features_per_stage")
    return {
        "classes": list(classes),
        "modality": facts.modality(model),
        "dimensions": len(manager.patch_size),
        "network": manager.network_arch_class_name.rsplit(".", 1)[-1],
        "features": sizes if isinstance(sizes, list) else [],
        "transpose": model.plans["transpose_forward"],
        "channels": {f"`_{int(number):04d}`": name for number, name in facts.channels(model).items()},
        "written_labels": facts.written_labels(model),
        "outputs": list(facts.network_channels(model).values()),
        "regions": regions if facts.has_regions(model) else {},
    }


def _overview(model: TrainedModel, members: list[Member], details: Details, metadata: dict[str, Any]) -> dict[str, Any]:
    return {
        "trained on": f"{model.dataset}, by `{model.trainer}`",
        "configuration": f"`{model.configuration}` of `{model.plans_name}`",
        "networks": "; ".join(map(str, members)),
        "channels": "; ".join(f"`_{int(number):04d}` {channel}" for number, channel in facts.channels(model).items()),
        "labels": "; ".join(f"{value} {label}" for label, value in facts.labels(model).items()),
        "file ending": f"`{model.dataset_json['file_ending']}`",
        "mirroring at test time": _mirroring(members, details),
        "version": metadata["version"],
        "authors": metadata["authors"],
    }


def _mirroring(members: list[Member], details: Details) -> str:
    axes = members[0].checkpoint.get("inference_allowed_mirroring_axes")
    if not axes:
        return "none, as in the training"
    allowed = f"axes {', '.join(str(int(axis)) for axis in axes)}, as in the training"
    return allowed if details.mirroring else f"off; `--use_mirroring True` mirrors {allowed}"


def _data(model: TrainedModel, details: Details) -> dict[str, Any]:
    known = model.dataset_json
    number = known.get("numTraining")
    rows = {
        "data set": known.get("name") or model.dataset,
        "description": known.get("description"),
        "images": f"{facts.modality(model)}, {facts.data_format(model)}",
        "labeled cases in the data set": number if is_whole(number, 1, 10**9) else None,
        "source": data_source(model, details),
        "license": data_license(model, details) or NOT_STATED,
    }
    return {key: value for key, value in rows.items() if value}


def _training(model: TrainedModel, members: list[Member]) -> dict[str, Any]:
    manager, channels = model.configuration_manager, facts.channels(model)
    settings = manager.configuration.get(SETTINGS_KEY)
    epochs = dict.fromkeys(
        f"fold {member.fold}: {done}"
        for member in members
        if is_whole(done := member.checkpoint.get("current_epoch"), 1, 10**9)
    )
    rows = {
        "trainer, plans": f"`{model.trainer}`, `{model.plans_name}`",
        "patch (voxels)": " × ".join(map(str, manager.patch_size)),
        "batch": f"{manager.batch_size} samples",
        "spacing (mm)": " × ".join(f"{float(size):.4g}" for size in manager.spacing),
        "normalization": "; ".join(f"{channels[n]}: {text}" for n, text in facts.normalization(model).items()),
        "weights": f"`{model.weights_file}`: {'; '.join(map(str, members))}",
        "epochs": ", ".join(epochs) or None,
        "`alhvr` in the plans": f"`{json.dumps(settings)}`" if settings else None,
    }
    return {key: value for key, value in rows.items() if value}


def _cell(value: Any) -> str:
    """A value from a file as one cell of a table: no line break, no bar, no markup that would swallow text."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")
