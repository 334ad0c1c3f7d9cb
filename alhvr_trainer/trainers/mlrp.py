"""MLRP: one encoder, two decoders, each of which learns the other's pseudo-labels where these look reliable.

Su et al., "Mutual learning with reliable pseudo label for semi-supervised medical image segmentation", Medical Image
Analysis 2024.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from alhvr_trainer.config.methods import method
from alhvr_trainer.config.settings import Settings, Share
from alhvr_trainer.losses.mlrp import mlrp_terms
from alhvr_trainer.trainers.decoders import TappedDecoder
from alhvr_trainer.trainers.samples import Forward, Predictions, Samples
from alhvr_trainer.trainers.two_decoders import Decoder, Transposed, TwoDecodersTrainer, convolution_in_place_of


def nearest_upsampling(transposed: Transposed) -> nn.Sequential:
    """What the auxiliary decoder has in place of a transposed convolution: nearest neighbors, then a convolution.

    The kernel of 3 voxels per axis is our choice, as are two dimensions: the authors work in 3D.

    Example:
        >>> import torch
        >>> nearest_upsampling(nn.ConvTranspose2d(8, 4, 2, 2))(torch.zeros(1, 8, 5, 5)).shape
        torch.Size([1, 4, 10, 10])
    """
    scale = tuple(float(stride) for stride in transposed.stride)
    return nn.Sequential(nn.Upsample(scale_factor=scale, mode="nearest"), convolution_in_place_of(transposed, 3))


class MLRPSettings(Settings):
    """MLRP (Su et al., Medical Image Analysis 2024)."""

    consistency_weight: float = Field(1.0, ge=0)
    """Weight of the mutual terms at the end of the ramp-up."""
    ramp_fraction: Share = 0.4  # the authors: 40 * 150 of 15 000 iterations
    """Share of all training iterations over which the weight ramps up."""


@method(
    "MLRP",
    "mutual learning with reliable pseudo-labels",
    summary="A second decoder with another kind of up-sampling shares the network's encoder. Each learns the other's "
    "pseudo-labels where the other is more certain, the more so the better the other's features fit them. To predict, "
    "nnU-Net's own decoder is enough.",
    reference="Su J. et al. Mutual learning with reliable pseudo label for semi-supervised medical image segmentation. "
    "Medical Image Analysis 2024.",
)
class MLRPTrainer(TwoDecodersTrainer):
    """MLRP inside nnU-Net: ``nnUNetv2_train D C F -tr MLRPTrainer``.

    ``loss = L_sup_a + L_sup_auxiliary + w(t) (L_a + L_auxiliary)`` with nnU-Net's own loss as L_sup, and L over labeled
    and unlabeled samples alike. The features that tell how reliable pseudo-labels are are those that each decoder's
    full-resolution segmentation layer reads.

    Source: ``docs/methods.md`` lists the differences from the authors' code.
    """

    settings_class = MLRPSettings
    settings: MLRPSettings
    terms = ("mutual_a", "mutual_auxiliary")
    observed = ("learns_a", "reliability")

    def upsampling(self, transposed: Transposed) -> nn.Module:
        return nearest_upsampling(transposed)

    def called(self, decoder: Any) -> Decoder:
        return TappedDecoder(decoder, -1)

    def forward(self, samples: Samples) -> Forward:
        """The encoder and both decoders on all samples, with the decoders' last feature maps."""
        decoded = self.decode(samples)
        forward = self.sorted_outputs({name: outputs for name, (outputs, _) in decoded.items()}, samples)
        return replace(forward, maps={name: features.detach() for name, (_, features) in decoded.items()})

    def unsupervised(self, predictions: Predictions, samples: Samples) -> dict[str, Tensor]:
        """L in both directions; the share of voxels on which a learns, and the mean r of all pseudo-labels."""
        logits, features = predictions.logits, predictions.maps
        terms = mlrp_terms(
            logits["a"],
            logits["auxiliary"],
            features["a"],
            features["auxiliary"],
            predictions.valid,
            predictions.group,
        )
        return {
            "mutual_a": terms.a,
            "mutual_auxiliary": terms.b,
            "learns_a": predictions.mean(terms.learns_a),
            "reliability": predictions.mean((terms.reliability_a + terms.reliability_b) / 2),
        }
