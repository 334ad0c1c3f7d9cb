"""The ``alhvr`` block of a configuration in nnU-Net's plans: settings that all methods share, and how it is read.

The block is inherited like everything else in the plans::

    "configurations": {"2d": {..., "alhvr": {"unlabeled_batch_size": 8, "threshold_proportion": 0.8}}}
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from alhvr_trainer.config.methods import settings_of_all_methods
from alhvr_trainer.config.names import SETTINGS_KEY
from alhvr_trainer.errors import InputError, cut, shown

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """What all methods have in common; a method may add fields in a class of its own, derived from this."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    unlabeled_batch_size: Positive | None = None
    """Unlabeled samples U per step, out of the plans' ``batch_size`` (L + U); default: half of it, rounded down."""
    consistency_weight: float = Field(0.1, ge=0)
    """Weight of the unsupervised terms at the end of the ramp-up."""
    ramp_fraction: Share = 1.0
    """Share of all training iterations over which the weight ramps up."""
    warm_up_fraction: Share = 0.0
    """Share of all training iterations in which labeled samples alone teach; the weight's ramp-up starts after it."""
    decay_fraction: Share = 1.0
    """Share of the epochs, the last ones, in which nnU-Net's learning rate falls; until then it is constant."""
    unlabeled_foreground: Share = 0.0
    """Share of the unlabeled patches laid around foreground that the network predicted, nine times in all."""
    augmentation: Literal["stock", "device"] = "stock"
    """Who augments: "stock", nnU-Net's worker processes, or "device", the training's device, batch by batch."""
    cache: Literal["device", "host", "disk"] | None = None
    """With augmentation on the device, where cases stay once they were read; default: where they fit.

    The device of a training on the CPU is the host.
    """
    cuda_graph: bool = False
    """Run each training step as one CUDA graph."""
    mixed_precision: Literal["float16", "bfloat16"] = "float16"
    """Type of autocast on CUDA: "float16", as in nnU-Net, or "bfloat16", which needs no scaling of the loss."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Seed of everything random in training; default: drawn, logged and kept in the checkpoint."""
    num_epochs: Positive | None = None
    """Replaces nnU-Net's 1000."""
    num_iterations_per_epoch: Positive | None = None
    """Replaces nnU-Net's 250."""
    num_val_iterations_per_epoch: Positive | None = None
    """Replaces nnU-Net's 50."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return self.model_dump(mode="json")


AnySettings = TypeVar("AnySettings", bound=Settings)


def settings_from_plans(configuration: dict[str, Any], kind: type[AnySettings]) -> AnySettings:
    """A method's settings in a configuration of the plans, defaults filled in.

    The block may hold keys of other methods, so that one plans file serves all; they are checked and left out.

    Args:
        configuration: one resolved configuration, e.g. ``PlansManager(plans).get_configuration("2d").configuration``.
        kind: the method's settings class.

    Raises:
        InputError: a key is unknown (the valid ones are listed) or its value is out of range.

    Example:
        >>> settings_from_plans({"alhvr": {"num_epochs": 5}}, Settings).num_epochs
        5
    """
    block = configuration.get(SETTINGS_KEY, {})
    if not isinstance(block, dict):
        raise InputError(f'"{SETTINGS_KEY}" in the plans must be an object of settings, found {shown(block)}')
    kinds = (kind, *settings_of_all_methods())
    known = {key for each in kinds for key in each.model_fields}
    unknown = sorted(set(block) - known)
    if unknown:
        close = [match for key in unknown for match in get_close_matches(key, known, n=1)]
        meant = f" (did you mean {', '.join(close)}?)" if close else ""
        raise InputError(
            f'unknown key {cut(", ".join(unknown))} in "{SETTINGS_KEY}" of the plans{meant}; '
            f"valid keys: {', '.join(kind.model_fields)}"
        )
    own, *_others = [_part_of(block, each) for each in kinds]
    return own


def _part_of(block: dict[str, Any], kind: type[AnySettings]) -> AnySettings:
    part = {key: tuple(v) if isinstance(v, list) else v for key, v in block.items() if key in kind.model_fields}
    try:
        return kind.model_validate(part)
    except ValidationError as error:
        first = error.errors()[0]
        key = first["loc"][0]
        raise InputError(
            f'"{SETTINGS_KEY}.{key}" in the plans is {shown(block[str(key)])}; '
            f"it{first['msg'].removeprefix('Input').removeprefix('Value')}"
        ) from error


def known_settings(configuration: dict[str, Any]) -> dict[str, Any]:
    """The configuration without those keys of its block that no method of this package has: plans of any method."""
    block = configuration.get(SETTINGS_KEY)
    if not isinstance(block, dict):
        return configuration
    known = {key for kind in settings_of_all_methods() for key in kind.model_fields}
    return configuration | {SETTINGS_KEY: {key: value for key, value in block.items() if key in known}}


def split_batch(batch_size: int, unlabeled_batch_size: int | None = None) -> tuple[int, int]:
    """Labeled and unlabeled samples (L, U) of a step whose plans say ``batch_size`` = L + U.

    Without ``unlabeled_batch_size``: L = ceil(b / 2), U = floor(b / 2), at least one each.

    Raises:
        InputError: ``unlabeled_batch_size`` leaves no labeled sample.

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
            f"(labeled + unlabeled) is {batch_size}: at least one labeled sample must be left"
        )
    return batch_size - unlabeled_batch_size, unlabeled_batch_size


def set_training_length(trainer: Any, settings: Settings) -> None:
    """Take over the lengths that the plans set into an nnU-Net trainer; the others stay nnU-Net's."""
    for key in ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch"):
        if getattr(settings, key) is not None:
            setattr(trainer, key, getattr(settings, key))
