"""The folds of a converted data set: one for each number of labeled cases.

Where the papers' lists are public, their case names are in ``lists/``, in the order of the lists: the papers' code
takes the first of them as labeled. Elsewhere the cases are drawn with ``choose_splits``, as ``alhvr make_split`` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alhvr_trainer.config.files import read_object
from alhvr_trainer.data.splits import choose_splits
from alhvr_trainer.experiments.convert.release import Split

SHARES = (0.05, 0.1, 0.2)
"""Labeled share of the training cases in folds 0, 1, 2 of a drawn split."""
_LISTS = Path(__file__).resolve().parent / "lists"


@dataclass(frozen=True)
class PaperSplit:
    """Cases (or patients) of a published split, in the published order."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]

    def all(self) -> tuple[str, ...]:
        return self.train + self.val + self.test


def paper_split(name: str) -> PaperSplit:
    """A published split: ``"acdc"`` (patients), ``"brats2019"`` or ``"la2018"``.

    Example:
        >>> paper_split("acdc").train[:3]
        ('patient099', 'patient038', 'patient050')
    """
    content = read_object(_LISTS / f"{name}.json")
    return PaperSplit(tuple(content["train"]), tuple(content["val"]), tuple(content["test"]))


def paper_folds(
    split: PaperSplit, labeled: Sequence[int], cases: Mapping[str, Sequence[str]] | None = None
) -> list[Split]:
    """One fold for each number of labeled groups: the first of the training list, as in the papers' code.

    Args:
        split: the published lists.
        labeled: numbers of labeled groups.
        cases: group -> its cases; default: every name in the lists is a case.

    Returns:
        Folds of ``splits_final.json``. Without validation cases in the split, ``"val"`` repeats the labeled cases:
        nnU-Net needs some, and all others are unlabeled or belong to the test set.

    Example:
        >>> paper_folds(PaperSplit(("b", "a", "c"), (), ("d",)), [1])
        [{'train': ['b'], 'unlabeled': ['a', 'c'], 'val': ['b']}]
    """

    def of(groups: Sequence[str]) -> list[str]:
        return sorted(groups if cases is None else (case for group in groups for case in cases[group]))

    return [
        {
            "train": of(split.train[:count]),
            "unlabeled": of(split.train[count:]),
            "val": of(split.val or split.train[:count]),
        }
        for count in labeled
    ]


def drawn_folds(cases: Sequence[str], validation: float, seed: int) -> list[Split]:
    """One fold for each of ``SHARES``, with the same validation cases, drawn at random.

    The labeled cases of a fold are among those of the next.

    Args:
        cases: all cases but the test set.
        validation: share of them that validates.
        seed: of the draw.

    Raises:
        InputError: there are too few cases.

    Example:
        >>> [len(fold["train"]) for fold in drawn_folds([str(number) for number in range(125)], 0.2, seed=0)]
        [5, 10, 20]
    """
    (largest,) = choose_splits(cases, SHARES[-1], validation=validation, seed=seed)
    training = sorted(largest["train"] + largest["unlabeled"])
    order = np.random.default_rng(seed).permutation(largest["train"]).tolist()
    folds = []
    for share in SHARES[:-1]:
        train = sorted(order[: max(1, round(share * len(training)))])
        unlabeled = [case for case in training if case not in train]
        folds.append({"train": train, "unlabeled": unlabeled, "val": largest["val"]})
    return [*folds, largest]


def drawn_test_cases(cases: Sequence[str], share: float, seed: int) -> list[str]:
    """Cases for the test set, drawn at random; sorted."""
    (split,) = choose_splits(cases, 1, validation=share, seed=seed)
    return split["val"]
