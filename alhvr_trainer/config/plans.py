"""What nnU-Net's plans must look like, checked before nnU-Net or we do anything with them."""

from __future__ import annotations

import math
import pydoc
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import LabelManager, determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from alhvr_trainer.config.dataset_json import channel_names, check_dataset_json
from alhvr_trainer.config.files import is_list_of, is_name, is_positive, is_whole
from alhvr_trainer.config.names import SETTINGS_KEY
from alhvr_trainer.config.plans_keys import Configuration, Plans, in_nnunet, is_finite
from alhvr_trainer.config.settings import Settings, known_settings, settings_from_plans, split_batch
from alhvr_trainer.config.validation import validated
from alhvr_trainer.errors import InputError, cut, one_line, shown
from alhvr_trainer.losses.regions import paper_proportion

MOST_PARAMETERS = 10**9
MOST_LAYERS = 100
"""Of one stage, and stages of a network."""
LARGEST_NUMBER = 10**5
"""In the description of a network: features, kernel sizes, …"""
MOST_VOXELS = 2**36
"""In a batch."""


def check_plans(
    plans: dict[str, Any],
    configuration: str,
    dataset_json: dict[str, Any],
    where: str,
    kind: type[Settings] | None = None,
) -> None:
    """One configuration of the plans can be used with a dataset: forms, names, and a network that works.

    Args:
        plans: content of the file.
        configuration: e.g. ``"2d"``.
        dataset_json: content of ``dataset.json``.
        where: how messages name the plans.
        kind: settings of the method that will train; with None, keys of unknown methods are ignored.

    Raises:
        InputError: names the key, what was found, and what belongs there.
    """
    check_dataset_json(dataset_json)
    validated(Plans, plans, where)
    _check_inheritance(plans, configuration, where)
    where = f'{where}, configuration "{configuration}"'
    try:
        manager = PlansManager(plans)
        resolved = manager.get_configuration(configuration).configuration
    except Exception as error:  # nnU-Net translates plans of older versions here, key by key
        raise InputError(f'{where}: neither an "architecture" nor one of nnU-Net\'s older plans') from error
    validated(Configuration, resolved, where)
    check_numbers(where, resolved, len(resolved["patch_size"]) if resolved["patch_size"] else 2)
    _check_stages(plans, resolved, where)
    _check_intensities(plans, resolved, channel_names(dataset_json), where)
    check_labels_fit(dataset_json)
    _check_settings(resolved, where, kind)
    check_network(where, manager, configuration, dataset_json)


def check_numbers(where: str, configuration: dict[str, Any], dimensions: int) -> None:
    """Batch size, patch size and spacing.

    Raises:
        InputError: one is not a number, not positive, of the wrong length, or beyond all memory.
    """
    batch_size, patch, spacing = (configuration[key] for key in ("batch_size", "patch_size", "spacing"))
    if not is_whole(batch_size, 1, 10**6):
        raise InputError(f'{where}: "batch_size" is {shown(batch_size)}; it must be a whole number of at least 1')
    if dimensions not in (2, 3):
        raise InputError(f'{where}: "patch_size" is {shown(patch)}; it must be 2 or 3 whole numbers')
    rules = {"patch_size": (patch, lambda value: is_whole(value, 1, 10**6)), "spacing": (spacing, is_positive)}
    for key, (values, accepts) in rules.items():
        if not is_list_of(values, accepts, dimensions):
            raise InputError(f'{where}: "{key}" is {shown(values)}; it must be {dimensions} positive numbers')
    if batch_size * math.prod(patch) > MOST_VOXELS:
        raise InputError(f'{where}: "batch_size" {batch_size} times "patch_size" {patch} is more than fits any memory')


def check_schemes(where: str, configuration: dict[str, Any], channels: list[str]) -> None:
    """One normalization for each channel, and one that nnU-Net has.

    Raises:
        InputError: it is not so.
    """
    for key, form in (("normalization_schemes", str), ("use_mask_for_norm", bool)):
        if not is_list_of(configuration[key], lambda value, form=form: isinstance(value, form), len(channels)):
            raise InputError(
                f'{where}: "{key}" must have one entry per channel of the dataset ({cut(", ".join(channels))}), '
                f"found {shown(configuration[key])}"
            )
    for scheme in configuration["normalization_schemes"]:
        if not in_nnunet("preprocessing.normalization")(scheme):
            raise InputError(f'{where}: nnU-Net has no normalization scheme "{scheme}"')


def check_labels_fit(dataset_json: dict[str, Any], where: str = "dataset.json") -> None:
    """The labels are what nnU-Net can train on.

    Raises:
        InputError: its own words where it refuses them; or the values have a gap.
    """
    try:
        manager = LabelManager(dataset_json["labels"], dataset_json.get("regions_class_order"))
        values = [int(value) for value in manager.all_labels]
    except (AssertionError, RuntimeError) as error:
        raise InputError(f'{where}: "labels" cannot be used: {one_line(error)}') from error
    if len(values) < 2:
        raise InputError(f'{where}: "labels" has nothing besides the background')
    if not manager.has_regions and values != list(range(len(values))):
        raise InputError(f'{where}: the values of "labels" must be 0, 1, 2, … without a gap, found {shown(values)}')


