"""In which order cases are suggested: by need, by distance, by chance."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from alhvr_trainer.annotation.ranking import choose, distances_between, draw, need, thumbnail

pytestmark = pytest.mark.any_nnunet

APART = np.array([[0.0, 0.01, 0.8, 0.9], [0.01, 0.0, 0.8, 0.9], [0.8, 0.8, 0.0, 0.5], [0.9, 0.9, 0.5, 0.0]])
"""The first two of four cases look alike."""
NEEDS = [0.9, 0.8, 0.3, 0.1]


def test_by_need_alone():
    assert choose(NEEDS, APART, 4, diversity=0.0) == [0, 1, 2, 3]


def test_of_two_alike_one_comes_later():
    assert choose(NEEDS, APART, 2, diversity=0.0) == [0, 1]
    assert choose(NEEDS, APART, 2, diversity=0.6) == [0, 2]


def test_by_distance_alone_from_the_second_on():
    """The first by need has no distance: of equals the first in the list; then the farthest from all above."""
    assert choose(NEEDS, APART, 3, diversity=1.0) == [0, 3, 2]


def test_as_many_as_there_are():
    assert sorted(choose(NEEDS, APART, 9, diversity=0.3)) == [0, 1, 2, 3]
    assert choose([], np.zeros((0, 0)), 3, 0.3) == [] and choose([0.5], np.zeros((1, 1)), 1, 1.0) == [0]


def test_need_of_scores():
    scores = {"expected_dice": 0.7, "entropy": 0.2}
    assert need(scores, "disagreement") == pytest.approx(0.3) and need(scores, "entropy") == 0.2
    nothing = {"expected_dice": None, "entropy": None}
    assert need(nothing, "disagreement") == need(nothing, "entropy") == 1.0


def test_chance_is_in_proportion_to_the_weights():
    """Of weights 1, 2, 3 and 0, the first draws in 4 000 seeds; cases without weight come last."""
    first = Counter(draw([1.0, 2.0, 3.0, 0.0], 1, seed)[0] for seed in range(4000))
    assert [first[index] / 4000 for index in range(3)] == pytest.approx([1 / 6, 2 / 6, 3 / 6], abs=0.03)
    assert all(draw([1.0, 2.0, 3.0, 0.0], 4, seed)[-1] == 3 for seed in range(50))
    assert draw([0.0, 0.0], 2, 0) in ([0, 1], [1, 0])


def test_the_same_seed_draws_the_same():
    assert draw([1.0] * 9, 5, seed=3) == draw([1.0] * 9, 5, seed=3) != draw([1.0] * 9, 5, seed=4)


def test_images_alike_are_near_each_other():
    """Brightness and size do not count; noise counts little, another place much."""
    random = np.random.default_rng(0)
    image = np.zeros((1, 20, 40, 40), np.float32)
    image[:, 5:12, 8:20, 8:20] = 1
    shifted = np.roll(image, 18, axis=(2, 3))
    noisy = image + random.normal(0, 0.2, image.shape)
    larger = np.kron(image, np.ones((1, 2, 2, 2)))
    apart = distances_between(np.stack([thumbnail(each) for each in (image, 5 + 3 * image, larger, noisy, shifted)]))
    assert apart[0, 1] == pytest.approx(0, abs=1e-5) and apart[0, 2] == pytest.approx(0, abs=0.02)
    assert apart[0, 3] < 0.05 < 0.8 < apart[0, 4]
    np.testing.assert_allclose(apart, apart.T, atol=1e-6)


def test_an_image_of_one_intensity_is_like_none():
    flat, other = thumbnail(np.ones((1, 1, 9, 9))), thumbnail(np.arange(81.0).reshape(1, 1, 9, 9))
    assert not flat.any() and distances_between(np.stack([flat, other]))[0, 1] == 1
