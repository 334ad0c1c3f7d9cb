"""Settings of the methods, each with its default and its range. Symbols of the papers in brackets."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from alhvr_trainer.config.rules import Choice, Flag, Number, Words, setting

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
    unlabeled_foreground: float = setting(0.0, Number(0.0, 1.0))
    """Share of the unlabelled patches laid around foreground that the network predicted, nine times in all."""
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


@dataclass(frozen=True)
class MeanTeacherSettings(Settings):
    """Mean Teacher (Tarvainen & Valpola, NeurIPS 2017): 0.1 is the authors' weight on SVHN, see ``docs/methods.md``."""

    # the authors: 40 000 of 180 000 steps (SVHN) or of 150 000 (CIFAR-10)
    ramp_fraction: float = setting(0.25, Number(0.0, 1.0))
    """Share of all training iterations over which the weight ramps up."""
    ema_decay: float = setting(0.999, Number(0.0, 1.0))
    """Decay of the teacher's moving average after the ramp-up [alpha]."""
    ramp_ema_decay: float | None = setting(0.99, Number(0.0, 1.0, optional=True))
    """The same during the ramp-up; null: no other."""
    input_noise: float = setting(0.15, Number(0.0))
    """Standard deviation of the Gaussian noise on the input, in normalised intensities."""
    input_noise_bound: float | None = setting(None, Number(0.0, optional=True))
    """The noise is clamped to plus or minus this; default: not at all."""
    dropout: float = setting(0.0, Number(0.0, 0.99))
    """Share of the channels dropped after the deepest encoder stage and after the last decoder stage."""


@dataclass(frozen=True)
class UAMTSettings(MeanTeacherSettings):
    """UA-MT (Yu et al., MICCAI 2019)."""

    ramp_fraction: float = setting(1.0, Number(0.0, 1.0))
    """Share of all training iterations over which the weight ramps up."""
    ema_decay: float = setting(0.99, Number(0.0, 1.0))
    """Decay of the teacher's moving average [alpha]."""
    ramp_ema_decay: float | None = setting(None, Number(0.0, 1.0, optional=True))
    """The same during the ramp-up; null: no other."""
    input_noise: float = setting(0.1, Number(0.0))
    """Standard deviation of the Gaussian noise on the teacher's input, in normalised intensities."""
    input_noise_bound: float | None = setting(0.2, Number(0.0, optional=True))
    """The noise is clamped to plus or minus this."""
    dropout: float = setting(0.5, Number(0.0, 0.99))
    """Share of the channels dropped after the deepest encoder stage and after the last decoder stage."""
    uncertainty_passes: int = setting(8, Number(1, whole=True))
    """Passes of the teacher whose mean prediction says where it is certain [T]."""


@dataclass(frozen=True)
class FixMatchSettings(Settings):
    """FixMatch (Sohn et al., NeurIPS 2020)."""

    consistency_weight: float = setting(1.0, Number(0.0))
    """Weight of the unsupervised term [lambda_u]."""
    # the share of confident voxels is the ramp-up
    ramp_fraction: float = setting(0.0, Number(0.0, 1.0))
    """Share of all training iterations over which the weight ramps up."""
    confidence_threshold: float = setting(0.95, Number(0.0, 1.0))
    """Confidence on the weak view from which on a voxel's pseudo-label counts [tau]."""
    ema_decay: float = setting(0.999, Number(0.0, 1.0))
    """Decay of the moving average of the weights that predicts."""
    strong_transforms: int = setting(2, Number(0, whole=True))
    """How many of nnU-Net's intensity transforms RandAugment draws for the strong view."""
    cutout: float = setting(0.5, Number(0.0, 1.0))
    """Edge of the box that the strong view lacks, as a share of the patch; 0: none."""


@dataclass(frozen=True)
class CPSSettings(Settings):
    """CPS (Chen et al., CVPR 2021), on all voxels or in some of ALHVR's regions."""

    cps_samples: str = setting("all", Choice(("all", "unlabeled")))
    """Samples that the networks teach each other on: "all" [L_cps^l + L_cps^u], or "unlabeled" [L_cps^u]."""
    cps_regions: tuple[str, ...] = setting(REGIONS, Words(REGIONS))
    """Regions on which they teach each other; all three are CPS itself."""
    threshold_proportion: float | None = setting(None, Number(0.01, 1.0, optional=True))
    """Share of the least confident voxels whose mean parts the regions [beta]; default 0.8 in 2D, 0.7 in 3D."""


@dataclass(frozen=True)
class MCNetSettings(Settings):
    """MC-Net (Wu et al., MICCAI 2021)."""

    temperature: float = setting(0.1, Number(0.02, 1.0))
    """Sharpening temperature of the pseudo-labels [T]."""
    detach_pseudo_labels: bool = setting(False, Flag())
    """Stop the gradient through the sharpened pseudo-labels."""


METHODS: tuple[type[Settings], ...] = (
    ALHVRSettings,
    MeanTeacherSettings,
    UAMTSettings,
    FixMatchSettings,
    CPSSettings,
    MCNetSettings,
)
"""Of the methods in this package: one plans file serves them all."""


def threshold_proportion(settings: ALHVRSettings | CPSSettings, dimensions: int) -> float:
    """beta: the one set, else the paper's for 2D (ACDC) or 3D (BraTS2019)."""
    if settings.threshold_proportion is not None:
        return settings.threshold_proportion
    return THRESHOLD_PROPORTION_2D if dimensions == 2 else THRESHOLD_PROPORTION_3D
