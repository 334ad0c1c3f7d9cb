"""Facts of a trained model that its metadata and its card state alike; all read from plans and dataset json."""

from __future__ import annotations

from typing import Any

from alhvr_trainer.config.dataset_json import channel_names
from alhvr_trainer.models import TrainedModel

_FORMATS = {
    ".nii.gz": "NIfTI",
    ".nii": "NIfTI",
    ".nrrd": "NRRD",
    ".mha": "MetaImage",
    ".mhd": "MetaImage",
    ".png": "PNG",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
_SCHEMES = {
    "ZScoreNormalization": "z-score of each image: mean 0, standard deviation 1, no bounds",
    "NoNormalization": "none: intensities as they are",
    "RescaleTo01Normalization": "each image rescaled from its minimum and maximum to 0 and 1",
    "RGBTo01Normalization": "divided by 255",
}


def channels(model: TrainedModel) -> dict[str, str]:
    """Number of each input channel -> its name."""
    return {str(number): name for number, name in enumerate(channel_names(model.dataset_json))}


def labels(model: TrainedModel) -> dict[str, Any]:
    """Name -> value, or values of a region, as in ``dataset.json``."""
    return dict(model.dataset_json["labels"])


def foreground(model: TrainedModel) -> dict[str, frozenset[int]]:
    """Name -> values of each class that is neither background nor ignored."""
    sets = {name: frozenset(_values(value)) for name, value in labels(model).items() if name != "ignore"}
    return {name: values for name, values in sets.items() if values != {0}}


def _values(value: Any) -> list[int]:
    return value if isinstance(value, list) else [value]


def has_regions(model: TrainedModel) -> bool:
    return bool(model.plans_manager.get_label_manager(model.dataset_json).has_regions)


def network_channels(model: TrainedModel) -> dict[str, str]:
    """Number of each channel that the network puts out -> its name: labels, or regions without the background."""
    if has_regions(model):
        names = list(foreground(model))
    else:
        numbered = {name: value for name, value in labels(model).items() if name != "ignore"}
        names = sorted(numbered, key=lambda name: _values(numbered[name])[0])
    return {str(number): name for number, name in enumerate(names)}


def written_labels(model: TrainedModel) -> dict[str, str]:
    """Value in the written label maps -> what it means, for MONAI Label and viewers.

    Labels: their names. Regions are written one over the other, each as its value in ``regions_class_order``:
    a value then means its region without those written later that overlap it.

    Example:
        >>> written_labels(model)     # doctest: +SKIP
        {'0': 'background', '1': 'whole without core', '2': 'core'}
    """
    if not has_regions(model):
        return network_channels(model)
    regions = foreground(model)
    names, order = list(regions), model.dataset_json["regions_class_order"]
    meanings: dict[str, str] = {"0": "background"}
    for number, (name, value) in enumerate(zip(names, order, strict=True)):
        over = [later for later in names[number + 1 :] if regions[later] & regions[name]]
        meaning = f"{name} without {' and '.join(over)}" if over else name
        before = meanings.get(str(value))
        meanings[str(value)] = f"{before} or {meaning}" if before else meaning
    return meanings


def modality(model: TrainedModel) -> str:
    """The channels' names, each once."""
    return ", ".join(dict.fromkeys(channels(model).values()))


def data_format(model: TrainedModel) -> str:
    """Name of the file format of the training data."""
    ending = str(model.dataset_json["file_ending"])
    return f"{_FORMATS[ending]} ({ending})" if ending in _FORMATS else ending


def is_ct(model: TrainedModel) -> bool:
    """Whether all channels are normalized as Hounsfield units are."""
    return set(model.configuration_manager.normalization_schemes) == {"CTNormalization"}


def normalization(model: TrainedModel) -> dict[str, str]:
    """Number of each input channel -> what is done to its intensities."""
    manager = model.configuration_manager
    texts = {}
    for number, (scheme, masked) in enumerate(
        zip(manager.normalization_schemes, manager.use_mask_for_norm, strict=True)
    ):
        if scheme == "CTNormalization":
            low, high, mean, deviation = _ct_numbers(model, number)
            text = f"clipped to [{low:g}, {high:g}], minus {mean:.6g}, divided by {deviation:.6g} (CT)"
        else:
            text = _SCHEMES.get(scheme, f"nnU-Net's {scheme}")
            text += "; of the nonzero region alone" if masked and scheme == "ZScoreNormalization" else ""
        texts[str(number)] = text
    return texts


def value_range(model: TrainedModel) -> list[float]:
    """Bounds of what the network gets, over all channels; empty where a channel has none, as after a z-score."""
    bounds = []
    for number, scheme in enumerate(model.configuration_manager.normalization_schemes):
        if scheme == "CTNormalization":
            low, high, mean, deviation = _ct_numbers(model, number)
            bounds.append((round((low - mean) / deviation, 3), round((high - mean) / deviation, 3)))
        elif scheme in ("RescaleTo01Normalization", "RGBTo01Normalization"):
            bounds.append((0, 1))
        else:
            return []
    same = len(set(bounds)) == 1
    return list(bounds[0]) if same else []


def _ct_numbers(model: TrainedModel, channel: int) -> tuple[float, float, float, float]:
    """0.5th and 99.5th percentile, mean and standard deviation, the last bounded as nnU-Net bounds it."""
    properties = model.plans_manager.foreground_intensity_properties_per_channel[str(channel)]
    low, high, mean = (float(properties[key]) for key in ("percentile_00_5", "percentile_99_5", "mean"))
    return low, high, mean, max(float(properties["std"]), 1e-8)
