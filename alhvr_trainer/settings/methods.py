"""Settings of the methods, each with its default and its range. Symbols of the papers in brackets."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from alhvr_trainer.settings.rules import Choice, Flag, Number, Words, setting

REGIONS = ("omega1", "omega2", "omega3")
THRESHOLD_PROPORTION_2D = 0.8
THRESHOLD_PROPORTION_3D = 0.7


@dataclass(frozen=True)
class Settings:
    """What all methods have in common. A method of its own may add to it: a frozen dataclass derived from this."""

    unlabeled_batch_size: int | None = setting(None, Number(1, whole=True, optional=True))
    """Unlabelled samples U per step, out of the plans' ``batch_size`` (L + U); default: half of it, rounded down."""
    consistency_weight: float = setting(0.1, Number(0.0))
    """Weight of the unsupervised terms at the end of the ramp-up."""
    ramp_fraction: float = setting(1.0, Number(0.0, 1.0))
    """Share of all training iterations over which the weight ramps up."""
    mixed_precision: str = setting("float16", Choice(("float16", "bfloat16")))
    """Type of autocast on CUDA: "float16", as in nnU-Net, or "bfloat16", which needs no scaling of the loss."""
    seed: int | None = setting(None, Number(0, 2**32 - 1, whole=True, optional=True))
    """Seed of everything random in training; default: drawn, logged and kept in the checkpoint."""
    num_epochs: int | None = setting(None, Number(1, whole=True, optional=True))
    """Replaces nnU-Net's 1000."""
    num_iterations_per_epoch: int | None = setting(None, Number(1, whole=True, optional=True))
    """Replaces nnU-Net's 250."""
    num_val_iterations_per_epoch: int | None = setting(None, Number(1, whole=True, optional=True))
    """Replaces nnU-Net's 50."""

    def as_dict(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class ALHVRSettings(Settings):
    """ALHVR (Lei et al., ICCV 2025)."""

    threshold_proportion: float | None = setting(None, Number(0.01, 1.0, optional=True))
    """Share of the least confident voxels whose mean is gamma [beta]; default 0.8 in 2D, 0.7 in 3D."""
    # below 0.02 the powers of the sharpening underflow in float32, above 1 its gradient at 0 is infinite
    temperature: float = setting(0.1, Number(0.02, 1.0))
    """Sharpening temperature of the teacher [T]."""
    prototype_scale: float = setting(1.0, Number(1e-3))
    """Factor on the cosine between features and prototypes."""
    dtct_regions: tuple[str, ...] = setting(("omega3",), Words(REGIONS, empty="off"))
    """Regions on which DTCT acts; empty switches it off."""
    cgcpcl_regions: tuple[str, ...] = setting(("omega2",), Words(REGIONS, empty="off"))
    """Regions on which CG-CPCL acts; empty switches it off."""
    detach_teacher: bool = setting(False, Flag())
    """Stop the gradient through DTCT's sharpened teacher."""
    official_ce_broadcast: bool = setting(False, Flag())
    """Compute CG-CPCL's cross-entropy with the mask broadcast of the authors' released code."""
    feature_stage: int | None = setting(None, Number(0, whole=True, optional=True))
    """Decoder stage whose output feeds CG-CPCL, 0 = deepest; default: the stage at 1/8 resolution."""


METHODS: tuple[type[Settings], ...] = (ALHVRSettings,)
"""Of the methods in this package: one plans file serves them all."""


def threshold_proportion(settings: ALHVRSettings, dimensions: int) -> float:
    """beta: the one set, else the paper's for 2D (ACDC) or 3D (BraTS2019)."""
    if settings.threshold_proportion is not None:
        return settings.threshold_proportion
    return THRESHOLD_PROPORTION_2D if dimensions == 2 else THRESHOLD_PROPORTION_3D