def build_network(manager: PlansManager, configuration: str, dataset_json: dict[str, Any]) -> nn.Module:
    """The network that nnU-Net builds from a configuration of the plans, without deep supervision; random weights."""
    named = manager.get_configuration(configuration)
    network: nn.Module = get_network_from_plans(
        named.network_arch_class_name,
        named.network_arch_init_kwargs,
        named.network_arch_init_kwargs_req_import,
        determine_num_input_channels(manager, named, dataset_json),
        manager.get_label_manager(dataset_json).num_segmentation_heads,
        allow_init=False,
        deep_supervision=False,
    )
    return network


def check_network(where: str, manager: PlansManager, name: str, dataset_json: dict[str, Any]) -> None:
    """Build the network and pass a patch through it, on shapes only.

    Raises:
        InputError: it cannot be built, is beyond all memory, or does not take the patch.
    """
    configuration = manager.get_configuration(name)
    architecture, patch = configuration.configuration["architecture"], configuration.patch_size
    try:
        _check_architecture(architecture)
        strides = np.prod(architecture["arch_kwargs"].get("strides", [1]), axis=0) * np.ones(len(patch), dtype=int)
        if any(size % stride for size, stride in zip(patch, strides, strict=True)):
            raise InputError(
                f'{where}: "patch_size" {patch} must be divisible by the product of all "strides", {strides.tolist()}'
            )
        with torch.device("meta"), torch.no_grad():
            network = build_network(manager, name, dataset_json)
            network(torch.zeros((2, determine_num_input_channels(manager, configuration, dataset_json), *patch)))
        parameters = sum(parameter.numel() for parameter in network.parameters())
        if parameters > MOST_PARAMETERS:
            raise ValueError(f"it would have {parameters} parameters")
    except InputError:
        raise
    # a wrong architecture fails in as many ways as there are arguments
    except Exception as error:
        raise InputError(f'{where}: "architecture" gives no working network: {one_line(error)}') from error


def _check_architecture(architecture: dict[str, Any]) -> None:
    """Nothing that would take hours or all memory to build, or that is not a network at all."""
    keywords = architecture["arch_kwargs"]
    for key in architecture["_kw_requires_import"]:
        # any other callable would run when the network is built
        if keywords[key] is not None and not _is_module(pydoc.locate(keywords[key])):
            raise ValueError(f'"{key}": there is no layer {cut(str(keywords[key]))}')
    located = pydoc.locate(architecture["network_class_name"])
    if located is not None and not _is_module(located):
        raise ValueError(f"{architecture['network_class_name']} is not a network")
    for key, value in keywords.items():
        most = MOST_LAYERS if key.startswith("n_") else LARGEST_NUMBER
        numbers = np.asarray(value if isinstance(value, (int, float, list)) else 0, dtype=float)
        if not np.all(np.abs(numbers) <= most):
            raise ValueError(f'"{key}" is {shown(value)}; the most is {most}')


def _is_module(located: object) -> bool:
    return isinstance(located, type) and issubclass(located, nn.Module)


def _check_inheritance(plans: dict[str, Any], configuration: str, where: str) -> None:
    visited: list[str] = []
    name: Any = configuration
    while name is not None:
        if not isinstance(name, str) or name not in plans["configurations"]:
            raise InputError(
                f"{where} has no configuration {shown(name)}; there are: {', '.join(plans['configurations'])}"
            )
        if name in visited:
            raise InputError(f"{where}: configurations inherit in a circle: {' from '.join([*visited, name])}")
        visited.append(name)
        name = plans["configurations"][name].get("inherits_from")


def _check_stages(plans: dict[str, Any], configuration: dict[str, Any], where: str) -> None:
    following = configuration.get("next_stage")
    stages = [configuration.get("previous_stage"), *(following if isinstance(following, list) else [following])]
    for stage in stages:
        if stage is not None and (not is_name(stage) or stage not in plans["configurations"]):
            raise InputError(f"{where}: a stage of the cascade is {shown(stage)}, which is not a configuration")


def _check_intensities(plans: dict[str, Any], configuration: dict[str, Any], channels: list[str], where: str) -> None:
    check_schemes(where, configuration, channels)
    old, new = "foreground_intensity_properties_by_modality", "foreground_intensity_properties_per_channel"
    properties = plans.get(new, plans.get(old))
    for channel, scheme in enumerate(configuration["normalization_schemes"]):
        entry = properties.get(str(channel)) if isinstance(properties, dict) else None
        needed = ("mean", "std", "percentile_00_5", "percentile_99_5") if scheme == "CTNormalization" else ()
        if not isinstance(entry, dict) or not all(is_finite(entry.get(key)) for key in needed):
            raise InputError(
                f'{where}: "{new}" must have the numbers {", ".join(needed) or "of an object"} for channel {channel}, '
                f"found {shown(entry)}"
            )


def _check_settings(configuration: dict[str, Any], where: str, kind: type[Settings] | None) -> None:
    try:
        settings = settings_from_plans(configuration if kind else known_settings(configuration), kind or Settings)
        split_batch(configuration["batch_size"], settings.unlabeled_batch_size)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def planned_proportion(configuration: Mapping[str, Any]) -> float:
    """beta of a configuration in nnU-Net's plans: its own, else the paper's."""
    planned: float | None = configuration.get(SETTINGS_KEY, {}).get("threshold_proportion")
    return planned or paper_proportion(len(configuration["patch_size"]))
