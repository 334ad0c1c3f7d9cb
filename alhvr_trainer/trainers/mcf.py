"""MCF: two networks of different architectures; the one that is better on the labeled samples teaches the other.

Wang et al., "MCF: Mutual Correction Framework for Semi-Supervised Medical Image Segmentation", CVPR 2023.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from pydantic import Field
from torch import Tensor, nn

from alhvr_trainer.config.methods import method
from alhvr_trainer.config.settings import Positive, Settings
from alhvr_trainer.errors import InputError
from alhvr_trainer.losses.mcf import correction_term, labeled_dice_loss, rectification_terms
from alhvr_trainer.trainers.parallel import get_world_size
from alhvr_trainer.trainers.samples import (
    Forward,
    Outputs,
    Predictions,
    Samples,
    annotated,
    as_classes,
    full_resolution,
)
from alhvr_trainer.trainers.semi_supervised import SemiSupervisedTrainer

PLAIN, RESIDUAL = "PlainConvUNet", "ResidualEncoderUNet"
ENCODER_KEYS = {
    PLAIN: ("n_conv_per_stage", "nonlin_first"),
    RESIDUAL: ("n_blocks_per_stage", "block", "bottleneck_channels", "stem_channels"),
}
"""What each architecture's arguments have and the other's do not."""
CONVOLUTIONS = 2
"""Per stage of a plain encoder, as in nnU-Net's plans."""


class MCFSettings(Settings):
    """MCF (Wang et al., CVPR 2023)."""

    temperature: float = Field(0.1, ge=0.02, le=1.0)
    """Sharpening temperature of the pseudo-labels [T]."""
    rectification_weight: float = Field(0.5, ge=0)
    """Weight of the squared error on labeled voxels where the two networks differ [beta]."""
    residual_blocks: tuple[Positive, ...] = Field((1, 3, 4, 6), min_length=1)
    """Blocks per stage of network b's residual encoder, the last for all deeper stages; for plain plans."""


@method(
    "MCF",
    "mutual correction framework",
    summary="Two networks of different architectures, with a plain and with a residual encoder, train together. On "
    "labeled images each learns more where they differ. On unlabeled images the one that is better on the labeled "
    "images of the step teaches the other. To predict, the network of the plans is enough.",
    reference="Wang Y. et al. MCF: Mutual Correction Framework for Semi-Supervised Medical Image Segmentation. "
    "CVPR 2023.",
)
class MCFTrainer(SemiSupervisedTrainer):
    """MCF inside nnU-Net: ``nnUNetv2_train D C F -tr MCFTrainer``.

    ``loss = sum over networks of (L_sup + beta L_rect) + w(t) L_correction of the loser`` with nnU-Net's own loss as
    L_sup. Network b has a residual encoder where the plans' network a has a plain one, and the reverse. In each step
    the network with the lower Dice loss on the labeled samples teaches. Network a is what nnU-Net validates, saves and
    predicts with.

    Source: the authors' code; ``docs/methods.md`` lists the differences.

    Raises:
        InputError: the plans have another architecture than nnU-Net's two.
    """

    settings_class = MCFSettings
    settings: MCFSettings
    supervised = ("a", "b")
    terms = ("correction",)
    observed = ("a_wins",)
    co_trained = True

    def build_partners(self) -> dict[str, nn.Module]:
        """b starts from random weights, also with ``-pretrained_weights``, which fit network a alone."""
        architecture = self.configuration_manager.configuration["architecture"]
        other = other_architecture(architecture, self.settings.residual_blocks)
        configuration = {**self.configuration_manager.configuration, "architecture": other}
        return {"b": self.build_network(ConfigurationManager(configuration))}

    def forward(self, samples: Samples) -> Forward:
        """Both networks on all samples, and who wins."""
        found = super().forward(samples)
        return replace(found, maps={"a_wins": self.a_wins(found.labeled, samples)})

    def a_wins(self, outputs: dict[str, Outputs], samples: Samples) -> Tensor:
        """Whether a's labeled Dice loss is at most b's: a bool scalar on the device, the same on all ranks."""
        labels, counts = labels_of(samples, self.label_manager)
        a, b = (labeled_dice_loss(self._classes(outputs[n]), labels, counts, self.group) for n in ("a", "b"))
        return a <= b

    def supervised_losses(self, forward: Forward, samples: Samples) -> dict[str, Tensor]:
        losses = super().supervised_losses(forward, samples)
        a, b = (self._classes(forward.labeled[name]) for name in ("a", "b"))
        rectified = rectification_terms(a, b, *labels_of(samples, self.label_manager), self.group)
        weight = self.settings.rectification_weight * get_world_size()  # shares, among means over the ranks
        return {name: losses[name] + weight * term for name, term in zip(("a", "b"), rectified, strict=True)}

    def unsupervised(self, predictions: Predictions, samples: Samples) -> dict[str, Tensor]:
        a, b, a_wins = predictions.logits["a"], predictions.logits["b"], predictions.maps["a_wins"]
        temperature, valid, group = self.settings.temperature, predictions.valid, predictions.group
        return {
            "correction": correction_term(a, b, a_wins, temperature, valid, group),
            "a_wins": a_wins / get_world_size(),
        }

    def _classes(self, outputs: Outputs) -> Tensor:
        return as_classes(full_resolution(outputs), self.label_manager.has_regions)


def other_architecture(architecture: dict[str, Any], residual_blocks: tuple[int, ...]) -> dict[str, Any]:
    """The plans' architecture with a residual encoder in place of a plain one, or the reverse.

    Stages, features, kernels, strides and decoder stay, so that the outputs have the same scales.

    Args:
        architecture: ``"architecture"`` of a configuration of the plans.
        residual_blocks: per stage of a residual encoder, the last for all deeper stages.

    Raises:
        InputError: it is neither ``PlainConvUNet`` nor ``ResidualEncoderUNet``.
    """
    package, _, kind = architecture["network_class_name"].rpartition(".")
    if kind not in ENCODER_KEYS:
        raise InputError(
            f"MCF needs plans with the architecture {PLAIN} or {RESIDUAL}; these have {kind}: use plans of nnU-Net's "
            "or ALHVR's planners"
        )
    shared = {key: value for key, value in architecture["arch_kwargs"].items() if key not in ENCODER_KEYS[kind]}
    stages = shared["n_stages"]
    if kind == PLAIN:
        blocks = [*residual_blocks, *[residual_blocks[-1]] * stages][:stages]
        made, encoder = RESIDUAL, {"n_blocks_per_stage": blocks}
    else:
        made, encoder = PLAIN, {"n_conv_per_stage": [CONVOLUTIONS] * stages}
    imported = [key for key in architecture["_kw_requires_import"] if key in shared]
    return {"network_class_name": f"{package}.{made}", "arch_kwargs": shared | encoder, "_kw_requires_import": imported}


def labels_of(samples: Samples, label_manager: Any) -> tuple[Tensor, Tensor | None]:
    """The labeled samples at full resolution, as classes: with regions, each channel is "in", 1, against "out", 0.

    Args:
        samples: of a step.
        label_manager: nnU-Net's, of the dataset.

    Returns:
        Labels, (L, *S) or (L * R, *S); of the same shape, what counts: inside the image and annotated; None: all does.
    """
    target, counts = full_resolution(samples.labels), annotated(samples, label_manager)
    if not label_manager.has_regions:
        return target[:, 0], counts
    regions = label_manager.num_segmentation_heads
    return target[:, :regions].flatten(0, 1), None if counts is None else counts.repeat_interleave(regions, dim=0)
