"""``docs/`` of a bundle: the card for people (README.md) with its plots, and the terms of the data."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from alhvr_trainer.config.files import is_whole
from alhvr_trainer.config.methods import semi_supervised_method_of
from alhvr_trainer.config.names import SETTINGS_KEY
from alhvr_trainer.export.bundle import facts
from alhvr_trainer.export.bundle.details import Details
from alhvr_trainer.export.bundle.metadata import NOT_STATED, data_source, licence
from alhvr_trainer.export.bundle.plots import copy_training_plots, plot_dice
from alhvr_trainer.export.bundle.results import KEYS, Measured, Results, Spread
from alhvr_trainer.models import Member, TrainedModel

PLACEHOLDER = re.compile(r"<!-- (\w+): [^>]* -->\n?", re.DOTALL)
"""``<!-- key: what will stand here -->`` in the template."""
DATA_LICENCE = "data_license.txt"
_SEMI_SUPERVISED = (
    "The model was trained with {method} [1], which learns from labeled and unlabeled images. {summary} "
    "Preprocessing, augmentation and prediction are nnU-Net's [2]."
)
_NNUNET = (
    "The model was trained with nnU-Net [1], which plans preprocessing, network and training from the properties of "
    "the data set. Loss, augmentation and optimizer are those of the trainer `{trainer}`."
)

NATIVE_COMMAND = (
    "python -m monai.bundle run --config_file configs/inference_native.json --dataset_dir IN --output_dir OUT"
)


def write_card(
    docs: Path,
    model: TrainedModel,
    members: list[Member],
    details: Details,
    metadata: dict[str, Any],
    measured: Measured,
    why_not_native: str | None = None,
) -> None:
    """Fill in ``docs/README.md``, and write what belongs beside it: plots, and ``data_license.txt`` if terms are known.

    Args:
        docs: the bundle's folder ``docs`` with the template.
        model: whose folder is exported.
        members: its exported networks.
        details: what the one who exports says.
        metadata: content of the bundle's metadata.json, which the card repeats.
        measured: results to show.
        why_not_native: why the bundle lacks configs/inference_native.json; None if it has it.
    """
    plots = [plot_dice(results, docs / _plot_name(results)) for results in measured.results]
    plots += copy_training_plots(model, docs)
    terms = licence(model, details)
    sections = {
        "source": "",
        "overview": _overview(model, members, details, metadata),
        "data": _data(model, details),
        "method": _method(model),
        "training": _training(model, members),
        "input": _input(model),
        "output": _output(model),
        "performance": _performance(measured, details, [plot.name for plot in plots if plot]),
        "native": _native(why_not_native),
        "references": _references(metadata["references"]),
        "licence": _licence(terms),
    }
    readme = docs / "README.md"
    template = readme.read_text(encoding="utf-8")
    filled = PLACEHOLDER.sub(lambda found: f"{sections[found[1]]}\n" if sections[found[1]] else "", template)
    readme.write_text(filled, encoding="utf-8")
    if terms or data_source(model, details) != model.dataset:
        text = f"Training data: {data_source(model, details)}\nLicence: {terms or NOT_STATED}\n"
        (docs / DATA_LICENCE).write_text(text, encoding="utf-8")


def _native(why_not: str | None) -> str:
    if why_not is not None:
        return f"Not with this model: {why_not}, which MONAI's transforms or the bundle's own networks cannot express."
    return f"```bash\n{NATIVE_COMMAND}\n```"


def _plot_name(results: Results) -> str:
    return "validation_dice.png" if "validation" in results.title else "evaluation_dice.png"


def _overview(model: TrainedModel, members: list[Member], details: Details, metadata: dict[str, Any]) -> str:
    dimensions = len(model.configuration_manager.patch_size)
    seen = "slice by slice (2D)" if dimensions == 2 else "in 3D"
    rows = {
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
    classes = _text(", ".join(facts.foreground(model)))
    text = f"**{_text(metadata['name'])}** segments {classes} in {_text(facts.modality(model))} images, {seen}."
    return f"{text}\n\n{_table('this model', '', rows)}"


def _mirroring(members: list[Member], details: Details) -> str:
    axes = members[0].checkpoint.get("inference_allowed_mirroring_axes")
    if not axes:
        return "none, as in the training"
    allowed = f"axes {', '.join(str(int(axis)) for axis in axes)}, as in the training"
    return allowed if details.mirroring else f"off; `--use_mirroring True` mirrors {allowed}"


def _data(model: TrainedModel, details: Details) -> str:
    known = model.dataset_json
    number = known.get("numTraining")
    rows = {
        "data set": known.get("name") or model.dataset,
        "description": known.get("description"),
        "images": f"{facts.modality(model)}, {facts.data_format(model)}",
        "labeled cases in the data set": number if is_whole(number, 1, 10**9) else None,
        "source": data_source(model, details),
        "licence": licence(model, details) or NOT_STATED,
    }
    text = _table("training data", "", {key: value for key, value in rows.items() if value})
    if semi_supervised_method_of(model.trainer):
        text += "\n\nThe model learnt from unlabeled images as well; some of the labels may have been hidden from it."
    return text


def _method(model: TrainedModel) -> str:
    manager = model.configuration_manager
    options: dict[str, Any] = manager.network_arch_init_kwargs
    sizes = options.get("features_per_stage")
    features = f" with {', '.join(map(str, sizes))} features per stage" if isinstance(sizes, list) else ""
    paper = semi_supervised_method_of(model.trainer)
    if paper:
        text = _SEMI_SUPERVISED.format(method=f"{paper.name} ({paper.long_name})", summary=paper.summary)
    else:
        text = _NNUNET.format(trainer=model.trainer)
    return f"{text}\n\nThe network is a `{manager.network_arch_class_name.rsplit('.', 1)[-1]}`{features}."


def _training(model: TrainedModel, members: list[Member]) -> str:
    manager = model.configuration_manager
    settings = manager.configuration.get(SETTINGS_KEY)
    epochs = dict.fromkeys(
        f"fold {member.fold}: {done}"
        for member in members
        if is_whole(done := member.checkpoint.get("current_epoch"), 1, 10**9)
    )
    rows = {
        "trainer, plans": f"`{model.trainer}`, `{model.plans_name}`",
        "patch (voxels)": _by(manager.patch_size),
        "batch": f"{manager.batch_size} samples",
        "spacing (mm)": _by(f"{float(size):.4g}" for size in manager.spacing),
        "normalization": "; ".join(
            f"{facts.channels(model)[number]}: {text}" for number, text in facts.normalization(model).items()
        ),
        "weights": f"`{model.weights_file}`: {'; '.join(map(str, members))}",
        "epochs": ", ".join(epochs) or None,
        "`alhvr` in the plans": f"`{json.dumps(settings)}`" if settings else None,
    }
    text = (
        f"Patch and spacing are in the axis order of the plans, `transpose_forward` {model.plans['transpose_forward']}."
    )
    return _table("training", "", {key: value for key, value in rows.items() if value}) + f"\n\n{text}"


def _by(sizes: Any) -> str:
    return " × ".join(map(str, sizes))


def _input(model: TrainedModel) -> str:
    channels = facts.channels(model)
    rows = {f"`_{int(number):04d}`": name for number, name in channels.items()}
    count = "One channel" if len(channels) == 1 else f"{len(channels)} channels, one file each"
    text = f"{count}, all of one case on the same grid. The network gets them resampled and normalized as above."
    return f"{text}\n\n{_table('file', 'channel', rows)}"


def _output(model: TrainedModel) -> str:
    """What the values mean; a region's value is not its name alone."""
    meanings, channels = facts.written_labels(model), facts.network_channels(model)
    text = f"A label map on the grid of the image.\n\n{_table('value', 'meaning', meanings)}"
    if not facts.has_regions(model):
        return f"{text}\n\nThe network's channels are the logits of these values."
    regions = {name: ", ".join(map(str, sorted(values))) for name, values in facts.foreground(model).items()}
    return (
        f"{text}\n\nThe network puts out {len(channels)} regions that may overlap, each by a sigmoid: "
        f"{_text(', '.join(channels.values()))}. They are written one over the other. MONAI Label and other viewers "
        "know one value per label, so they show the values above; a whole region is all of its values together:\n\n"
        + _table("region", "values", regions)
    )


