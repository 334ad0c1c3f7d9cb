"""The bundle's inference with MONAI's transforms alone: its config, filled in from nnU-Net's plans.

nnU-Net's arrays have axes (z, y, x), which the plans' ``transpose_forward`` then permutes; MONAI's have (x, y, z).
"""

from __future__ import annotations

import copy
from typing import Any

from alhvr_trainer.export.bundle.architecture import BundleNetwork
from alhvr_trainer.models import TrainedModel

NATIVE_CONFIG = "inference_native.json"
READERS = {
    "SimpleITKIO": False,
    "NibabelIO": False,
    "SimpleITKIOWithReorient": True,
    "NibabelIOWithReorient": True,
}
"""Readers of 3D images, and whether they turn the image to RAS."""
SCHEMES = (
    "ZScoreNormalization",
    "CTNormalization",
    "NoNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
)
RESAMPLING = "resample_data_or_seg_to_shape"
ANISOTROPY_THRESHOLD = 3
"""nnU-Net's, unless the plans have another."""

Transform = dict[str, Any]


def why_not_native(model: TrainedModel, network: BundleNetwork) -> str | None:
    """What in the plans MONAI's transforms have no counterpart of, in one line; None if there is nothing."""
    configuration = model.configuration_manager.configuration
    reader, preprocessor = model.plans["image_reader_writer"], configuration["preprocessor_name"]
    manager = model.plans.get("label_manager", "LabelManager")
    unknown = sorted(set(configuration["normalization_schemes"]) - set(SCHEMES))
    if not network.native:
        return f"the network is {network.definition['_target_']}"
    if model.configuration_manager.previous_stage_name is not None:
        return f"{model.configuration} is the second stage of a cascade"
    if reader not in READERS:
        return f"the images are read by {reader}"
    if preprocessor != "DefaultPreprocessor":
        return f"the preprocessor is {preprocessor}"
    if manager != "LabelManager":
        return f"the label manager is {manager}"
    if unknown:
        return f"the normalization is {', '.join(unknown)}"
    for what in ("data", "probabilities"):
        function, options = _resampling(configuration, what)
        if function != RESAMPLING:
            return f"the resampling of {what} is {function}"
        if options["order_z"] != 0 or options["force_separate_z"] is not None or options["is_seg"]:
            return f"the resampling of {what} has options {options}"
    if _resampling(configuration, "probabilities")[1]["order"] != 1:
        return "the logits are not resampled linearly"
    return None


def _resampling(configuration: dict[str, Any], what: str) -> tuple[str, dict[str, Any]]:
    """Name of nnU-Net's function and its options, with its defaults for those that the plans leave out."""
    defaults = {
        "is_seg": False,
        "order": 3,
        "order_z": 0,
        "force_separate_z": False,
        "separate_z_anisotropy_threshold": ANISOTROPY_THRESHOLD,
    }
    given = configuration[f"resampling_fn_{what}_kwargs"]
    return configuration[f"resampling_fn_{what}"], {**defaults, **given}


def native_config(template: dict[str, Any], model: TrainedModel) -> dict[str, Any]:
    """The template ``configs/inference_native.json`` with the transforms and windows of a model.

    Args:
        template: content of the bundle's file.
        model: one of which :func:`why_not_native` says None.
    """
    config = copy.deepcopy(template)
    config["preprocessing"]["transforms"] = _preprocessing(config["preprocessing"]["transforms"], model)
    config["inferer"].update(_windows(model))
    config["postprocessing"]["transforms"] = _postprocessing(config["postprocessing"]["transforms"], model)
    return config


