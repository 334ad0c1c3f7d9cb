"""Ready plans (``plans/*.json``) that override parts of what the planner chose for a dataset.

A ready plan is a part of nnU-Net's plans: ``{"plans_name": …, "description": …, "configurations": {"2d":
{…}}}``. Everything else, above all what depends on the dataset, comes from the planner. A
complete nnU-Net plans file of another dataset works as well; only its training settings
(:data:`TRAINING_KEYS`) are used.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from alhvr_trainer.config.dataset_json import channel_names
from alhvr_trainer.config.files import read_json
from alhvr_trainer.config.names import PLANS_NAME, SETTINGS_KEY
from alhvr_trainer.config.plans import check_network, check_numbers, check_schemes
from alhvr_trainer.config.settings import Settings, settings_from_plans, split_batch
from alhvr_trainer.errors import InputError, shown
from alhvr_trainer.losses.regions import paper_proportion
from alhvr_trainer.resources import plans_folder

TRAINING_KEYS = ("batch_size", "patch_size", "architecture", "batch_dice", SETTINGS_KEY)
"""Settings that do not depend on a dataset."""
DATA_KEYS = ("spacing", "normalization_schemes", "use_mask_for_norm")
"""Settings of preprocessing that a ready plan may fix; the planner chooses them otherwise."""
TOP_KEYS = ("plans_name", "description", "configurations")


@dataclass(frozen=True)
class Template:
    """A ready plan, checked as far as it can be without a dataset."""

    file: str
    plans_name: str
    configurations: dict[str, dict[str, Any]]
    complete: bool
    """It is a complete plans file of another dataset: configurations that this dataset lacks are left out."""


def shipped_templates() -> list[str]:
    """Names of the ready plans that come with the package."""
    return sorted(file.stem for file in plans_folder().glob("*.json"))


def load_template(name_or_file: str) -> Template:
    """Read a ready plan by its name (``"acdc_2d"``) or its path.

    Raises:
        InputError: no such file; no JSON object with ``configurations``; an unknown key; an invalid ``alhvr``
            block.

    Example:
        >>> load_template("acdc_2d").configurations["2d"]["patch_size"]
        [256, 256]
    """
    file = Path(name_or_file)
    if not file.is_file():
        file = plans_folder() / f"{name_or_file}.json"
    if not file.is_file():
        raise InputError(f"no plans file {name_or_file}; ready plans: {', '.join(shipped_templates())}")
    content = read_json(file)
    configurations = content.get("configurations") if isinstance(content, dict) else None
    if not isinstance(configurations, dict) or not configurations:
        raise InputError(f'{file} is not a plans file: it must be an object with "configurations"')
    complete = "dataset_name" in content
    if not complete:
        _check_keys(content, TOP_KEYS, str(file))
    checked = {
        name: _checked_entries(f'{file}, configuration "{name}"', entries, complete)
        for name, entries in configurations.items()
    }
    # a complete file may be called nnUNetPlans: never overwrite the dataset's own plans of that name
    plans_name = PLANS_NAME if complete else str(content.get("plans_name", file.stem))
    return Template(str(file), plans_name, checked, complete)


def apply_template(template: Template, plans: dict[str, Any], dataset_json: dict[str, Any]) -> dict[str, Any]:
    """Lay a ready plan over the planner's plans of a dataset.

    Args:
        template: see :func:`load_template`.
        plans: what the planner wrote for the dataset; its ``plans_name`` stays and names the preprocessed
            data.
        dataset_json: the dataset's ``dataset.json``.

    Returns:
        New plans; ``plans`` is not changed.

    Raises:
        InputError: the plan does not fit the dataset; file, configuration and key are named.
    """
    plans = deepcopy(plans)
    dimensions = {}
    for name, entries in template.configurations.items():
        where = f'{template.file}, configuration "{name}"'
        if name not in plans["configurations"]:
            if template.complete:
                print(f"{where} is left out: the dataset has no such configuration")
                continue
            raise InputError(f"{where}: the dataset has only {', '.join(plans['configurations'])}")
        if entries:
            dimensions[name] = len(PlansManager(plans).get_configuration(name).patch_size)
            plans["configurations"][name].update(deepcopy(entries))
            _fit_to_dataset(plans, name, entries)
    for name in dimensions:
        where = f'{template.file}, configuration "{name}"'
        _check_configuration(where, plans, name, dimensions[name], dataset_json)
    return plans


def alhvr_block(batch_size: int, dimensions: int) -> dict[str, Any]:
    """The planned part of the ``alhvr`` block; everything else keeps its default.

    Example:
        >>> alhvr_block(16, 2)
        {'unlabeled_batch_size': 8, 'threshold_proportion': 0.8}
    """
    _, unlabeled = split_batch(batch_size)
    return {"unlabeled_batch_size": unlabeled, "threshold_proportion": paper_proportion(dimensions)}


def _checked_entries(where: str, entries: object, complete: bool) -> dict[str, Any]:
    if not isinstance(entries, dict):
        raise InputError(f"{where} must be an object, found {shown(entries)}")
    if complete:
        entries = {key: value for key, value in entries.items() if key in TRAINING_KEYS}
    _check_keys(entries, TRAINING_KEYS + DATA_KEYS, where)
    try:
        settings_from_plans(entries, Settings)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return entries


def _check_keys(entries: dict[str, Any], valid: tuple[str, ...], where: str) -> None:
    unknown = [key for key in entries if key not in valid]
    if unknown:
        raise InputError(f'{where}: unknown key "{unknown[0]}"; valid keys: {", ".join(valid)}')


def _fit_to_dataset(plans: dict[str, Any], name: str, entries: dict[str, Any]) -> None:
    """Bring the planner's own entries in line with those of the ready plan."""
    configuration = plans["configurations"][name]
    resolved = PlansManager(plans).get_configuration(name).configuration
    if isinstance(resolved["batch_size"], int) and isinstance(resolved["patch_size"], list):
        planned = alhvr_block(resolved["batch_size"], len(resolved["patch_size"]))
        configuration[SETTINGS_KEY] = {**planned, **entries.get(SETTINGS_KEY, {})}
    spacing = entries.get("spacing")
    if spacing is not None and len(spacing) == len(resolved["patch_size"]):
        extent = np.multiply(plans["original_median_shape_after_transp"], plans["original_median_spacing_after_transp"])
        shape = extent[-len(spacing) :] / np.array(spacing)
        configuration["median_image_size_in_voxels"] = [float(size) for size in shape]


def _check_configuration(
    where: str, plans: dict[str, Any], name: str, dimensions: int, dataset_json: dict[str, Any]
) -> None:
    manager = PlansManager(plans)
    configuration = manager.get_configuration(name).configuration
    check_numbers(where, configuration, dimensions)
    check_schemes(where, configuration, channel_names(dataset_json))
    try:
        split_batch(configuration["batch_size"], configuration[SETTINGS_KEY]["unlabeled_batch_size"])
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    check_network(where, manager, name, dataset_json)
