"""How sure a model is of a case: maps and scores out of several opinions, which networks or mirrored copies give.

Three maps, each from 0, sure:

- **entropy** of the mean prediction, as a share of the largest one: 1 is a guess among all classes.
- **disagreement**: by how much this exceeds the mean entropy of the single predictions (their Jensen-Shannon
  divergence, the mutual information of Houlsby et al., 2011), as a share of the largest one possible.
- **regions** of ALHVR: 1 where both networks are sure, 2 where one is, 3 where neither is.

And scores of a case and of each class: the **expected Dice**, which is the mean Dice between the segmentations of any
two opinions, and the mean **entropy** over the segmentation and the voxels next to it.

Everything is computed on the voxels that the network sees, and the maps are then resampled to the image.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

ENTROPY, DISAGREEMENT, REGIONS = "entropy", "disagreement", "regions"
TABLE = "scores.csv"
SLAB = 2**20
"""Voxels whose probabilities are held in single precision at a time."""


class Opinions:
    """Gathers the opinions on one case one by one, so that no more than one of them is held besides their mean.

    Args:
        number: of opinions that will come.
        order: of a model of overlapping regions, the label of each (nnU-Net's ``regions_class_order``); else None.

    Example:
        >>> opinions = Opinions(2)
        >>> for logits in ([[[0.0]], [[50.0]]], [[[50.0]], [[0.0]]]):
        ...     opinions.add(torch.tensor(logits))
        >>> opinions.maps()[DISAGREEMENT].item(), opinions.segmentations.flatten().tolist()
        (1.0, [1, 0])
    """

    def __init__(self, number: int, order: Sequence[int] | None = None) -> None:
        self.number, self.order = number, order
        self._labels: list[torch.Tensor] = []
        self._mean = self._entropy = torch.empty(0)

    def add(self, logits: torch.Tensor) -> None:
        """One opinion: logits (K, *S) on the CPU."""
        if not self._labels:
            self._mean = torch.zeros(logits.shape, dtype=torch.half)  # as nnU-Net's logits: it is large
            self._entropy = torch.zeros(logits.shape[1:])
        for part in _slabs(logits.shape):
            of_part = logits[:, part].float()
            probabilities = of_part.sigmoid() if self.order is not None else of_part.softmax(0)
            probabilities = (probabilities / self.number).half()
            self._mean[:, part] += probabilities
            self._entropy[part] += self._entropy_of(probabilities.float() * self.number) / self.number
        self._labels.append(labels_of_logits(logits, self.order))

    @property
    def segmentations(self) -> torch.Tensor:
        """(M, *S) int, one per opinion."""
        return torch.stack(self._labels)

    def maps(self) -> dict[str, torch.Tensor]:
        """Entropy and disagreement, (*S) float32 in [0, 1]."""
        entropy = torch.empty_like(self._entropy)
        for part in _slabs(self._mean.shape):
            entropy[part] = self._entropy_of(self._mean[:, part].float())
        channels = 2 if self.order is not None else len(self._mean)
        most = math.log(min(channels, self.number)) / math.log(channels) if self.number > 1 else 1.0
        return {ENTROPY: entropy, DISAGREEMENT: ((entropy - self._entropy) / most).clamp(0, 1)}

    def _entropy_of(self, probabilities: torch.Tensor) -> torch.Tensor:
        """(K, *S) to (*S), as a share of the largest one; of regions the mean over them."""
        if self.order is not None:
            both = torch.stack((probabilities, 1 - probabilities))
            return torch.special.entr(both).sum(0).mean(0) / math.log(2)
        probabilities = probabilities / probabilities.sum(0)  # rounding
        return torch.special.entr(probabilities).sum(0) / math.log(len(probabilities))


def compare(
    predictions: Iterable[tuple[torch.Tensor, bool]],
    number: int,
    order: Sequence[int] | None = None,
    proportion: float | None = None,
) -> tuple[torch.Tensor | None, dict[str, torch.Tensor], torch.Tensor]:
    """What several predictions of a case say together; they are taken one by one.

    Args:
        predictions: logits (K, *S) on the CPU, and whether they are part of the segmentation.
        number: of predictions.
        order: of a model of overlapping regions, the label of each; else None.
        proportion: ALHVR's beta, for its regions by the first two predictions; None: no regions.

    Returns:
        The mean logits of the segmentation's part, in nnU-Net's order of additions (None if there is none); the maps,
        (*S) each; and the labels of each prediction, (M, *S).
    """
    opinions, sure, total, counted = Opinions(number, order), list[torch.Tensor](), None, 0
    for logits, counts in predictions:
        opinions.add(logits)
        if proportion is not None and len(sure) < 2:
            sure.append(confidence(logits))
        if counts:
            total, counted = logits if total is None else total.add_(logits), counted + 1
    maps = opinions.maps()
    if proportion is not None:
        maps[REGIONS] = alhvr_regions(sure[0], sure[1], proportion)
    return total.div_(counted) if total is not None and counted > 1 else total, maps, opinions.segmentations


def labels_of_logits(logits: torch.Tensor, order: Sequence[int] | None = None) -> torch.Tensor:
    """Labels (*S) of logits (K, *S); with regions, a later one paints over earlier ones."""
    if order is None:
        return logits.argmax(0)
    labels = torch.zeros(logits.shape[1:], dtype=torch.long)
    for region, label in zip(logits, order, strict=True):
        labels[region > 0] = label
    return labels


def confidence(logits: torch.Tensor) -> torch.Tensor:
    """Probability of the likeliest class, (*S) float32, of logits (K, *S)."""
    found = torch.empty(logits.shape[1:])
    for part in _slabs(logits.shape):
        found[part] = logits[:, part].float().softmax(0).amax(0)
    return found


def alhvr_regions(a: torch.Tensor, b: torch.Tensor, proportion: float) -> torch.Tensor:
    """ALHVR's regions of a case by the confidences of both networks; in training they are of a batch's patches.

    Args:
        a, b: of :func:`confidence`, (*S).
        proportion: beta, the share of the least confident voxels whose mean is the threshold.

    Returns:
        (*S) int: 1 (both sure), 2 (one of them) or 3 (neither).

    Source: Lei et al., ICCV 2025, Eq. 11-14.

    Example:
        >>> alhvr_regions(torch.tensor([0.9, 0.9, 0.5]), torch.tensor([0.9, 0.5, 0.5]), 1.0).tolist()
        [1, 2, 3]
    """
    mean = ((a + b) / 2).flatten()
    least = torch.topk(mean, max(1, math.floor(proportion * len(mean))), largest=False, sorted=False).values
    threshold = torch.minimum(least.mean(), least.max())
    return 3 - (a >= threshold).long() - (b >= threshold).long()


def scores(
    segmentation: np.ndarray, opinions: np.ndarray, entropy: np.ndarray, classes: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """How sure a model is of a case: the means over its classes, and the classes.

    Args:
        segmentation: labels, (*S).
        opinions: labels, (M, *S).
        entropy: (*S).
        classes: name -> values, without the background.

    Returns:
        "expected_dice", "entropy" and "classes": name -> these two. None where there is nothing to tell from: no
        opinion, or not the segmentation, has the class.

    Example:
        >>> one, other = np.array([0, 1, 1, 1]), np.array([0, 0, 0, 1])
        >>> scores(one, np.stack([one, other]), np.array([0.5, 0.5, 0.5, 0.0]), {"organ": (1,)})["classes"]
        {'organ': {'expected_dice': 0.5, 'entropy': 0.375}}
    """
    found = {
        name: {
            "expected_dice": mean_dice(np.isin(opinions, values)),
            "entropy": _entropy_nearby(np.isin(segmentation, values), entropy),
        }
        for name, values in classes.items()
    }
    means = {score: _mean(each[score] for each in found.values()) for score in ("expected_dice", "entropy")}
    return {**means, "classes": found}


def mean_dice(masks: np.ndarray) -> float | None:
    """Mean Dice of all pairs of masks (M, *S) of which one at least is not empty; None if there is no such pair.

    Example:
        >>> mean_dice(np.array([[True, True, False], [True, False, False]]))
        0.6666666666666666
    """
    flat = masks.reshape(len(masks), -1)
    flat = flat[:, flat.any(axis=0)]
    sizes = [np.count_nonzero(mask) for mask in flat]
    return _mean(
        2 * np.count_nonzero(flat[i] & flat[j]) / (sizes[i] + sizes[j]) if sizes[i] + sizes[j] else None
        for i, j in combinations(range(len(flat)), 2)
    )


def _entropy_nearby(mask: np.ndarray, entropy: np.ndarray) -> float | None:
    return float(entropy[ndimage.binary_dilation(mask)].mean()) if mask.any() else None


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return float(sum(known) / len(known)) if known else None


def write_scores(found: Mapping[str, Any], folder: Path, case: str) -> None:
    """The scores of a case as ``CASE.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{case}.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def write_table(folder: Path) -> Path:
    """``scores.csv`` of all ``CASE.json`` in a folder, the least sure case first: one row per case and class.

    The rows of class "mean" are the cases' own; a case of which no opinion finds anything comes first.
    """
    cases = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}
    target = folder / TABLE
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("case", "class", "expected_dice", "entropy"))
        for case, found in sorted(cases.items(), key=lambda item: item[1]["expected_dice"] or 0.0):
            for name, each in (("mean", found), *found["classes"].items()):
                writer.writerow((case, name, *("" if v is None else f"{v:.4f}" for v in _both(each))))
    return target


def _both(found: Mapping[str, Any]) -> tuple[float | None, float | None]:
    return found["expected_dice"], found["entropy"]


def _slabs(shape: Sequence[int]) -> Iterator[slice]:
    """Parts of the first of the spatial axes of (K, *S), of about :data:`SLAB` voxels each."""
    step = max(1, SLAB // max(1, math.prod(shape[2:])))
    return (slice(first, first + step) for first in range(0, shape[1], step))
