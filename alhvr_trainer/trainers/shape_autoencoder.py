"""The autoencoder of label maps behind AAU: its network, what it sees of labels, and its training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from alhvr_trainer.augmentation.corruption import corrupted
from alhvr_trainer.augmentation.spatial import OUTSIDE
from alhvr_trainer.errors import InputError
from alhvr_trainer.losses.aau import shape_loss
from alhvr_trainer.losses.mean_teacher import noisy

CODE_NUMBERS = 512
"""Of the code, in all: the width of the authors' fully connected bottleneck."""
CODE_SIZE = 4
"""Voxels of the code along the patch's longest axes, at most."""
FEATURES, MOST_FEATURES = 16, 256
"""Of V-Net, at full resolution and in its depth."""
INPUT_NOISE, INPUT_NOISE_BOUND = 0.1, 0.2
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
REPORTS = 10
"""How often training logs its loss, which must be finite then."""


@dataclass(frozen=True)
class LabelCoding:
    """Label maps as the autoencoder takes and gives them.

    It takes one channel that holds the label, as the authors' does, and gives one channel per class. Regions overlap,
    so that it takes and gives one channel for each; their label maps are corrupted before they are taken apart.
    """

    classes: int
    """With the background."""
    regions: tuple[tuple[int, ...], ...] = ()
    """Labels of each region; empty: there are none."""
    ignore: int | None = None

    @classmethod
    def of(cls, label_manager: Any) -> LabelCoding:
        """As nnU-Net's label manager has it."""
        regions = label_manager.foreground_regions if label_manager.has_regions else []
        members = tuple(tuple(int(label) for label in np.atleast_1d(region)) for region in regions)
        return cls(len(label_manager.all_labels), members, label_manager.ignore_label)

    @property
    def taken(self) -> int:
        """Channels that the autoencoder takes."""
        return len(self.regions) or 1

    @property
    def given(self) -> int:
        """Channels that it gives."""
        return len(self.regions) or self.classes

    def known(self, labels: Tensor) -> Tensor:
        """Where there is a label: inside the image, and annotated."""
        return (labels != OUTSIDE) if self.ignore is None else (labels != OUTSIDE) & (labels != self.ignore)

    def as_input(self, labels: Tensor) -> Tensor:
        """(B, *S), 0 where there is no label, to (B, :attr:`taken`, *S) float32."""
        return self.as_shapes(labels) if self.regions else labels.unsqueeze(1).float()

    def as_shapes(self, labels: Tensor) -> Tensor:
        """(B, *S), 0 where there is no label, to (B, :attr:`given`, *S) float32, 0 or 1."""
        members = self.regions or tuple((label,) for label in range(self.classes))
        channels = [torch.stack([labels == label for label in each]).any(dim=0) for each in members]
        return torch.stack(channels, dim=1).float()

    def of_logits(self, logits: Tensor, valid: Tensor | None) -> Tensor:
        """What a segmentation network predicts, as input: (B, C, *S) logits to (B, :attr:`taken`, *S).

        Args:
            logits: of classes or regions.
            valid: (B, *S) bool, False outside the image, where there is background; None means all.
        """
        labels = (logits > 0) if self.regions else logits.argmax(dim=1, keepdim=True)
        return (labels if valid is None else labels * valid.unsqueeze(1)).float()


