"""Pseudo-labels at full weight."""

from __future__ import annotations

import math

import pytest
import torch

from alhvr_trainer.losses.cutmix import pseudo_label_loss

pytestmark = pytest.mark.any_nnunet


def test_computed_by_hand():
    logits = torch.tensor([[[0.0, math.log(3)], [math.log(3), 0.0]]])  # foreground with 3/4, then with 1/4
    labels = torch.tensor([[1, 1]])
    cross_entropy = -(math.log(3 / 4) + math.log(1 / 4)) / 2
    dice = 2 * (3 / 4 + 1 / 4) / (1 + 2)
    assert pseudo_label_loss(logits, labels).item() == pytest.approx(cross_entropy + 1 - dice, rel=1e-4)


def test_what_is_outside_of_the_image_does_not_count():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(2, 3, 6, 6, generator=generator), torch.randint(3, (2, 6, 6), generator=generator)
    valid = torch.rand(2, 6, 6, generator=generator) > 0.4
    changed = torch.where(valid.unsqueeze(1), logits, -logits)
    inside = pseudo_label_loss(logits, labels, valid)
    assert torch.equal(inside, pseudo_label_loss(changed, torch.where(valid, labels, 0), valid))
    assert not torch.equal(inside, pseudo_label_loss(logits, labels))


def test_a_class_that_nobody_sees_costs_what_it_is_predicted_with():
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    logits = torch.zeros(1, 2, 4, 4, requires_grad=True)
    pseudo_label_loss(logits, labels).backward()
    assert logits.grad is not None and (logits.grad[:, 1] > 0).all()  # down with it
