"""MC-Net: one encoder, two slightly different decoders, each of which learns from the other's sharpened prediction.

Wu et al., "Semi-supervised Left Atrium Segmentation with Mutual Consistency Training", MICCAI 2021 (arXiv 2103.02911).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import interpolate

from alhvr_trainer.methods.alhvr.teaching import sharpen
from alhvr_trainer.methods.ranks import Group
from alhvr_trainer.methods.voxels import masked_mean


def mutual_consistency(
    logits: Tensor,
    other_logits: Tensor,
    temperature: float = 0.1,
    detach: bool = False,
    valid: Tensor | None = None,
    group: Group = None,
) -> Tensor:
    """Mean squared error, over voxels and classes, of one decoder against the other's soft pseudo-label.

    ``L_c = mean (P - sPL)^2``, ``sPL = Q^(1/T) / (Q^(1/T) + (1 - Q)^(1/T))`` with P and Q the two softmaxes: the cycled
    pseudo-label, sharpened class by class and not renormalised. The method's loss is the sum of both directions.

    Args:
        logits: of the decoder that learns, (U, C, *S).
        other_logits: of the decoder that gives the pseudo-label, (U, C, *S).
        temperature: T, between 0.02 and 1.
        detach: stop the gradient through the pseudo-label. The paper does not say; the authors' code lets it through,
            which is the default here.
        valid: (U, *S) bool, False outside the image (padding); None means all.
        group: the ranks that the batch is spread over; the sum of their results is the batch's term.

    Example:
        >>> import torch
        >>> even = torch.zeros(1, 2, 1)  # one voxel, two classes: 1/2 each, and so is the pseudo-label
        >>> float(mutual_consistency(even, even))
        0.0

    Source: MC-Net, Sec. 2, sharpening of the cycled pseudo-label and L_c.
    """
    pseudo_label = sharpen(other_logits.softmax(dim=1), temperature)
    error = (logits.softmax(dim=1) - (pseudo_label.detach() if detach else pseudo_label)) ** 2
    return masked_mean(error.mean(dim=1), valid, group)


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

    Source: MC-Net, Sec. 2: the original decoder expands by transposed convolutions, the other one by interpolation.
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
