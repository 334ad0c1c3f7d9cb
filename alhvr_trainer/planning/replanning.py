"""Keeps settings that users changed in the ``alhvr`` blocks of the plans when a dataset is planned again."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from alhvr_trainer.config.files import read_object
from alhvr_trainer.config.names import SETTINGS_KEY
from alhvr_trainer.errors import InputError

AS_PLANNED = "alhvr_as_planned"
"""Key of the plans: configuration -> its ``alhvr`` block as planning made it. What differs there was changed since."""


def plans_before(file: Path) -> dict[str, Any]:
    """The plans that are about to be replaced; empty plans if there is no file.

    Raises:
        InputError: the file is there and holds no plans.
    """
    plans = read_object(file, "remove it and plan again") if file.is_file() else {"configurations": {}}
    if not isinstance(plans.get("configurations"), dict):
        raise InputError(f'{file} is not a plans file: it has no "configurations"; remove it and plan again')
    return plans


def keep_changed_settings(plans: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """Carry over settings that were changed by hand since the plans were made, and record the blocks as planned.

    User-defined configurations are kept by nnU-Net itself.

    Args:
        plans: new ones; their blocks are changed in place.
        before: the plans in the file that is about to be replaced.

    Returns:
        One line for each configuration that keeps a setting.

    Example:
        >>> old = {"configurations": {"2d": {"alhvr": {"seed": 1}}}, AS_PLANNED: {"2d": {}}}
        >>> keep_changed_settings({"configurations": {"2d": {"alhvr": {}}}}, old)
        ['2d keeps "alhvr" seed 1']
    """
    configurations = plans["configurations"]
    planned = {name: entries[SETTINGS_KEY] for name, entries in configurations.items() if SETTINGS_KEY in entries}
    plans[AS_PLANNED] = deepcopy(planned)
    kept = []
    for name, entries in before["configurations"].items():
        then = before.get(AS_PLANNED, {}).get(name, {})
        changed = {key: value for key, value in entries.get(SETTINGS_KEY, {}).items() if then.get(key) != value}
        if name not in configurations or not changed:
            continue
        configurations[name][SETTINGS_KEY] = {**planned.get(name, {}), **changed}
        kept.append(f'{name} keeps "{SETTINGS_KEY}" ' + ", ".join(f"{key} {value}" for key, value in changed.items()))
    return kept
