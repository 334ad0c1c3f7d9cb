"""Which pseudo-labels are kept."""

from __future__ import annotations

import numpy as np
import pytest

from alhvr_trainer.pseudo_labels.selection import dice_between, judge

pytestmark = pytest.mark.any_nnunet

CLASSES = {"shell": (1,), "core": (2,)}


@pytest.mark.parametrize(
    ("opinions", "rounds", "threshold", "kept"),
    [
        (0.8, None, 0.7, True),
        (0.6, None, 0.7, False),
        (0.8, 0.9, 0.7, True),
        (0.8, 0.6, 0.7, False),
        (0.6, 0.9, 0.7, False),
        (0.7, 0.7, 0.7, True),
        (None, None, 0.0, False),
        (None, 0.9, 0.0, False),
        (0.0, 0.0, 0.0, True),
    ],
)
def test_kept_where_all_agree(opinions: float | None, rounds: float | None, threshold: float, kept: bool):
    assert judge(opinions, rounds, threshold).kept == kept


def test_dice_between_rounds_by_hand():
    """shell: 2 and 1 voxels, one in common; core: nobody has it, then one has."""
    one, other = np.array([[1, 1], [0, 0]]), np.array([[1, 0], [0, 0]])
    assert dice_between(one, other, CLASSES) == pytest.approx(2 / 3)
    assert dice_between(one, np.array([[1, 0], [0, 2]]), CLASSES) == pytest.approx(1 / 3)
    assert dice_between(one * 0, other * 0, CLASSES) is None and dice_between(one, one, CLASSES) == 1.0
