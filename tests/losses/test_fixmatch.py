"""FixMatch's formulas: confident pseudo-labels, and their cross-entropy on the strong view."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from alhvr_trainer.losses.fixmatch import confident_labels, pseudo_label_term

pytestmark = pytest.mark.any_nnunet

WEAK = torch.tensor([[[0.97, 0.60, 0.01, 0.95], [0.02, 0.39, 0.98, 0.05], [0.01, 0.01, 0.01, 0.00]]]).log()
"""Four voxels of three classes."""


def test_labels_are_the_likeliest_class_where_it_is_likely_enough():
    labels, confident = confident_labels(WEAK, 0.95)
    assert labels.tolist() == [[0, 0, 1, 0]]
    assert confident[:, :3].tolist() == [[True, False, True]]
    assert confident_labels(WEAK.double(), 0.5)[1].all() and not confident_labels(WEAK.double(), 0.99)[1].any()


def test_a_confidence_of_just_the_threshold_counts():
    weak = torch.zeros(1, 2, 1, dtype=torch.float64)
    assert confident_labels(weak, 0.5)[1].all()


def test_term_by_hand():
    """Voxels 0 and 2 are confident: (-log 0.5 - log 0.25) / 3, for the mean is over all voxels."""
    strong = torch.tensor([[[0.5, 0.1, 0.6], [0.3, 0.1, 0.25], [0.2, 0.8, 0.15]]], dtype=torch.float64).log()
    labels, confident = confident_labels(WEAK[..., :3], 0.95)
    term = pseudo_label_term(strong, labels, confident)
    assert term.item() == pytest.approx((math.log(2) + math.log(4)) / 3, rel=1e-12)


@pytest.mark.parametrize("shape", [(6, 7), (4, 5, 6)], ids=["2d", "3d"])
def test_without_threshold_it_is_the_cross_entropy_of_all_voxels(shape):
    weak, strong = torch.randn(2, 2, 3, *shape, dtype=torch.float64)
    labels, confident = confident_labels(weak, 0.0)
    torch.testing.assert_close(
        pseudo_label_term(strong, labels, confident), cross_entropy(strong, weak.argmax(dim=1)), rtol=1e-12, atol=0
    )


def test_nothing_confident_costs_nothing_and_teaches_nothing():
    strong = torch.randn(1, 2, 4, 4, requires_grad=True)
    labels, confident = confident_labels(torch.zeros(1, 2, 4, 4), 0.95)
    term = pseudo_label_term(strong, labels, confident)
    term.backward()
    assert term.item() == 0 and strong.grad is not None and not strong.grad.any()


def test_the_gradient_reaches_the_strong_views_confident_voxels_alone():
    weak, strong = (torch.randn(2, 3, 4, 4).mul(3).requires_grad_() for _ in range(2))
    labels, confident = confident_labels(weak, 0.8)
    assert not labels.requires_grad and confident.any() and not confident.all()
    pseudo_label_term(strong, labels, confident).backward()
    assert weak.grad is None
    assert strong.grad is not None and torch.equal(strong.grad.abs().amax(dim=1) > 0, confident)


def test_padding_does_not_count():
    weak, strong = torch.randn(2, 2, 3, 6, 6) * 3
    valid = torch.ones(2, 6, 6, dtype=torch.bool)
    valid[:, 4:] = False
    cut = pseudo_label_term(strong[:, :, :4], *confident_labels(weak[:, :, :4], 0.8))
    weak[:, :, 4:], strong[:, :, 4:] = (
        torch.tensor([30.0, 0, 0]).view(3, 1, 1),
        torch.tensor([0, 30.0, 0]).view(3, 1, 1),
    )
    assert cut.item() > 0
    torch.testing.assert_close(pseudo_label_term(strong, *confident_labels(weak, 0.8), valid), cut)