class ShapeAutoencoder(nn.Module):
    """A V-Net without skips, whose code has so few numbers that only shapes like those of the labels pass through it.

    The authors' code of 512 numbers comes from a fully connected layer, which fits one patch size. Here convolutions of
    stride 2 go on until the code has at most 4 voxels along the patch's longest axes, with as many channels as make
    about 512 numbers for this patch size. Any other size can pass as well.

    Args:
        taken, given: channels, see :class:`LabelCoding`.
        patch_size: two or three axes.

    Example:
        >>> autoencoder = ShapeAutoencoder(1, 3, (40, 56))
        >>> autoencoder(torch.zeros(2, 1, 40, 56)).shape, autoencoder.code_channels
        (torch.Size([2, 3, 40, 56]), 43)
    """

    trained: Tensor
    """Whether it has been, a bool in the state dict."""

    def __init__(self, taken: int, given: int, patch_size: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("trained", torch.tensor(False))
        convolution: Any = nn.Conv2d if len(patch_size) == 2 else nn.Conv3d
        norm: Any = nn.BatchNorm2d if len(patch_size) == 2 else nn.BatchNorm3d

        def block(before: int, after: int, stride: Any = 1) -> nn.Module:
            return nn.Sequential(convolution(before, after, 3, stride, 1), norm(after), nn.ReLU(inplace=True))

        strides = halvings(patch_size)
        widths = [min(FEATURES * 2**level, MOST_FEATURES) for level in range(len(strides) + 1)]
        self.code_channels = math.ceil(CODE_NUMBERS / math.prod(code_shape(patch_size)))
        self.first = block(taken, widths[0])
        self.down = nn.ModuleList(block(*sizes) for sizes in zip(widths[:-1], widths[1:], strides, strict=True))
        self.to_code = convolution(widths[-1], self.code_channels, 1)
        self.from_code = block(self.code_channels, widths[-1])
        self.up = nn.ModuleList(block(*sizes) for sizes in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.last = convolution(widths[0], given, 1)

    def forward(self, maps: Tensor, code_noise: float = 0.0, code_noise_bound: float | None = None) -> Tensor:
        """Logits of the repaired label maps, (B, given, *S).

        Args:
            maps: (B, taken, *S).
            code_noise: standard deviation of Gaussian noise on the code.
            code_noise_bound: it is clamped to plus or minus this.
        """
        x, shapes = self.first(maps), []
        for down in self.down:
            shapes.append(x.shape[2:])
            x = down(x)
        x = self.from_code(noisy(self.to_code(x), code_noise, code_noise_bound))
        for up, shape in zip(self.up, reversed(shapes), strict=True):
            x = up(interpolate(x, size=shape, mode="nearest"))
        logits: Tensor = self.last(x)
        return logits


def halvings(patch_size: Sequence[int]) -> list[tuple[int, ...]]:
    """Strides from a patch to its code: at each level, the axes are halved that are longer than half of the longest.

    Example:
        >>> halvings((4, 16, 12))
        [(1, 2, 2), (1, 2, 2)]
    """
    size, strides = tuple(patch_size), []
    while max(size) > CODE_SIZE:
        stride = tuple(2 if 2 * length > max(size) else 1 for length in size)
        strides.append(stride)
        size = tuple(-(-length // s) for length, s in zip(size, stride, strict=True))
    return strides


def code_shape(patch_size: Sequence[int]) -> tuple[int, ...]:
    """Voxels of the code along each axis."""
    size = tuple(patch_size)
    for stride in halvings(patch_size):
        size = tuple(-(-length // s) for length, s in zip(size, stride, strict=True))
    return size


def train_autoencoder(
    autoencoder: ShapeAutoencoder,
    batches: Iterator[dict[str, Any]],
    coding: LabelCoding,
    iterations: int,
    learning_rate: float,
    random: np.random.Generator,
    log: Callable[[str], None],
) -> None:
    """Teach the autoencoder to repair corrupted label maps; it is frozen afterwards.

    SGD with a cosine schedule, as the authors have it; momentum and weight decay are UA-MT's. They keep the weights
    that do best on validation cases; here the last ones are kept, so that no label of a validation case is seen.

    Args:
        autoencoder: in any state; on the device of the batches.
        batches: of :class:`~alhvr_trainer.data.label_loader.LabelLoader`.
        coding: of the labels.
        iterations: batches.
        learning_rate: at the start.
        random: draws the corruption; noise comes from torch's global generator.
        log: gets the loss, ten times.

    Raises:
        InputError: the loss is not finite.
    """
    autoencoder.requires_grad_(True).train()
    optimizer = torch.optim.SGD(autoencoder.parameters(), learning_rate, MOMENTUM, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for step in range(1, iterations + 1):
        loss = _loss(autoencoder, next(batches)["labels"], coding, random)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step * REPORTS // iterations > (step - 1) * REPORTS // iterations:
            found = float(loss.detach())
            log(f"ALHVR: shape autoencoder, iteration {step} of {iterations}: loss {found:.4f}")
            if not math.isfinite(found):
                raise InputError('the shape autoencoder\'s loss is not finite; lower "alhvr.shape_learning_rate"')
    autoencoder.requires_grad_(False).eval()
    autoencoder.zero_grad(set_to_none=True)
    autoencoder.trained.fill_(True)


def _loss(autoencoder: ShapeAutoencoder, labels: Tensor, coding: LabelCoding, random: np.random.Generator) -> Tensor:
    known = coding.known(labels)
    plain = labels * known
    maps = noisy(coding.as_input(corrupted(plain, random)), INPUT_NOISE, INPUT_NOISE_BOUND)
    return shape_loss(autoencoder(maps), coding.as_shapes(plain), not coding.regions, known)
