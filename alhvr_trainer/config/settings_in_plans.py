"""The ``alhvr`` block of a plans file, read and checked."""

from __future__ import annotations

from dataclasses import fields
from difflib import get_close_matches
from typing import Any, TypeVar

from alhvr_trainer.config.names import SETTINGS_KEY
from alhvr_trainer.config.rules import Rule
from alhvr_trainer.config.settings import METHODS, Settings
from alhvr_trainer.errors import InputError, cut, shown

AnySettings = TypeVar("AnySettings", bound=Settings)


def settings_from_plans(configuration: dict[str, Any], kind: type[AnySettings]) -> AnySettings:
    """A method's settings in a configuration of the plans, defaults filled in.

    The block may hold keys of other methods, so that one plans file serves all; they are left out.

    Args:
        configuration: one resolved configuration, e.g. ``PlansManager(plans).get_configuration("2d").configuration``.
        kind: the method's settings class.

    Raises:
        InputError: a key is unknown (the valid ones are listed) or its value is out of range.

    Example:
        >>> settings_from_plans({"alhvr": {"threshold_proportion": 0.9}}, ALHVRSettings).threshold_proportion
        0.9
    """
    block = configuration.get(SETTINGS_KEY, {})
    if not isinstance(block, dict):
        raise InputError(f'"{SETTINGS_KEY}" in the plans must be an object of settings, found {shown(block)}')
    own = _rules(kind)
    rules = {key: rule for method in METHODS for key, rule in _rules(method).items()} | own
    unknown = sorted(set(block) - set(rules))
    if unknown:
        close = [match for key in unknown for match in get_close_matches(key, rules, n=1)]
        meant = f" (did you mean {', '.join(close)}?)" if close else ""
        raise InputError(
            f'unknown key {cut(", ".join(unknown))} in "{SETTINGS_KEY}" of the plans{meant}; '
            f"valid keys: {', '.join(own)}"
        )
    for key, value in block.items():
        if not rules[key].accepts(value):
            raise InputError(f'"{SETTINGS_KEY}.{key}" in the plans is {shown(value)}; it must be {rules[key]}')
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in block.items() if key in own}
    return kind(**values)


def without_strangers(configuration: dict[str, Any]) -> dict[str, Any]:
    """The configuration with those keys of its block that methods of this package know: for plans of any method."""
    block = configuration.get(SETTINGS_KEY)
    if not isinstance(block, dict):
        return configuration
    known = {key for method in METHODS for key in _rules(method)}
    return configuration | {SETTINGS_KEY: {key: value for key, value in block.items() if key in known}}


def _rules(kind: type[Settings]) -> dict[str, Rule]:
    return {field.name: field.metadata["rule"] for field in fields(kind)}


def split_batch(batch_size: int, unlabeled_batch_size: int | None = None) -> tuple[int, int]:
    """Labelled and unlabelled samples (L, U) of a step whose plans say ``batch_size`` = L + U.

    Without ``unlabeled_batch_size``: L = ceil(b / 2), U = floor(b / 2), at least one each.

    Raises:
        InputError: ``unlabeled_batch_size`` leaves no labelled sample.

    Example:
        >>> split_batch(16), split_batch(3), split_batch(1), split_batch(12, 8)
        ((8, 8), (2, 1), (1, 1), (4, 8))
    """
    if unlabeled_batch_size is None:
        unlabeled = max(1, batch_size // 2)
        return max(1, batch_size - unlabeled), unlabeled
    if unlabeled_batch_size >= batch_size:
        raise InputError(
            f'"{SETTINGS_KEY}.unlabeled_batch_size" is {unlabeled_batch_size}, but "batch_size" in the plans '
            f"(labelled + unlabelled) is {batch_size}: at least one labelled sample must be left"
        )
    return batch_size - unlabeled_batch_size, unlabeled_batch_size


def set_training_length(trainer: Any, settings: Settings) -> None:
    """Take over the lengths that the plans set into a nnU-Net trainer; the others stay nnU-Net's."""
    for key in ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch"):
        if getattr(settings, key) is not None:
            setattr(trainer, key, getattr(settings, key))