def _performance(measured: Measured, details: Details, plots: list[str]) -> str:
    parts = [_results(results, details) for results in measured.results]
    if measured.missing:
        parts.append(measured.missing)
    if not measured.results:
        parts.append("So no performance can be stated here: measure it with the command under *Evaluate*.")
    alts = {
        "validation": "Dice of each validation case",
        "evaluation": "Dice of each case",
        "training": "Training curves",
    }
    parts += [f"![{alts[plot.split('_')[0]]}]({plot})" for plot in plots]
    return "\n\n".join(parts)


def _results(results: Results, details: Details) -> str:
    metrics = [metric for metric in KEYS if metric in results.overall]
    units = {metric: f" ({results.unit})" for metric in KEYS} | {"Dice": "", "Jaccard": " (IoU)"}
    lines = ["| class | " + " | ".join(metric + units.get(metric, "") for metric in metrics) + " | cases |"]
    lines.append("|---" * (len(metrics) + 2) + "|")
    for name, spreads in results.classes.items():
        cells = [_cell(spreads.get(metric)) for metric in metrics]
        cases = max((spread.n for spread in spreads.values()), default=0)
        lines.append(f"| {_text(name)} | {' | '.join(cells)} | {cases} |")
    lines.append("| mean | " + " | ".join(f"{results.overall[metric]:.3f}" for metric in metrics) + " | |")
    off = "" if details.mirroring else " This bundle's default, no mirroring, was not measured by it."
    return "\n".join([f"#### {results.title}", "", results.summary + off, "", *lines])


def _cell(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    return f"{spread.mean:.3f}" if spread.sd is None else f"{spread.mean:.3f} ± {spread.sd:.3f}"


def _references(references: list[str]) -> str:
    return "\n\n".join(f"[{number}] {_text(reference)}" for number, reference in enumerate(references, 1))


def _licence(terms: str) -> str:
    if not terms:
        return "The weights are subject to the terms of the data that they were trained on, which are not stated."
    return f"The weights are subject to the terms of the data that they were trained on: {_text(terms)}."


def _table(first: str, second: str, rows: dict[str, Any]) -> str:
    lines = [f"| {_text(key)} | {_text(value)} |" for key, value in rows.items()]
    return "\n".join([f"| {first} | {second} |", "|---|---|", *lines])


def _text(value: Any) -> str:
    """A value from a file as one cell of a table: no line break, no bar, no markup that would swallow text."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")
