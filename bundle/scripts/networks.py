"""nnU-Net's two networks in plain PyTorch: built from a bundle's config alone, and TorchScript compiles them.

They compute what ``PlainConvUNet`` and ``ResidualEncoderUNet`` of the package dynamic_network_architectures compute,
bit by bit: the same layers in the same order, with the same names in the state dict. Two things are left out, since
inference needs neither: the further names that the package gives to the same tensors (``all_modules``,
``decoder.encoder``), and the segmentation layers of deep supervision.

Source: F. Isensee et al., nnU-Net, Nature Methods 18, 203-211 (2021); the residual blocks are those of T. He et al.,
Bag of Tricks for Image Classification with Convolutional Neural Networks, CVPR 2019 (ResNet-D).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .input_error import InputError
from .layers import Layers, LayerType, ResidualBlock, Shape, bottlenecks, per_stage, whole


class PlainConvUNet(nn.Module):
    """nnU-Net's default network: stages of convolutions, of which the first is strided, and transposed ones back up.

    Input ``(N, input_channels, *S)``, output ``(N, num_classes, *S)``, logits; each size of ``S`` (2 or 3 of them) must
    be a multiple of the product of the strides on its axis.

    Args:
        input_channels: channels of the image.
        n_stages: resolutions, the full one included; at least 2.
        features_per_stage: channels of each stage.
        conv_op: ``torch.nn.Conv2d`` or ``torch.nn.Conv3d``.
        kernel_sizes: of each stage, per axis.
        strides: of the first convolution of each stage, per axis.
        n_conv_per_stage: convolutions of each stage on the way down.
        num_classes: channels of the output.
        n_conv_per_stage_decoder: convolutions of each stage on the way up, the lowest resolution first.
        layers: ``conv_bias``, ``norm_op``, ``nonlin`` and so on, see :class:`~.layers.Layers`.

    One number in place of a list holds for all stages, in place of a list of axes for all axes.

    Raises:
        InputError: a value that makes no network; the message names the argument.

    Example:
        >>> network = PlainConvUNet(1, 2, [4, 8], nn.Conv2d, 3, [1, 2], 1, 3, 1, nonlin=nn.ReLU)
        >>> network(torch.zeros(1, 1, 8, 6)).shape
        torch.Size([1, 3, 8, 6])
    """

    def __init__(
        self,
        input_channels: int,
        n_stages: int,
        features_per_stage: int | Sequence[int],
        conv_op: LayerType,
        kernel_sizes: int | Sequence[int | Sequence[int]],
        strides: int | Sequence[int | Sequence[int]],
        n_conv_per_stage: int | Sequence[int],
        num_classes: int,
        n_conv_per_stage_decoder: int | Sequence[int],
        **layers: Any,
    ) -> None:
        super().__init__()
        made = Layers(conv_op, **layers)
        shape = Shape.of(n_stages, features_per_stage, kernel_sizes, strides, made.dimensions)
        convs = per_stage("n_conv_per_stage", n_conv_per_stage, n_stages)
        stages, channels = [], whole("input_channels", input_channels)
        for features, kernel, stride, number in zip(shape.features, shape.kernels, shape.strides, convs, strict=True):
            stages.append(nn.Sequential(made.convs(number, channels, features, kernel, stride)))
            channels = features
        self.encoder = _Encoder(None, stages)
        self.decoder = _Decoder(made, shape, num_classes, n_conv_per_stage_decoder)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(image))


class ResidualEncoderUNet(nn.Module):
    """nnU-Net's network with residual blocks on the way down (``ResEncM``, ``ResEncL``, ``ResEncXL``).

    As :class:`PlainConvUNet`, but for:

    Args:
        n_blocks_per_stage: residual blocks of each stage on the way down.
        block: ``"BasicBlockD"``, two convolutions, or ``"BottleneckD"``, three with the outer ones of size 1.
        bottleneck_channels: of each stage, between the three convolutions of ``"BottleneckD"``.
        stem_channels: channels of the convolution before the first stage; None for those of the first stage.

    Example:
        >>> network = ResidualEncoderUNet(1, 2, [4, 8], nn.Conv2d, 3, [1, 2], 1, 3, 1, nonlin=nn.ReLU)
        >>> network(torch.zeros(1, 1, 8, 6)).shape
        torch.Size([1, 3, 8, 6])
    """

    def __init__(
        self,
        input_channels: int,
        n_stages: int,
        features_per_stage: int | Sequence[int],
        conv_op: LayerType,
        kernel_sizes: int | Sequence[int | Sequence[int]],
        strides: int | Sequence[int | Sequence[int]],
        n_blocks_per_stage: int | Sequence[int],
        num_classes: int,
        n_conv_per_stage_decoder: int | Sequence[int],
        block: str = "BasicBlockD",
        bottleneck_channels: int | Sequence[int] | None = None,
        stem_channels: int | None = None,
        **layers: Any,
    ) -> None:
        super().__init__()
        made = Layers(conv_op, **layers)
        shape = Shape.of(n_stages, features_per_stage, kernel_sizes, strides, made.dimensions)
        blocks = per_stage("n_blocks_per_stage", n_blocks_per_stage, n_stages)
        inner = bottlenecks(block, bottleneck_channels, n_stages)
        channels = shape.features[0] if stem_channels is None else whole("stem_channels", stem_channels)
        stem = made.convs(1, whole("input_channels", input_channels), channels, shape.kernels[0])
        stages = []
        for stage, number in enumerate(blocks):
            features, kernel, stride = shape.features[stage], shape.kernels[stage], shape.strides[stage]
            first = ResidualBlock(made, channels, features, kernel, stride, inner[stage])
            others = [ResidualBlock(made, features, features, kernel, (), inner[stage]) for _ in range(number - 1)]
            stages.append(nn.Sequential(OrderedDict(blocks=nn.Sequential(first, *others))))
            channels = features
        self.encoder = _Encoder(stem, stages)
        self.decoder = _Decoder(made, shape, num_classes, n_conv_per_stage_decoder)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(image))


class Ensemble(nn.Module):
    """Several networks with the same input and output; ``forward`` is the mean of their logits.

    Args:
        networks: at least one; they become ``members``.

    Raises:
        InputError: no network, or one of them twice: then they would share their weights.

    Example:
        >>> Ensemble([nn.Identity(), nn.Identity()])(torch.ones(1, 1, 2, 2)).mean().item()
        1.0
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        if not networks or len({id(network) for network in networks}) < len(networks):
            raise InputError(f"an ensemble needs different networks, at least one; found {len(networks)}")
        self.members = nn.ModuleList(networks)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        # without dimensions, so that it takes the members' type under autocast
        total = torch.zeros((), dtype=image.dtype, device=image.device)
        for member in self.members:
            total = total + member(image)
        return total / len(self.members)


