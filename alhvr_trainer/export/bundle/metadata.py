"""``configs/metadata.json`` of a bundle: the template filled in with what is known of the model."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from alhvr_trainer import __version__
from alhvr_trainer.config.methods import semi_supervised_method_of
from alhvr_trainer.export.bundle import facts
from alhvr_trainer.export.bundle.details import Details
from alhvr_trainer.models import Member, TrainedModel

NATIVE_PACKAGES = "native_packages_version"
EXPORTED_BY = "exported_by"
"""Key in metadata.json: how a bundle of ours is recognized."""
NOT_STATED = "not stated"


def fill_metadata(
    template: dict[str, Any],
    model: TrainedModel,
    members: list[Member],
    details: Details,
    changelog: dict[str, str],
    metrics: dict[str, float],
) -> dict[str, Any]:
    """The metadata of a bundle.

    Args:
        template: content of the shipped ``metadata.json``: the schema, and what is the same in every bundle.
        model: whose folder is exported.
        members: its exported networks.
        details: given by the exporting user.
        changelog: version -> entry, with that of ``details.version``.
        metrics: what was measured; empty if nothing was.

    Returns:
        A new object with the template's keys, in its order, and ours after them.
    """
    paper = semi_supervised_method_of(model.trainer)
    trained = f" trained with {paper.name} on labeled and unlabeled images" if paper else ""
    classes = ", ".join(facts.foreground(model))
    filled = {
        "version": details.version,
        "changelog": changelog,
        "monai_version": release("monai"),
        "pytorch_version": release("torch"),
        "numpy_version": release("numpy"),
        **_packages(template, model),
        "name": details.name or f"{model.dataset} {model.configuration}",
        "task": f"Segmentation of {classes}",
        "description": f"Segments {classes} in {facts.modality(model)} images: nnU-Net model{trained}, "
        f"configuration {model.configuration}, data set {model.dataset}",
        "authors": ", ".join(details.authors) or NOT_STATED,
        "copyright": data_license(model, details) or NOT_STATED,
        "data_source": data_source(model, details),
        "data_type": facts.data_format(model),
        **_classes(model),
        "eval_metrics": metrics,
        "references": [*([paper.reference] if paper else []), *template["references"]],
        "network_data_format": _network_data_format(template["network_data_format"], model),
        "nnunet": {
            "dataset": model.dataset,
            "configuration": model.configuration,
            "trainer": model.trainer,
            "plans": model.plans_name,
            "networks": [str(member) for member in members],
        },
        EXPORTED_BY: f"alhvr-trainer {__version__}",
    }
    return {**template, **filled}


def data_license(model: TrainedModel, details: Details) -> str:
    """Terms of the data and thus of the weights: as given, else as in dataset.json, else empty."""
    return details.license or _text(model, "licence", "license")


def data_source(model: TrainedModel, details: Details) -> str:
    """Where the training data come from: as given, else as in dataset.json, else the dataset's name."""
    return details.data_source or _text(model, "reference") or model.dataset


def _text(model: TrainedModel, *keys: str) -> str:
    """The first of the keys of dataset.json that holds text, as one line."""
    found = [value for key in keys if isinstance(value := model.dataset_json.get(key), str) and value.strip()]
    return " ".join(found[0].split()) if found else ""


def _packages(template: dict[str, Any], model: TrainedModel) -> dict[str, dict[str, str]]:
    """What configs/inference.json cannot run without, and what configs/inference_native.json needs in its place.

    Releases are exact, for the model zoo installs precisely these. MONAI's own key for further packages,
    "optional_packages_version", is no more: MONAI takes it for the required ones and forgets those.
    """
    required, native = (dict(template[key]) for key in ("required_packages_version", NATIVE_PACKAGES))
    if "Nibabel" in str(model.plans["image_reader_writer"]):
        required["nibabel"] = native["nibabel"]
    return {
        key: {name: release(name, otherwise) for name, otherwise in packages.items()}
        for key, packages in (("required_packages_version", required), (NATIVE_PACKAGES, native))
    }


def release(package: str, otherwise: str = "") -> str:
    """Version of an installed package without its build, which no registry has; ``otherwise`` if it is not here."""
    try:
        return version(package).split("+")[0]
    except PackageNotFoundError:
        return otherwise


def _classes(model: TrainedModel) -> dict[str, str]:
    channels, outputs = facts.channels(model), facts.network_channels(model)
    labels = ", ".join(f"{value} is {name}" for name, value in facts.labels(model).items())
    kind = "regions, which may overlap" if facts.has_regions(model) else "classes"
    return {
        "image_classes": f"{len(channels)} channel{'s' if len(channels) > 1 else ''}: {', '.join(channels.values())}",
        "label_classes": f"label map: {labels}",
        "pred_classes": f"logits of {len(outputs)} {kind}: {', '.join(outputs.values())}",
    }


def _network_data_format(template: dict[str, Any], model: TrainedModel) -> dict[str, Any]:
    """What goes into the network and comes out.

    ``channel_def`` of the output names the values of the written label map: so MONAI Label reads it, and so the
    bundle specification defines the format "segmentation". For labels these are the network's channels as well;
    for regions they differ, and ``network_channels`` names the latter.
    """
    patch = [int(size) for size in model.configuration_manager.patch_size]
    channels, outputs = facts.channels(model), facts.network_channels(model)
    image = {
        **template["inputs"]["image"],
        "format": "hounsfield" if facts.is_ct(model) else "magnitude",
        "modality": facts.modality(model),
        "num_channels": len(channels),
        "spatial_shape": patch,
        "value_range": facts.value_range(model),
        "channel_def": channels,
        "normalization": facts.normalization(model),
    }
    pred = {
        **template["outputs"]["pred"],
        "num_channels": len(outputs),
        "spatial_shape": patch,
        "channel_def": facts.written_labels(model),
        "network_channels": outputs,
    }
    return {"inputs": {"image": image}, "outputs": {"pred": pred}}
