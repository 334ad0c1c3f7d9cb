"""Which pseudo-labels are good enough to train on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alhvr_trainer.bundle.scripts.uncertainty import mean_dice
from alhvr_trainer.config.files import read_object
from alhvr_trainer.config.names import UNCERTAINTY_FOLDER

DEFAULT_THRESHOLD = 0.85
"""On Hippocampus, pseudo-labels below it had a real Dice of about 0.6, and the others 0.8: docs/annotation.md."""


@dataclass(frozen=True)
class Judged:
    """A pseudo-label and how far it is to be trusted."""

    opinions: float | None
    """Expected Dice between the teacher's opinions; None where none of them finds anything."""
    rounds: float | None
    """Dice with the round before; None in the first round, or where neither finds anything."""
    kept: bool

    @property
    def agreement(self) -> float | None:
        """The lower one of the two; None where the teacher finds nothing."""
        if self.opinions is None or self.rounds is None:
            return self.opinions
        return min(self.opinions, self.rounds)


def judge(opinions: float | None, rounds: float | None, threshold: float) -> Judged:
    """Keep a case whose opinions agree, and agree with the round before.

    A case in which nothing is found is dropped: nothing says that nothing is there.

    Args:
        opinions, rounds: see :class:`Judged`.
        threshold: the least Dice.

    Example:
        >>> judge(0.9, None, 0.7).kept, judge(0.9, 0.5, 0.7).kept, judge(None, None, 0.7).kept
        (True, False, False)
    """
    agreement = Judged(opinions, rounds, kept=False).agreement
    return Judged(opinions, rounds, agreement is not None and agreement >= threshold)


def dice_between(one: np.ndarray, other: np.ndarray, classes: Mapping[str, Sequence[int]]) -> float | None:
    """Mean Dice of two label maps (*S) over the classes that one of them has; None if there is none.

    Example:
        >>> dice_between(np.array([0, 1, 2]), np.array([0, 1, 1]), {"a": (1,), "b": (2,)})
        0.3333333333333333
    """
    dice = [mean_dice(np.stack([np.isin(one, values), np.isin(other, values)])) for values in classes.values()]
    known = [value for value in dice if value is not None]
    return sum(known) / len(known) if known else None


def judge_cases(
    cases: Sequence[str],
    predicted: Path,
    previous: Path | None,
    classes: Mapping[str, Sequence[int]],
    threshold: float,
    reader: Any,
    ending: str,
) -> dict[str, Judged]:
    """Case -> judgment.

    Args:
        cases: names.
        predicted: segmentations, with ``uncertainty/CASE.json``.
        previous: segmentations of the round before.
        classes: name -> values.
        threshold: the least Dice.
        reader: nnU-Net's reader of segmentations.
        ending: of the files.
    """
    judged = {}
    for case in cases:
        scores = read_object(predicted / UNCERTAINTY_FOLDER / f"{case}.json")
        between = None
        if previous is not None:
            one, other = (reader.read_seg(str(folder / f"{case}{ending}"))[0] for folder in (predicted, previous))
            between = dice_between(one, other, classes)
        judged[case] = judge(scores["expected_dice"], between, threshold)
    return judged