class _Encoder(nn.Module):
    """The way down; gives the features of every stage, full resolution first."""

    def __init__(self, stem: nn.Module | None, stages: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Identity() if stem is None else stem
        self.stages = nn.ModuleList(stages)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        features = self.stem(image)
        skips: list[torch.Tensor] = []
        for stage in self.stages:
            features = stage(features)
            skips.append(features)
        return skips


class _Decoder(nn.Module):
    """The way up: upsample, concatenate with the encoder's features of that resolution, convolve."""

    def __init__(self, layers: Layers, shape: Shape, num_classes: int, n_conv: int | Sequence[int]) -> None:
        super().__init__()
        steps = len(shape.features) - 1
        convs = per_stage("n_conv_per_stage_decoder", n_conv, steps)
        stages, upsampling = [], []
        for step, number in enumerate(convs):
            below, skip = shape.features[steps - step], shape.features[steps - step - 1]
            upsampling.append(layers.upsampling(below, skip, shape.strides[steps - step]))
            stages.append(layers.convs(number, 2 * skip, skip, shape.kernels[steps - step - 1]))
        self.stages = nn.ModuleList(stages)
        self.transpconvs = nn.ModuleList(upsampling)
        head = layers.conv_op(shape.features[0], whole("num_classes", num_classes), 1, bias=True)
        # its number among the layers of deep supervision: the name in nnU-Net's checkpoints
        self.seg_layers = nn.ModuleDict({str(steps - 1): head})

    def forward(self, skips: list[torch.Tensor]) -> torch.Tensor:
        features = skips.pop()
        for upsampling, stage in zip(self.transpconvs, self.stages):  # noqa: B905 TorchScript has no "strict"
            features = stage(torch.cat((upsampling(features), skips.pop()), 1))
        for head in self.seg_layers.values():
            features = head(features)
        return features
