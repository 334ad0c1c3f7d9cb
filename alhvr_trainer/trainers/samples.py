"""What passes between the base trainer and a method in one training step."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor

from alhvr_trainer.losses.host import host_may_look
from alhvr_trainer.losses.precision import at_least_float32
from alhvr_trainer.losses.sums import Group
from alhvr_trainer.losses.voxels import masked_mean

Outputs: TypeAlias = "Tensor | list[Tensor]"
"""Logits as nnU-Net's networks give them: (B, C, *S), with deep supervision a list, full resolution first."""


@dataclass(frozen=True)
class Samples:
    """A batch of L labeled samples and, after them, U unlabeled ones, on the training's device."""

    data: Tensor
    """(L+U, channels, *S)."""
    labels: Outputs
    """Of the labeled samples, as nnU-Net's loss takes them: (L, 1, *S), or one channel per region."""
    valid: Tensor | None
    """(L+U, *S) bool, False where nnU-Net padded a sample; None if nothing is padded."""
    unlabeled_valid: Tensor | None
    """The same of the unlabeled samples, (U, *S) bool."""
    labeled: int
    """L."""
    labeled_voxels: Tensor
    """Voxels of the labeled samples inside the image."""
    cases: list[str]
    """Names of the cases that the samples were drawn from."""


@dataclass(frozen=True)
class Forward:
    """What the networks give for a batch."""

    labeled: dict[str, Outputs]
    """For the labeled samples, by the names in the trainer's ``supervised``; each has nnU-Net's loss."""
    logits: dict[str, Tensor]
    """What the unsupervised terms compare, full resolution: for the U unlabeled samples, (U, C, *S), or for all,
    (L+U, C, *S). The classes that they predict for the unlabeled ones are counted for the log."""
    maps: dict[str, Tensor] = field(default_factory=dict)
    """Whatever else the terms compare, by name: feature maps, perturbed logits, averaged probabilities."""


@dataclass(frozen=True)
class Predictions:
    """What the networks predict, in the one form that every method can take.

    With regions, which overlap, each of the R channels is a two-class problem of its own, "in" against "out": B samples
    become B * R, and ``softmax((0, z)) = (1 - sigmoid(z), sigmoid(z))``.
    """

    raw_logits: dict[str, Tensor]
    """:attr:`Forward.logits`."""
    regions: bool
    """Whether training is region-based."""
    valid: Tensor | None
    """Of the same samples, (B, *S) bool or (B * R, *S); None: all voxels are inside the image."""
    supervised: dict[str, Tensor]
    """The supervised losses of the batch, each this rank's share."""
    group: Group
    """The ranks that the batch is spread over."""
    maps: dict[str, Tensor]
    """:attr:`Forward.maps`."""

    @cached_property
    def logits(self) -> dict[str, Tensor]:
        """float32 (float64 where the networks are), (B, C, *S); with regions (B * R, 2, *S). Made when asked for."""
        return {name: as_classes(value, self.regions) for name, value in self.raw_logits.items()}

    def mean(self, values: Tensor) -> Tensor:
        """This rank's share of the mean over all voxels inside the image.

        Args:
            values: one per voxel, (B, *S) or (B * R, *S), numbers or a mask.
        """
        return masked_mean(values, self.valid, self.group)


def full_resolution(outputs: Outputs) -> Tensor:
    """(B, C, *S), out of what a network with or without deep supervision gives."""
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def first(outputs: Outputs, samples: int) -> Outputs:
    """The outputs of the first samples, at all resolutions."""
    return outputs[:samples] if isinstance(outputs, Tensor) else [output[:samples] for output in outputs]


def annotated(samples: Samples, label_manager: Any) -> Tensor | None:
    """Where the labeled samples have a label, inside the image and not ignored, (L, *S) bool; None: everywhere.

    Args:
        samples: of a step.
        label_manager: nnU-Net's, of the dataset.
    """
    labels = full_resolution(samples.labels)
    inside = None if samples.valid is None else samples.valid[: samples.labeled]
    if not label_manager.has_ignore_label:
        return inside
    known = labels[:, -1] == 0 if label_manager.has_regions else labels[:, 0] != label_manager.ignore_label
    return known if inside is None else known & inside


def as_classes(logits: Tensor, regions: bool) -> Tensor:
    """Logits for a softmax: as they are, or of region channels (U, R, *S) the two-class form (U * R, 2, *S)."""
    if not regions:
        return at_least_float32(logits)
    inside = at_least_float32(logits).flatten(0, 1)
    return torch.stack((torch.zeros_like(inside), inside), dim=1)


def predictions(
    forward: Forward, samples: Samples, supervised: dict[str, Tensor], regions: bool, group: Group
) -> Predictions:
    """What the networks predict, as methods take it.

    Args:
        forward: of the batch.
        samples: the batch.
        supervised: its supervised losses.
        regions: whether training is region-based.
        group: the ranks that the batch is spread over.
    """
    shape = next(iter(forward.logits.values())).shape
    valid = samples.valid if shape[0] == len(samples.data) else samples.unlabeled_valid
    if regions and valid is not None:
        valid = valid.repeat_interleave(shape[1], dim=0)
    return Predictions(forward.logits, regions, valid, supervised, group, forward.maps)


def take_apart(batch: dict[str, Any], labeled: int, device: torch.device, always_masked: bool = False) -> Samples:
    """A loader's batch on the training's device, its target split into labels and validity mask.

    Args:
        batch: ``data`` (L+U, channels, *S); ``target`` (L+U, 1 + 1, *S), label and validity mask; with regions one
            channel each, and the ignore label's, in place of the label; with deep supervision a list, full resolution
            first; ``keys``, the cases.
        labeled: L.
        device: of the training.
        always_masked: give a mask even if nothing is padded.
    """
    target = batch["target"]
    scales = target if isinstance(target, list) else [target]
    # a slice of pinned memory is not pinned: the whole goes, and is cut there
    labels = [scale.to(device, non_blocking=True)[:labeled, :-1] for scale in scales]
    inside = scales[0][:, -1] > 0

    def mask(inside: Tensor) -> Tensor | None:
        whole = not always_masked and host_may_look(inside) and bool(inside.all())
        return None if whole else inside.to(device, non_blocking=True)

    return Samples(
        data=batch["data"].to(device, non_blocking=True),
        labels=labels if isinstance(target, list) else labels[0],
        valid=mask(inside),
        unlabeled_valid=mask(inside[labeled:]),
        labeled=labeled,
        labeled_voxels=torch.count_nonzero(inside[:labeled]).to(device, non_blocking=True),
        cases=[str(case) for case in batch["keys"]],
    )
