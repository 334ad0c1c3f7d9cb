"""The shape autoencoder: its code, what it takes and gives for classes and regions, and that it learns to repair."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from alhvr_trainer.augmentation.spatial import OUTSIDE
from alhvr_trainer.errors import InputError
from alhvr_trainer.trainers.shape_autoencoder import (
    LabelCoding,
    ShapeAutoencoder,
    code_shape,
    halvings,
    train_autoencoder,
)

pytestmark = pytest.mark.any_nnunet

CLASSES = LabelCoding(3)
REGIONS = LabelCoding(3, ((1, 2), (2,)))


def circles() -> torch.Tensor:
    """Label maps with a core inside a shell, (4, 24, 20)."""
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(20.0), indexing="ij")
    distances = [((y - 12 - shift) ** 2 + (x - 10 + shift) ** 2).sqrt() for shift in (-2, -1, 1, 2)]
    return torch.stack([(d < 8).short() + (d < 4).short() for d in distances])


def train(labels: torch.Tensor, coding: LabelCoding, iterations: int, rate: float = 0.1) -> ShapeAutoencoder:
    torch.manual_seed(0)
    autoencoder = ShapeAutoencoder(coding.taken, coding.given, labels.shape[1:])
    batches = itertools.repeat({"labels": labels})
    train_autoencoder(autoencoder, batches, coding, iterations, rate, np.random.default_rng(0), lambda _: None)
    return autoencoder


@pytest.mark.parametrize("size", [(40, 56), (37, 13), (9, 40, 23), (20, 16, 18), (4, 4)])
def test_the_code_is_small_whatever_the_patch_size(size):
    code = code_shape(size)
    assert max(code) <= 4
    autoencoder = ShapeAutoencoder(1, 3, size).eval()
    assert 0 <= autoencoder.code_channels * math.prod(code) - 512 < math.prod(code)
    seen: list[torch.Tensor] = []
    autoencoder.to_code.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    assert autoencoder(torch.zeros(1, 1, *size)).shape == (1, 3, *size)
    assert seen[0].shape == (1, autoencoder.code_channels, *code)
    other = tuple(length + 3 for length in size)
    assert autoencoder(torch.zeros(1, 1, *other)).shape == (1, 3, *other)


def test_short_axes_are_halved_once_the_others_are_as_short():
    assert halvings((6, 48, 40)) == [(1, 2, 2), (1, 2, 2), (1, 2, 2), (2, 2, 2)]


def test_classes_are_taken_as_one_channel_and_given_as_one_each():
    labels = torch.tensor([[[0, 1, 2]]])
    assert (CLASSES.taken, CLASSES.given) == (1, 3)
    assert CLASSES.as_input(labels).tolist() == [[[[0, 1, 2]]]]
    assert CLASSES.as_shapes(labels).tolist() == [[[[1, 0, 0]], [[0, 1, 0]], [[0, 0, 1]]]]


def test_regions_are_taken_and_given_as_one_channel_each():
    labels = torch.tensor([[[0, 1, 2]]])
    assert (REGIONS.taken, REGIONS.given) == (2, 2)
    assert REGIONS.as_shapes(labels).tolist() == [[[[0, 1, 1]], [[0, 0, 1]]]]
    assert torch.equal(REGIONS.as_input(labels), REGIONS.as_shapes(labels))


def test_predictions_are_taken_as_labels_are_with_background_as_padding():
    labels = torch.tensor([[[0, 1, 2, 2]]])
    valid = torch.tensor([[[True, True, True, False]]])
    inside = labels * valid
    for coding in (CLASSES, REGIONS):
        logits = 5 * coding.as_shapes(labels) - 1
        assert torch.equal(coding.of_logits(logits, valid), coding.as_input(inside))
        assert torch.equal(coding.of_logits(logits, None), coding.as_input(labels))


def test_there_is_no_label_outside_and_where_nobody_annotated():
    labels = torch.tensor([[[OUTSIDE, 0, 2, 3]]])
    assert CLASSES.known(labels).tolist() == [[[False, True, True, True]]]
    assert LabelCoding(3, ignore=3).known(labels).tolist() == [[[False, True, True, False]]]


@pytest.mark.parametrize("coding", [CLASSES, REGIONS], ids=["classes", "regions"])
def test_it_learns_to_repair(coding: LabelCoding):
    labels = circles()
    autoencoder = train(labels, coding, iterations=120)
    damaged = labels.clone()
    damaged[:, 11:13] = 0  # a gap through the middle
    assert not autoencoder.training and bool(autoencoder.trained)
    truth = coding.as_shapes(labels) > 0
    wrong = [((autoencoder(coding.as_input(x)) > 0) != truth).float().mean() for x in (labels, damaged)]
    assert max(wrong) < 0.5 * ((coding.as_shapes(damaged) > 0) != truth).float().mean()


def test_it_is_frozen_and_noise_on_the_code_changes_what_it_gives():
    autoencoder = train(circles(), CLASSES, iterations=2)
    assert all(not p.requires_grad and p.grad is None for p in autoencoder.parameters())
    maps = CLASSES.as_input(circles())
    clean = autoencoder(maps)
    assert torch.equal(autoencoder(maps, code_noise=0.0), clean)
    assert not torch.equal(autoencoder(maps, 0.01, 0.02), clean)


def test_what_has_no_label_does_not_count():
    """Whatever stands there, the ignore label or padding: the trained weights are the same."""
    coding, labels = LabelCoding(3, ignore=3), circles()
    without = [train(torch.where(circles() == 1, value, labels), coding, iterations=2) for value in (3, OUTSIDE)]
    for one, other in zip(*(each.state_dict().values() for each in without), strict=True):
        assert torch.equal(one, other)


def test_a_loss_that_is_not_finite_is_refused():
    with pytest.raises(InputError, match="shape autoencoder's loss is not finite; lower"):
        train(circles(), CLASSES, iterations=30, rate=1e30)
