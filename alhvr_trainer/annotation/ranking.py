"""In which order to annotate: the least sure cases first, and no two that look alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool3d

METHODS = ("disagreement", "entropy", "foreground", "random")
THUMBNAIL = (16, 16, 16)


def need(scores: Mapping[str, Any], method: str) -> float:
    """How much a case needs a label by its scores; one in which nothing was found needs it most.

    Args:
        scores: "expected_dice" and "entropy", as ``alhvr predict --uncertainty`` writes them.
        method: "disagreement" or "entropy".

    Example:
        >>> need({"expected_dice": 0.75, "entropy": 0.1}, "disagreement")
        0.25
    """
    value = scores["expected_dice" if method == "disagreement" else "entropy"]
    if value is None:
        return 1.0
    return 1.0 - value if method == "disagreement" else float(value)


def choose(needs: Sequence[float], distances: np.ndarray, number: int, diversity: float) -> list[int]:
    """Cases one after the other: each time that with the largest ``(1 - d) rank + d distance``.

    The rank is the case's place by its need, from 0 to 1; the distance is that to the nearest case that is chosen
    already, as a share of the largest one left.

    Args:
        needs: of N cases.
        distances: (N, N), symmetric.
        number: how many to choose, at most N.
        diversity: d, from 0, needs alone, to 1, distances alone after the first case.

    Returns:
        Indices, the most urgent case first.

    Source: this package; choosing greedily by distance is Sener & Savarese, ICLR 2018.

    Example:
        >>> choose([0.9, 0.8, 0.1], np.array([[0, 0, 1], [0, 0, 1], [1, 1, 0]]), 2, diversity=0.6)
        [0, 2]
    """
    ranks = np.argsort(np.argsort(needs, kind="stable"), kind="stable") / max(1, len(needs) - 1)
    left, chosen = list(range(len(needs))), list[int]()
    while left and len(chosen) < number:
        apart = distances[left][:, chosen].min(axis=1) if chosen else np.zeros(len(left))
        value = (1 - diversity) * ranks[left] + diversity * apart / max(apart.max(), 1e-12)
        best = left[int(np.argmax(value))]
        chosen.append(best)
        left.remove(best)
    return chosen


def draw(weights: Sequence[float], number: int, seed: int) -> list[int]:
    """Cases at random without repetition, each with a probability in proportion to its weight.

    Where fewer cases than wanted have a weight, others follow at random.

    Args:
        weights: at least 0; all alike for plain chance.
        number: how many.
        seed: of the draw.

    Example:
        >>> draw([0.0, 1.0, 0.0], 1, seed=0)
        [1]
    """
    generator = np.random.default_rng(seed)
    # the largest of u^(1 / w) are such a draw (Efraimidis & Spirakis, 2006); without weight, below all others
    keys = [generator.random() ** (1 / w) if w > 0 else generator.random() - 1 for w in _scaled(weights)]
    return np.argsort(keys)[::-1][:number].tolist()


def _scaled(weights: Sequence[float]) -> list[float]:
    largest = max(weights, default=0)
    return [weight / largest if largest > 0 else 1.0 for weight in weights]


def thumbnail(image: np.ndarray) -> np.ndarray:
    """What tells whether two images look alike: 16 x 16 x 16 mean intensities, with mean 0 and length 1.

    Args:
        image: (channels, z, y, x), of a 2D image z = 1.

    Returns:
        (channels * 16^3,) float32; zeros for an image of one intensity.
    """
    small = adaptive_avg_pool3d(torch.as_tensor(np.ascontiguousarray(image, np.float32)), THUMBNAIL).flatten(1).numpy()
    small = small - small.mean(axis=1, keepdims=True)
    flat = (small / np.maximum(small.std(axis=1, keepdims=True), 1e-12)).ravel()
    return flat / max(float(np.linalg.norm(flat)), 1e-12)


def distances_between(thumbnails: np.ndarray) -> np.ndarray:
    """1 - correlation of each pair of :func:`thumbnail`, (N, D) to (N, N): 0 for the same image, at most 2."""
    return np.clip(1 - thumbnails @ thumbnails.T, 0, 2)
