"""MC-Net: one encoder, two slightly different decoders, each of which learns from the other's sharpened prediction.

Wu et al., "Semi-supervised Left Atrium Segmentation with Mutual Consistency Training", MICCAI 2021 (arXiv 2103.02911).
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import interpolate

from alhvr_trainer.config.methods import method
from alhvr_trainer.config.settings import Settings
from alhvr_trainer.losses.mcnet import mutual_consistency
from alhvr_trainer.trainers.samples import Predictions, Samples
from alhvr_trainer.trainers.two_decoders import Transposed, TwoDecodersTrainer, convolution_in_place_of


class LinearUpsampling(nn.Module):
    """What the auxiliary decoder has in place of a transposed convolution: linear interpolation and a convolution.

    The authors' code interpolates and then convolves 3x3x3 in 3D; in 2D it convolves 1x1 and then interpolates. Both
    are kept. Their 3D decoders have a norm and a ReLU behind either kind of up-sampling; nnU-Net has none behind its
    transposed convolutions, so there is none here either.

    Args:
        transposed: the transposed convolution to replace; channels, stride and bias are taken from it.

    Example:
        >>> import torch
        >>> LinearUpsampling(nn.ConvTranspose2d(8, 4, 2, 2))(torch.zeros(1, 8, 5, 5)).shape
        torch.Size([1, 4, 10, 10])

    Source: section 2: the original decoder expands feature maps by transposed convolutions, the other by interpolation.
    """

    def __init__(self, transposed: Transposed) -> None:
        super().__init__()
        in_3d = isinstance(transposed, nn.ConvTranspose3d)
        self.scale = tuple(float(stride) for stride in transposed.stride)
        self.mode = "trilinear" if in_3d else "bilinear"
        self.convolution = convolution_in_place_of(transposed, 3 if in_3d else 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "bilinear":
            return interpolate(self.convolution(x), scale_factor=self.scale, mode=self.mode, align_corners=True)
        upsampled = interpolate(x, scale_factor=self.scale, mode=self.mode, align_corners=True)
        convolved: Tensor = self.convolution(upsampled)
        return convolved


class MCNetSettings(Settings):
    """MC-Net (Wu et al., MICCAI 2021)."""

    temperature: float = Field(0.1, ge=0.02, le=1.0)
    """Sharpening temperature of the pseudo-labels [T]."""
    detach_pseudo_labels: bool = False
    """Stop the gradient through the sharpened pseudo-labels."""


@method(
    "MC-Net",
    "mutual consistency",
    summary="A second decoder with another kind of up-sampling shares the network's encoder; the two learn from each "
    "other's sharpened predictions. To predict, nnU-Net's own decoder is enough.",
    reference="Wu Y. et al. Semi-supervised Left Atrium Segmentation with Mutual Consistency Training. MICCAI 2021.",
)
class MCNetTrainer(TwoDecodersTrainer):
    """MC-Net inside nnU-Net: ``nnUNetv2_train D C F -tr MCNetTrainer``.

    ``loss = L_sup_a + L_sup_auxiliary + w(t) (L_c_a + L_c_auxiliary)`` with nnU-Net's own loss as L_sup.

    Source: section 2. L_c is taken over labeled and unlabeled samples alike. The authors' L_sup is Dice alone, with
    weight 0.5 in their code; here it is nnU-Net's, as for all methods. In their code w(t) goes to 0.1 over all steps in
    2D, and to 1 over the first 6000 of 15000 steps in 3D.
    """

    settings_class = MCNetSettings
    settings: MCNetSettings
    terms = ("consistency_a", "consistency_auxiliary")

    def upsampling(self, transposed: Transposed) -> nn.Module:
        return LinearUpsampling(transposed)

    def unsupervised(self, predictions: Predictions, samples: Samples) -> dict[str, Tensor]:
        """L_c in both directions."""
        a, auxiliary = predictions.logits["a"], predictions.logits["auxiliary"]
        temperature, detach = self.settings.temperature, self.settings.detach_pseudo_labels
        valid, group = predictions.valid, predictions.group
        return {
            "consistency_a": mutual_consistency(a, auxiliary, temperature, detach, valid, group),
            "consistency_auxiliary": mutual_consistency(auxiliary, a, temperature, detach, valid, group),
        }