def _preprocessing(template: list[Transform], model: TrainedModel) -> list[Transform]:
    configuration = model.configuration_manager.configuration
    forward = model.plans["transpose_forward"]
    # a 2D configuration keeps the distance of slices, along the first of the permuted axes
    spacing = [0.0] * (3 - len(configuration["spacing"])) + [float(size) for size in configuration["spacing"]]
    options = _resampling(configuration, "data")[1]
    changes: dict[str, list[Transform]] = {
        "NormalizeIntensityd": _normalization(model),
        "scripts.native.ResampleToSpacingd": [
            {
                "pixdim": [spacing[forward.index(2 - axis)] for axis in range(3)],
                "order": options["order"],
                "threshold": options["separate_z_anisotropy_threshold"],
            }
        ],
        "Transposed": [{"indices": [0, *(3 - axis for axis in forward)]}],
    }
    reader = model.plans["image_reader_writer"]
    if not READERS[reader]:
        changes["Orientationd"] = []
    if reader.startswith("Nibabel"):
        (load,) = (transform for transform in template if transform["_target_"] == "LoadImaged")
        changes["LoadImaged"] = [{"reader": {**load["reader"], "as_itk": False}}]
    return _changed(template, changes)


def _changed(template: list[Transform], changes: dict[str, list[Transform]]) -> list[Transform]:
    """What the changes have for a name in place of the template's: options of it, or others with their own names."""
    return [
        change if "_target_" in change else {**transform, **change}
        for transform in template
        for change in changes.get(str(transform["_target_"]), [{}])
    ]


def _normalization(model: TrainedModel) -> list[Transform]:
    """MONAI's transform where one does for all channels, else one for each channel."""
    configuration = model.configuration_manager.configuration
    schemes, masks = configuration["normalization_schemes"], configuration["use_mask_for_norm"]
    statistics = model.plans["foreground_intensity_properties_per_channel"]
    masked = [bool(mask) and scheme == "ZScoreNormalization" for scheme, mask in zip(schemes, masks, strict=True)]
    channels = [_scheme(scheme, statistics.get(str(number), {})) for number, scheme in enumerate(schemes)]
    if any(masked) or any(channel != channels[0] for channel in channels):
        return [
            {
                "_target_": "scripts.native.NormalizeChannelsd",
                "_requires_": "@scripts_found",
                "keys": "image",
                "channels": channels,
                "masked": masked,
            }
        ]
    if channels[0] is None:
        return []
    name = channels[0]["_target_"]
    wise = {} if name == "ScaleIntensityRange" else {"channel_wise": True}
    return [{"_target_": f"{name}d", "keys": "image", **wise, **{k: v for k, v in channels[0].items() if k[0] != "_"}}]


def _scheme(name: str, statistics: dict[str, float]) -> Transform | None:
    """MONAI's transform of one channel."""
    if name == "ZScoreNormalization":
        return {"_target_": "NormalizeIntensity"}
    if name == "CTNormalization":
        low, high = statistics["percentile_00_5"], statistics["percentile_99_5"]
        mean, std = statistics["mean"], max(statistics["std"], 1e-8)
        ends = {"b_min": (low - mean) / std, "b_max": (high - mean) / std}
        return {"_target_": "ScaleIntensityRange", "a_min": low, "a_max": high, **ends, "clip": True}
    if name == "RescaleTo01Normalization":
        return {"_target_": "ScaleIntensity"}
    if name == "RGBTo01Normalization":
        return {"_target_": "ScaleIntensityRange", "a_min": 0, "a_max": 255, "b_min": 0, "b_max": 1}
    return None


def _windows(model: TrainedModel) -> dict[str, Any]:
    patch = [int(size) for size in model.configuration_manager.patch_size]
    flat = len(patch) == 2
    # training had room for as many patches, and more
    changes = {"roi_size": patch, "sw_batch_size": int(model.configuration_manager.batch_size)}
    return {**changes, "_target_": "scripts.windows.MirrorSliceInferer", "spatial_dim": 0} if flat else changes


def _postprocessing(template: list[Transform], model: TrainedModel) -> list[Transform]:
    manager = model.plans_manager.get_label_manager(model.dataset_json)
    wide = max(manager.foreground_labels) > 255
    dtype = "$torch.int32" if wide else "$torch.uint8"
    labels: Transform = {"dtype": dtype}
    if manager.has_regions:
        regions = {"_target_": "scripts.native.RegionsToLabelsd", "_requires_": "@scripts_found", "keys": "pred"}
        labels = {**regions, "order": [int(label) for label in manager.regions_class_order], "dtype": dtype}
    return _changed(
        template, {"AsDiscreted": [labels], "SaveImaged": [{"output_dtype": "$np.uint16" if wide else "$np.uint8"}]}
    )
