"""What a training logs per step and per epoch: losses, terms, and each class's share in pseudo-labels and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alhvr_trainer.losses.sums import Group, total
from alhvr_trainer.losses.voxels import count_classes, valid_voxels
from alhvr_trainer.trainers.samples import Forward, Samples, full_resolution

History = dict[str, list[float]]
"""Epoch means by name."""

DISAGREEMENT = "disagreement"
"""Share of voxels on which networks that teach each other have different pseudo-labels."""


def pseudo_label_key(number: int) -> str:
    """Name in the history of a class's share of the voxels in the pseudo-labels of the unlabeled samples."""
    return f"pseudo_label_{number}"


def label_key(number: int) -> str:
    """Name in the history of a class's share of the voxels in the labels of the labeled samples."""
    return f"label_{number}"


@dataclass(frozen=True)
class HistoryKeys:
    """Names in the history of a method.

    Example:
        >>> HistoryKeys(("a",), ("mse",), classes=(1,)).all()
        ('supervised_a', 'mse', 'weight', 'pseudo_label_1', 'label_1')
    """

    losses: tuple[str, ...]
    """Of the supervised losses, without their prefix."""
    terms: tuple[str, ...]
    observed: tuple[str, ...] = ()
    co_trained: bool = False
    classes: tuple[int, ...] = ()
    """Numbers of the foreground classes or regions."""

    @property
    def supervised(self) -> tuple[str, ...]:
        return tuple(f"supervised_{name}" for name in self.losses)

    def all(self) -> tuple[str, ...]:
        disagreement = (DISAGREEMENT,) if self.co_trained else ()
        return (*self.supervised, *self.terms, "weight", *self.observed, *disagreement, *class_keys(self.classes))


def foreground_names(labels: Mapping[str, Any], regions: bool) -> dict[int, str]:
    """Names of the foreground classes by number, or of the regions, which count from 1 in the order of their channels.

    Args:
        labels: ``"labels"`` of dataset.json.
        regions: whether training is region-based.

    Example:
        >>> foreground_names({"background": 0, "core": 2, "shell": 1, "ignore": 3}, regions=False)
        {1: 'shell', 2: 'core'}
        >>> foreground_names({"background": 0, "all": [1, 2], "core": 2}, regions=True)
        {1: 'all', 2: 'core'}
    """
    foreground = {name: np.atleast_1d(value) for name, value in labels.items() if name != "ignore" and np.any(value)}
    if regions:
        return dict(enumerate(foreground, start=1))
    return dict(sorted((int(value[0]), name) for name, value in foreground.items()))


def class_keys(numbers: Sequence[int]) -> tuple[str, ...]:
    """The history's names of each class's share in the pseudo-labels and in the labels."""
    return (*map(pseudo_label_key, numbers), *map(label_key, numbers))


def label_voxels(
    labels: Tensor, inside: Tensor, classes: int, regions: bool, ignore_label: int | None
) -> tuple[Tensor, Tensor]:
    """Number of voxels of each foreground class in the labels, and number of annotated voxels.

    Args:
        labels: of the labeled samples, (L, 1, *S), or (L, R, *S), one channel per region; after these, one for the
            ignore label if there is one. Background outside the image.
        inside: voxels of these samples inside the image.
        classes: foreground classes or regions.
        regions: whether training is region-based.
        ignore_label: the label after the last class; None if there is none.

    Returns:
        Voxels of each class or region, (classes,), and all annotated voxels inside the image.
    """
    if regions:
        counts = (labels > 0).transpose(0, 1).flatten(1).sum(dim=1)
    else:
        counts = count_classes(labels, 1 + classes + (ignore_label is not None))[1:]
    return counts[:classes], inside if ignore_label is None else inside - counts[classes]


@torch.no_grad()
def step_values(
    keys: HistoryKeys,
    supervised: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    forward: Forward,
    samples: Samples,
    label_manager: Any,
    group: Group = None,
) -> dict[str, Tensor]:
    """The history's values of one training step, all but the weight, on the device.

    They also hold sums of logits, which reveal a NaN or Inf even where the loss stays finite.

    Args:
        keys: names of the values.
        supervised: losses by name.
        values: terms and observed values by name.
        forward: what the networks gave.
        samples: what they saw.
        label_manager: nnU-Net's, of the dataset.
        group: the ranks that the batch is spread over; losses, terms and counts are shares, whose sum is wanted.
    """
    number = samples.data.dtype  # float32, whatever type autocast gave the rest
    named = dict(zip(keys.supervised, supervised.values(), strict=True))
    named |= {name: values[name] for name in (*keys.terms, *keys.observed)}
    for name, outputs in forward.labeled.items():
        named[f"labeled_logits_{name}"] = full_resolution(outputs).sum(dtype=number)
    for name, logits in forward.logits.items():
        named[f"logits_{name}"] = logits.sum(dtype=number)
    named |= _label_shares(keys, samples, label_manager, group)
    named |= _pseudo_label_shares(keys, forward, samples, label_manager.has_regions, group)
    found = total(torch.stack([value.to(number) for value in named.values()]), group)
    return dict(zip(named, found.unbind(), strict=True))


def _label_shares(keys: HistoryKeys, samples: Samples, manager: Any, group: Group) -> dict[str, Tensor]:
    counts, annotated = label_voxels(
        full_resolution(samples.labels),
        samples.labeled_voxels,
        len(keys.classes),
        manager.has_regions,
        manager.ignore_label,
    )
    # 0 if there is nothing to count: a patch may be all padding, or all ignore label
    everywhere = total(annotated, group).clamp_min(1)
    return dict(zip(map(label_key, keys.classes), (counts / everywhere).unbind(), strict=True))


def _pseudo_label_shares(
    keys: HistoryKeys, forward: Forward, samples: Samples, regions: bool, group: Group
) -> dict[str, Tensor]:
    """Shares of the unlabeled samples' voxels, means over the networks."""
    unlabeled, valid = len(samples.data) - samples.labeled, samples.unlabeled_valid
    logits = [z[-unlabeled:] for z in forward.logits.values()]
    if regions:
        labels = [z > 0 for z in logits]
        inside = [y if valid is None else y & valid.unsqueeze(1) for y in labels]
        counts = [y.transpose(0, 1).flatten(1).sum(dim=1) for y in inside]
    else:
        # not argmax: over a strided axis it takes six times as long on the CPU
        labels = [z.max(dim=1).indices for z in logits]
        counts = [count_classes(y, 1 + len(keys.classes), valid)[1:] for y in labels]
    voxels = valid_voxels(labels[0][:, 0] if regions else labels[0], valid, group)
    shares = torch.stack(counts).sum(dim=0) / (len(labels) * voxels)
    named = dict(zip(map(pseudo_label_key, keys.classes), shares.unbind(), strict=True))
    if keys.co_trained:
        different = torch.stack([y != labels[0] for y in labels[1:]]).any(dim=0)
        different = different.any(dim=1) if regions else different
        named[DISAGREEMENT] = (different if valid is None else different & valid).sum() / voxels
    return named


def summary_line(history: History, classes: Mapping[int, str]) -> str:
    """The last epoch in one line of the training log; of each class the share in the pseudo-labels (in the labels)."""
    shown = {key: values for key, values in history.items() if key not in class_keys(list(classes))}
    shares = [
        f"{number} {name} {history[pseudo_label_key(number)][-1]:.4f} ({history[label_key(number)][-1]:.4f})"
        for number, name in classes.items()
    ]
    values = ", ".join(f"{key} {values[-1]:.4f}" for key, values in shown.items())
    return f"{values}; pseudo-labels (labels): {', '.join(shares)}"
