"""Choosing labeled, unlabeled and validation cases."""

from __future__ import annotations

import pytest

from alhvr_trainer.data.splits import choose_splits
from alhvr_trainer.errors import InputError

pytestmark = pytest.mark.any_nnunet

FRAMES = [f"patient{patient:03d}_frame{frame}" for patient in range(10) for frame in (1, 2)]


def patients(cases: list[str]) -> set[str]:
    return {case.split("_")[0] for case in cases}


def test_split_of_cases() -> None:
    (split,) = choose_splits(FRAMES, labeled=3)
    assert {key: len(cases) for key, cases in split.items()} == {"train": 3, "unlabeled": 13, "val": 4}
    assert sorted(split["train"] + split["unlabeled"] + split["val"]) == FRAMES
    assert choose_splits(FRAMES, 3) == [split], "the seed is fixed"
    assert choose_splits(FRAMES, 3, seed=1) != [split]


def test_groups_stay_together() -> None:
    (split,) = choose_splits(FRAMES, labeled=0.25, validation=2, group=r"patient\d+")
    assert {key: len(cases) for key, cases in split.items()} == {"train": 4, "unlabeled": 12, "val": 4}
    groups = [patients(cases) for cases in split.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 10


def test_several_folds_are_a_cross_validation() -> None:
    splits = choose_splits(FRAMES, labeled=2, folds=4, group=r"patient\d+")
    assert sorted(case for split in splits for case in split["val"]) == FRAMES
    assert [len(patients(split["train"])) for split in splits] == [2] * 4
    assert len({tuple(split["train"]) for split in splits}) > 1


def test_names_may_be_given() -> None:
    (split,) = choose_splits(FRAMES, "patient003,patient004_frame2", validation=["patient000"], group=r"patient\d+")
    assert patients(split["train"]) == {"patient003", "patient004"}
    assert split["val"] == ["patient000_frame1", "patient000_frame2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labeled": 0}, '"labeled" must be a number, a share between 0 and 1, or names, found 0'),
        ({"labeled": 1.0}, '"labeled" is 1.0: a share must be below 1'),
        ({"labeled": 99}, '"labeled" is 99, but there are only 16 cases'),
        ({"labeled": "nobody"}, '"labeled" names "nobody"'),
        (
            {"labeled": FRAMES[:1], "validation": FRAMES[:1]},
            f'"labeled" names "{FRAMES[0]}", which is not a case \\(left\\)',
        ),
        ({"labeled": 1, "group": "("}, '"group" is not a regular expression'),
        ({"labeled": 1, "group": "mouse"}, "\"group\" 'mouse' finds nothing in the case name"),
        ({"labeled": 1, "folds": 21}, '"folds" is 21, but there are only 20'),
    ],
)
def test_splits_that_cannot_be_made(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_splits(FRAMES, **arguments)
