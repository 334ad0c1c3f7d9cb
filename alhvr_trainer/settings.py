"""Names, defaults and ranges of the ``alhvr`` block in a plans file. Imports no torch: CLI, planner and tests share it.

The block stands in a configuration of nnU-Net's plans and is inherited like everything else there::

    "configurations": {"2d": {..., "alhvr": {"unlabeled_batch_size": 8, "threshold_proportion": 0.8}}}
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from alhvr_trainer.errors import InputError, cut, shown

TRAINER_NAME = "ALHVRTrainer"
PLANNER_NAME = "ALHVRPlanner"
PLANS_NAME = "ALHVRPlans"
SETTINGS_KEY = "alhvr"
UNLABELED_FOLDER = "imagesTr_unlabeled"
UNLABELED_KEY = "unlabeled"
UNLABELED_SUFFIX = "_unlabeled"
REGIONS = ("omega1", "omega2", "omega3")

THRESHOLD_PROPORTION_2D = 0.8
THRESHOLD_PROPORTION_3D = 0.7


@dataclass(frozen=True)
class ALHVRSettings:
    """What a user may set in the ``alhvr`` block; every key is optional.

    Symbols of the paper (Lei et al., ICCV 2025) in brackets.
    """

    unlabeled_batch_size: int | None = None
    """Unlabelled samples U per step, out of the plans' ``batch_size`` (L + U); default: half of it, rounded down."""
    threshold_proportion: float | None = None
    """Share of the least confident voxels whose mean is gamma [beta]; default 0.8 in 2D, 0.7 in 3D."""
    temperature: float = 0.1
    """Sharpening temperature of the teacher [T]."""
    prototype_scale: float = 1.0
    """Factor on the cosine between features and prototypes."""
    consistency_weight: float = 0.1
    """Weight of the unsupervised terms at the end of the ramp-up."""
    ramp_fraction: float = 1.0
    """Share of all training iterations over which the weight ramps up."""
    dtct_regions: tuple[str, ...] = ("omega3",)
    """Regions on which DTCT acts; empty switches it off."""
    cgcpcl_regions: tuple[str, ...] = ("omega2",)
    """Regions on which CG-CPCL acts; empty switches it off."""
    detach_teacher: bool = False
    """Stop the gradient through DTCT's sharpened teacher."""
    official_ce_broadcast: bool = False
    """Compute CG-CPCL's cross-entropy with the mask broadcast of the authors' released code."""
    mixed_precision: str = "float16"
    """Type of autocast on CUDA: "float16", as in nnU-Net, or "bfloat16", which needs no scaling of the loss."""
    feature_stage: int | None = None
    """Decoder stage whose output feeds CG-CPCL, 0 = deepest; default: the stage at 1/8 resolution."""
    seed: int | None = None
    """Seed of everything random in training; default: drawn, logged and kept in the checkpoint."""
    num_epochs: int | None = None
    """Replaces nnU-Net's 1000."""
    num_iterations_per_epoch: int | None = None
    """Replaces nnU-Net's 250."""
    num_val_iterations_per_epoch: int | None = None
    """Replaces nnU-Net's 50."""

    def as_dict(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class _Range:
    """A number (or None where ``optional``) between ``low`` and ``high``, both included."""

    kind: type
    low: float
    high: float = math.inf
    optional: bool = False

    def __str__(self) -> str:
        bounds = f"from {self.low:g} to {self.high:g}" if self.high < math.inf else f"of at least {self.low:g}"
        return f"{'a whole number' if self.kind is int else 'a number'} {bounds}"

    def accepts(self, value: object) -> bool:
        if value is None:
            return self.optional
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        if self.kind is int and not isinstance(value, int):
            return False
        # no math.isfinite: whole numbers of JSON may be too large for a float
        return self.low <= value <= self.high and value != math.inf


class _Choice:
    def __init__(self, *values: str) -> None:
        self.values = values

    def __str__(self) -> str:
        return " or ".join(f'"{value}"' for value in self.values)

    def accepts(self, value: object) -> bool:
        return value in self.values


class _Flag:
    def __str__(self) -> str:
        return "true or false"

    def accepts(self, value: object) -> bool:
        return isinstance(value, bool)


class _Regions:
    def __str__(self) -> str:
        return f"a list out of {', '.join(REGIONS)} (empty: off)"

    def accepts(self, value: object) -> bool:
        return isinstance(value, (list, tuple)) and all(item in REGIONS for item in value)


_RULES: dict[str, _Range | _Flag | _Regions | _Choice] = {
    "unlabeled_batch_size": _Range(int, 1, optional=True),
    "threshold_proportion": _Range(float, 0.01, 1.0, optional=True),
    # below 0.02 the powers of the sharpening underflow in float32, above 1 its gradient at 0 is infinite
    "temperature": _Range(float, 0.02, 1.0),
    "prototype_scale": _Range(float, 1e-3),
    "consistency_weight": _Range(float, 0.0),
    "ramp_fraction": _Range(float, 0.0, 1.0),
    "dtct_regions": _Regions(),
    "cgcpcl_regions": _Regions(),
    "detach_teacher": _Flag(),
    "official_ce_broadcast": _Flag(),
    "mixed_precision": _Choice("float16", "bfloat16"),
    "feature_stage": _Range(int, 0, optional=True),
    "seed": _Range(int, 0, 2**32 - 1, optional=True),
    "num_epochs": _Range(int, 1, optional=True),
    "num_iterations_per_epoch": _Range(int, 1, optional=True),
    "num_val_iterations_per_epoch": _Range(int, 1, optional=True),
}
assert set(_RULES) == {field.name for field in fields(ALHVRSettings)}


def settings_from_plans(configuration: dict[str, Any]) -> ALHVRSettings:
    """The settings in a configuration of the plans, defaults filled in.

    Args:
        configuration: one resolved configuration, e.g. ``PlansManager(plans).get_configuration("2d").configuration``.

    Raises:
        InputError: a key is unknown (the valid ones are listed) or its value is out of range.

    Example:
        >>> settings_from_plans({"alhvr": {"threshold_proportion": 0.9}}).threshold_proportion
        0.9
    """
    block = configuration.get(SETTINGS_KEY, {})
    if not isinstance(block, dict):
        raise InputError(f'"{SETTINGS_KEY}" in the plans must be an object of settings, found {shown(block)}')
    unknown = sorted(set(block) - set(_RULES))
    if unknown:
        raise InputError(
            f'unknown key {cut(", ".join(unknown))} in "{SETTINGS_KEY}" of the plans; valid keys: {", ".join(_RULES)}'
        )
    for key, value in block.items():
        if not _RULES[key].accepts(value):
            raise InputError(f'"{SETTINGS_KEY}.{key}" in the plans is {shown(value)}; it must be {_RULES[key]}')
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in block.items()}
    return ALHVRSettings(**values)


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


def threshold_proportion(settings: ALHVRSettings, dimensions: int) -> float:
    """beta: the one set, else the paper's for 2D (ACDC) or 3D (BraTS2019)."""
    if settings.threshold_proportion is not None:
        return settings.threshold_proportion
    return THRESHOLD_PROPORTION_2D if dimensions == 2 else THRESHOLD_PROPORTION_3D


def set_training_length(trainer: Any, settings: ALHVRSettings) -> None:
    """Take over the lengths that the plans set into a nnU-Net trainer; the others stay nnU-Net's."""
    for key in ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch"):
        if getattr(settings, key) is not None:
            setattr(trainer, key, getattr(settings, key))
