"""The layers of nnU-Net's networks, and the checks of the numbers that describe a network."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .input_error import InputError

LayerType = type[nn.Module]
Sizes = tuple[int, ...]
Kwargs = Mapping[str, Any]

DIMENSIONS: dict[LayerType, int] = {nn.Conv2d: 2, nn.Conv3d: 3}
TRANSPOSED: dict[int, LayerType] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
AVERAGE_POOL: dict[int, LayerType] = {2: nn.AvgPool2d, 3: nn.AvgPool3d}


@dataclass(frozen=True)
class Layers:
    """Makes the layers of one network."""

    conv_op: LayerType
    """``torch.nn.Conv2d`` or ``torch.nn.Conv3d``."""
    conv_bias: bool = False
    """Whether convolutions have a bias; the last one always has."""
    norm_op: LayerType | None = None
    """Normalization, made as ``norm_op(channels, **norm_op_kwargs)``; None for none."""
    norm_op_kwargs: Kwargs | None = None
    dropout_op: LayerType | None = None
    """Dropout after each convolution; None for none."""
    dropout_op_kwargs: Kwargs | None = None
    nonlin: LayerType | None = None
    """Activation; None for none."""
    nonlin_kwargs: Kwargs | None = None
    nonlin_first: bool = False
    """Activation before normalization, in ``PlainConvUNet`` alone."""

    def __post_init__(self) -> None:
        if self.conv_op not in DIMENSIONS:
            raise InputError(f"conv_op is {self.conv_op!r}; it must be torch.nn.Conv2d or torch.nn.Conv3d")
        for name in ("norm_op", "dropout_op", "nonlin"):
            kind = getattr(self, name)
            if kind is not None and not (isinstance(kind, type) and issubclass(kind, nn.Module)):
                raise InputError(f"{name} is {kind!r}; it must be a class of layers or null")

    @property
    def dimensions(self) -> int:
        return DIMENSIONS[self.conv_op]

    def activation(self) -> nn.Module:
        return nn.Identity() if self.nonlin is None else self.nonlin(**(self.nonlin_kwargs or {}))

    def conv(
        self,
        channels: int,
        features: int,
        kernel: Sizes,
        stride: Sizes = (),
        bias: bool | None = None,
        dropout: bool = True,
        nonlin: bool = True,
    ) -> _Conv:
        bias = self.conv_bias if bias is None else bias
        padding = tuple((size - 1) // 2 for size in kernel)
        return _Conv(
            self.conv_op(channels, features, kernel, stride or 1, padding, bias=bias),
            self.dropout_op(**(self.dropout_op_kwargs or {})) if dropout and self.dropout_op else nn.Identity(),
            self.norm_op(features, **(self.norm_op_kwargs or {})) if self.norm_op else nn.Identity(),
            self.activation() if nonlin else nn.Identity(),
            self.nonlin_first,
        )

    def convs(self, number: int, channels: int, features: int, kernel: Sizes, stride: Sizes = ()) -> nn.Sequential:
        """``number`` convolutions, the first of them strided."""
        first = self.conv(channels, features, kernel, stride)
        others = [self.conv(features, features, kernel) for _ in range(number - 1)]
        return nn.Sequential(OrderedDict(convs=nn.Sequential(first, *others)))

    def upsampling(self, channels: int, features: int, stride: Sizes) -> nn.Module:
        return TRANSPOSED[self.dimensions](channels, features, stride, stride, bias=self.conv_bias)


@dataclass(frozen=True)
class Shape:
    """Channels, kernels and strides of every stage."""

    features: Sizes
    kernels: tuple[Sizes, ...]
    strides: tuple[Sizes, ...]

    @classmethod
    def of(cls, n_stages: int, features: object, kernels: object, strides: object, dimensions: int) -> Shape:
        if whole("n_stages", n_stages) < 2:
            raise InputError("n_stages is 1; a U-Net has at least 2")
        return cls(
            per_stage("features_per_stage", features, n_stages),
            _per_axis("kernel_sizes", kernels, n_stages, dimensions),
            _per_axis("strides", strides, n_stages, dimensions),
        )


def bottlenecks(block: str, channels: object, n_stages: int) -> tuple[int | None, ...]:
    if block == "BasicBlockD" and channels is None:
        return (None,) * n_stages
    if block == "BottleneckD" and channels is not None:
        return per_stage("bottleneck_channels", channels, n_stages)
    raise InputError(
        f'block is {block!r} and bottleneck_channels {channels!r}; it must be "BasicBlockD" without them '
        'or "BottleneckD" with them'
    )


def _per_axis(name: str, value: object, n_stages: int, dimensions: int) -> tuple[Sizes, ...]:
    stages = [value] * n_stages if isinstance(value, int) else value
    if not isinstance(stages, Sequence) or len(stages) != n_stages:
        raise InputError(f"{name} is {value!r}; it needs one entry for each of the {n_stages} stages")
    sizes = tuple(
        tuple(entry) if isinstance(entry, Sequence) and not isinstance(entry, str) else (entry,) * dimensions
        for entry in stages
    )
    if any(len(axes) != dimensions for axes in sizes):
        raise InputError(f"{name} is {value!r}; each entry needs {dimensions} numbers, one for each axis")
    return tuple(tuple(whole(name, size) for size in axes) for axes in sizes)


def per_stage(name: str, value: object, n_stages: int) -> Sizes:
    numbers = [value] * n_stages if isinstance(value, int) else value
    if not isinstance(numbers, Sequence) or len(numbers) != n_stages:
        raise InputError(f"{name} is {value!r}; it needs {n_stages} numbers, one for each stage")
    return tuple(whole(name, number) for number in numbers)


def whole(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} is or holds {value!r}; it must be a whole number of at least 1")
    return value


class _Conv(nn.Module):
    """Convolution, dropout, normalization, activation; the last two the other way round if ``nonlin_first``.

    No ``nn.Sequential``: TorchScript takes two of them for the same where only the order of named layers differs.
    """

    def __init__(
        self, conv: nn.Module, dropout: nn.Module, norm: nn.Module, nonlin: nn.Module, nonlin_first: bool
    ) -> None:
        super().__init__()
        self.conv, self.dropout, self.norm, self.nonlin = conv, dropout, norm, nonlin
        self.nonlin_first = nonlin_first

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features = self.dropout(self.conv(features))
        return self.norm(self.nonlin(features)) if self.nonlin_first else self.nonlin(self.norm(features))


class ResidualBlock(nn.Module):
    """Convolutions with a skip connection, which is averaged if the block is strided and projected to its channels.

    Args:
        stride: empty for none.
        inner: channels between the three convolutions of a bottleneck; None for two convolutions.
    """

    def __init__(
        self, layers: Layers, channels: int, features: int, kernel: Sizes, stride: Sizes, inner: int | None
    ) -> None:
        super().__init__()
        one = (1,) * layers.dimensions
        if inner is None:
            self.conv1 = layers.conv(channels, features, kernel, stride)
            self.conv2 = layers.conv(features, features, kernel, dropout=False, nonlin=False)
            self.conv3: nn.Module = nn.Identity()
        else:
            self.conv1 = layers.conv(channels, inner, one, dropout=False)
            self.conv2 = layers.conv(inner, inner, kernel, stride)
            self.conv3 = layers.conv(inner, features, one, dropout=False, nonlin=False)
        self.nonlin3 = nn.Identity() if inner is None else layers.activation()
        self.nonlin2 = layers.activation() if inner is None else nn.Identity()
        skip: list[nn.Module] = []
        if any(step != 1 for step in stride):
            skip.append(AVERAGE_POOL[layers.dimensions](stride, stride))
        if channels != features:
            skip.append(layers.conv(channels, features, one, bias=False, dropout=False, nonlin=False))
        self.skip = nn.Sequential(*skip)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        skipped = self.skip(features)
        convolved = self.conv3(self.conv2(self.conv1(features)))
        convolved += skipped
        return self.nonlin3(self.nonlin2(convolved))
