"""Maps and scores of several opinions: hand-computed values, limits, and ALHVR's regions as training has them."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from alhvr_trainer.bundle.scripts import uncertainty as module
from alhvr_trainer.bundle.scripts.uncertainty import (
    DISAGREEMENT,
    ENTROPY,
    REGIONS,
    Opinions,
    alhvr_regions,
    compare,
    confidence,
    labels_of_logits,
    scores,
    write_scores,
    write_table,
)

from alhvr_trainer.losses.regions import split_regions


def maps_of(*logits: torch.Tensor, order: list[int] | None = None) -> dict[str, torch.Tensor]:
    opinions = Opinions(len(logits), order)
    for each in logits:
        opinions.add(each)
    return opinions.maps()


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities).log().reshape(-1, 1, 1)


def test_by_hand():
    """Means 0.6 and 0.4; the entropies of (0.9, 0.1) and (0.3, 0.7) in bits."""
    entropy = [-sum(p * math.log2(p) for p in each) for each in ((0.6, 0.4), (0.9, 0.1), (0.3, 0.7))]
    found = maps_of(logits_of(0.9, 0.1), logits_of(0.3, 0.7))
    assert found[ENTROPY].item() == pytest.approx(entropy[0], abs=1e-3)
    assert found[DISAGREEMENT].item() == pytest.approx(entropy[0] - (entropy[1] + entropy[2]) / 2, abs=1e-3)


def test_of_regions_by_hand():
    """Sigmoids: of the first region 0.9 and 0.3, of the second one half twice, which is a whole bit."""
    of_first = [-(p * math.log2(p) + (1 - p) * math.log2(1 - p)) for p in (0.6, 0.9, 0.3)]
    logits = [torch.logit(torch.tensor([p, 0.5])).reshape(2, 1, 1) for p in (0.9, 0.3)]
    found = maps_of(*logits, order=[1, 2])
    assert found[ENTROPY].item() == pytest.approx((of_first[0] + 1) / 2, abs=1e-3)
    expected = (of_first[0] - (of_first[1] + of_first[2]) / 2) / 2
    assert found[DISAGREEMENT].item() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("number", [2, 3, 4, 8])
def test_limits(number: int):
    guess, sure = torch.zeros(5, 2, 3, 4), torch.tensor([60.0, 0, 0, 0, 0]).reshape(5, 1, 1, 1).expand(5, 2, 3, 4)
    same, certain = maps_of(*[guess] * number), maps_of(*[sure] * number)
    torch.testing.assert_close(same[ENTROPY], torch.ones(2, 3, 4), rtol=0, atol=1e-3)
    assert same[DISAGREEMENT].max() < 1e-3 and certain[ENTROPY].max() < 1e-3
    each = [torch.eye(5)[index % 5].mul(60).reshape(5, 1, 1) for index in range(number)]
    if number <= 5:  # more opinions than classes cannot all differ
        assert maps_of(*each)[DISAGREEMENT].item() == pytest.approx(1.0, abs=1e-3)


def test_the_parts_change_nothing(monkeypatch: pytest.MonkeyPatch):
    logits = [torch.randn(3, 7, 5, 4, generator=torch.Generator().manual_seed(seed)).half() for seed in range(2)]
    whole = maps_of(*logits)
    monkeypatch.setattr(module, "SLAB", 2 * 5 * 4)
    for name, values in maps_of(*logits).items():
        torch.testing.assert_close(values, whole[name], rtol=0, atol=0)


def test_regions_are_those_of_training():
    logits = [torch.randn(1, 3, 6, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    expected = split_regions(*(each.softmax(1) for each in logits), proportion=0.7)
    found = alhvr_regions(*(confidence(each[0]) for each in logits), proportion=0.7)
    for number, mask in enumerate((expected.omega1, expected.omega2a | expected.omega2b, expected.omega3), start=1):
        assert torch.equal(found == number, mask[0]) and mask.any()


def test_only_what_counts_is_part_of_the_segmentation():
    logits = [torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    mean, maps, labels = compare([(each.clone(), seed != 1) for seed, each in enumerate(logits)], 3, proportion=0.8)
    torch.testing.assert_close(mean, (logits[0] + logits[2]) / 2, rtol=0, atol=0)
    assert torch.equal(labels, torch.stack(logits).argmax(dim=1)) and set(maps) == {ENTROPY, DISAGREEMENT, REGIONS}
    torch.testing.assert_close(maps[ENTROPY], maps_of(*logits)[ENTROPY])
    assert torch.equal(maps[REGIONS], alhvr_regions(confidence(logits[0]), confidence(logits[1]), 0.8))
    alone, _, _ = compare([(logits[0].clone(), True), (logits[1].clone(), False)], 2)
    assert alone is not None and torch.equal(alone, logits[0])
    assert compare([(logits[0], False), (logits[1], False)], 2)[0] is None


def test_labels_of_regions_paint_over_earlier_ones():
    logits = torch.tensor([[1.0, 1.0, -1.0], [-1.0, 1.0, 1.0]])
    assert labels_of_logits(logits, [7, 9]).tolist() == [7, 9, 9]
    assert labels_of_logits(logits).tolist() == [0, 0, 1]


def test_scores_by_hand():
    """Three opinions on "organ", 4, 2 and 2 voxels: Dice 4/6, 4/6 and 0; nobody finds "lesion"."""
    opinions = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0]])
    entropy = np.array([0.1, 0.1, 0.1, 0.1, 0.6, 0.9])
    found = scores(opinions[0], opinions, entropy, {"organ": (1,), "lesion": (2,)})
    assert found["classes"]["lesion"] == {"expected_dice": None, "entropy": None}
    assert found["classes"]["organ"]["expected_dice"] == pytest.approx(4 / 9)
    assert found["classes"]["organ"]["entropy"] == pytest.approx(1.0 / 5)  # one voxel next to it
    assert found["expected_dice"] == pytest.approx(4 / 9) and found["entropy"] == pytest.approx(0.2)


def test_a_class_that_one_opinion_lacks_has_no_dice_with_it():
    opinions = np.array([[1, 1, 0], [0, 0, 0]])
    assert scores(opinions[0], opinions, np.zeros(3), {"organ": (1,)})["expected_dice"] == 0.0


def test_the_table_has_the_least_sure_case_first(tmp_path: Path):
    one = np.array([0, 1, 1, 0])
    for case, other in (("sure", one), ("unsure", np.array([1, 1, 0, 0])), ("empty.1", one * 0)):
        opinions = np.stack([one * other.any(), other])
        write_scores(scores(opinions[0], opinions, np.full(4, 0.25), {"organ": (1,)}), tmp_path, case)
    rows = list(csv.reader(write_table(tmp_path).open(encoding="utf-8")))
    assert rows[0] == ["case", "class", "expected_dice", "entropy"]
    assert rows[1:3] == [["empty.1", "mean", "", ""], ["empty.1", "organ", "", ""]]
    assert rows[3] == ["unsure", "mean", "0.5000", "0.2500"] and rows[-1] == ["sure", "organ", "1.0000", "0.2500"]
