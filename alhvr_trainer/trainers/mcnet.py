"""MC-Net: one encoder, two slightly different decoders, each of which learns from the other's sharpened prediction.

Wu et al., "Semi-supervised Left Atrium Segmentation with Mutual Consistency Training", MICCAI 2021 (arXiv 2103.02911).
"""

from __future__ import annotations

from typing import Any

import torch
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import interpolate

from alhvr_trainer.config.methods import method
from alhvr_trainer.config.settings import Settings
from alhvr_trainer.losses.mcnet import mutual_consistency
from alhvr_trainer.trainers.partners import follow_loaded_weights, unwrapped
from alhvr_trainer.trainers.samples import Forward, Predictions, Samples
from alhvr_trainer.trainers.semi_supervised import SemiSupervisedTrainer
from alhvr_trainer.trainers.two_passes import check_network


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

    def __init__(self, transposed: nn.ConvTranspose2d | nn.ConvTranspose3d) -> None:
        super().__init__()
        in_3d = isinstance(transposed, nn.ConvTranspose3d)
        self.scale = tuple(float(stride) for stride in transposed.stride)
        self.mode = "trilinear" if in_3d else "bilinear"
        convolution: Any = nn.Conv3d if in_3d else nn.Conv2d
        size = 3 if in_3d else 1
        self.convolution = convolution(
            transposed.in_channels, transposed.out_channels, size, padding=size // 2, bias=transposed.bias is not None
        )
        InitWeights_He()(self.convolution)  # as nnU-Net initializes what it replaces

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "bilinear":
            return interpolate(self.convolution(x), scale_factor=self.scale, mode=self.mode, align_corners=True)
        upsampled = interpolate(x, scale_factor=self.scale, mode=self.mode, align_corners=True)
        convolved: Tensor = self.convolution(upsampled)
        return convolved


def make_auxiliary(decoder: Any) -> Any:
    """Turn a decoder of nnU-Net into MC-Net's auxiliary decoder, in place; returns it.

    Args:
        decoder: ``UNetDecoder`` of a network built for this alone: its encoder, which every decoder of nnU-Net carries
            along without using it, is taken out, so that it is neither trained nor saved.
    """
    decoder.encoder = None
    for index, transposed in enumerate(decoder.transpconvs):
        decoder.transpconvs[index] = LinearUpsampling(transposed)
    return decoder


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
class MCNetTrainer(SemiSupervisedTrainer):
    """MC-Net inside nnU-Net: ``nnUNetv2_train D C F -tr MCNetTrainer``.

    ``loss = L_sup_a + L_sup_auxiliary + w(t) (L_c_a + L_c_auxiliary)`` with nnU-Net's own loss as L_sup. Network a is
    nnU-Net's; a second decoder, the auxiliary one, reads the features of a's encoder. The two decoders and the encoder
    are one model with one optimizer. Network a is what nnU-Net validates, saves and predicts with.

    Source: section 2. L_c is taken over labeled and unlabeled samples alike. The authors' L_sup is Dice alone, with
    weight 0.5 in their code; here it is nnU-Net's, as for all methods. In their code w(t) goes to 0.1 over all steps in
    2D, and to 1 over the first 6000 of 15000 steps in 3D.
    """

    settings_class = MCNetSettings
    settings: MCNetSettings
    supervised = ("a", "auxiliary")
    terms = ("consistency_a", "consistency_auxiliary")
    co_trained = True
    compares_labeled = True
    trained_with_a = ("auxiliary",)

    def build_partners(self) -> dict[str, nn.Module]:
        network: Any = unwrapped(self.network)
        check_network(network, None)
        spare: Any = unwrapped(self.build_network())
        auxiliary = make_auxiliary(spare.decoder).to(self.device)
        follow_loaded_weights(network.decoder.stages, auxiliary.stages)  # what the two decoders have in common
        return {"auxiliary": auxiliary}

    def initialize(self) -> None:
        super().initialize()
        network: Any = unwrapped(self.network)
        parts = {"encoder": network.encoder, "a": network.decoder, "auxiliary": self.partners["auxiliary"]}
        if self._do_i_compile():
            parts = {name: torch.compile(part, dynamic=False) for name, part in parts.items()}
        self._parts = parts

    def forward(self, samples: Samples) -> Forward:
        """The encoder and both decoders on all samples."""
        features = self._parts["encoder"](samples.data)
        return self.sorted_outputs({name: self._parts[name](features) for name in self.supervised}, samples)

    def unsupervised(self, predictions: Predictions, samples: Samples) -> dict[str, Tensor]:
        """L_c in both directions."""
        a, auxiliary = predictions.logits["a"], predictions.logits["auxiliary"]
        temperature, detach = self.settings.temperature, self.settings.detach_pseudo_labels
        valid, group = predictions.valid, predictions.group
        return {
            "consistency_a": mutual_consistency(a, auxiliary, temperature, detach, valid, group),
            "consistency_auxiliary": mutual_consistency(auxiliary, a, temperature, detach, valid, group),
        }
