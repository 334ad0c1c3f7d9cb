"""Mean Teacher's formulas: the consistency cost, the moving average of the weights, the noise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from alhvr_trainer.losses.mean_teacher import consistency_term, noisy
from alhvr_trainer.losses.schedules import average_decay
from alhvr_trainer.trainers.partners import move_average

pytestmark = pytest.mark.any_nnunet


def logits(probabilities: list[list[float]]) -> torch.Tensor:
    """(1, C, voxels) in float64, from the probabilities of each voxel."""
    return torch.tensor(probabilities, dtype=torch.float64).T[None].log()


STUDENT = [[0.7, 0.2, 0.1], [0.5, 0.25, 0.25]]
TEACHER = [[0.6, 0.4, 0.0], [0.5, 0.25, 0.25]]


def test_consistency_by_hand():
    """((0.1)^2 + (0.2)^2 + (0.1)^2 + 0) / 2 voxels."""
    assert consistency_term(logits(STUDENT), logits(TEACHER)).item() == pytest.approx(0.06 / 2, rel=1e-12)


def test_networks_that_agree_cost_nothing_however_unsure():
    z = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    assert consistency_term(z, z + 3.0).item() == pytest.approx(0, abs=1e-30)  # softmax knows no common offset


def test_opposite_certainties_cost_two_per_voxel():
    z = torch.tensor([[[100.0, -100.0], [-100.0, 100.0]]])
    assert consistency_term(z, -z).item() == 2.0


def test_the_gradient_reaches_the_student_alone():
    student, teacher = (torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(2))
    consistency_term(student, teacher).backward()
    assert student.grad is not None and student.grad.abs().amax(dim=1).gt(0).all()
    assert teacher.grad is None


def test_the_gradient_is_that_of_the_formula():
    student, teacher = torch.randn(2, 1, 3, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: consistency_term(z, teacher), student.requires_grad_())


@pytest.mark.parametrize("shape", [(6, 7), (4, 5, 6)], ids=["2d", "3d"])
def test_padding_does_not_count(shape):
    student, teacher = torch.randn(2, 2, 3, *shape)
    valid = torch.ones(2, *shape, dtype=torch.bool)
    valid[..., 4:] = False
    cut = consistency_term(student[..., :4], teacher[..., :4])
    student[..., 4:] = 50.0
    torch.testing.assert_close(consistency_term(student, teacher, valid), cut)
    assert consistency_term(student, teacher, torch.zeros_like(valid)).item() == 0


def test_first_the_plain_mean_of_all_weights_then_the_moving_average():
    """After steps 1, 2, 3 with weights 2, 4, 9: 2, 3, 5; random initial weights leave no trace."""
    network, average = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    seen = []
    for step, weight in enumerate((2.0, 4.0, 9.0)):
        nn.init.constant_(network.weight, weight)
        move_average(average, network, average_decay(step, 0.99))
        seen.append(average.weight.item())
    assert seen == pytest.approx([2, 3, 5])
    move_average(average, network, average_decay(10**6, 0.9))
    assert average.weight.item() == pytest.approx(0.9 * 5 + 0.1 * 9)


def test_the_decay_is_reached_where_both_rules_meet():
    assert average_decay(98, 0.99) < 0.99 == average_decay(99, 0.99) == average_decay(10**6, 0.99)


def test_noise_has_the_deviation_asked_for_and_keeps_its_bound():
    torch.manual_seed(0)
    images = torch.full((2, 1, 200, 200), 3.0)
    free, bounded = noisy(images, 0.15) - images, noisy(images, 0.1, bound=0.2) - images
    assert free.std().item() == pytest.approx(0.15, rel=0.02) and free.abs().max() > 0.45
    assert free.mean().item() == pytest.approx(0, abs=0.003)
    assert bounded.abs().max().item() == pytest.approx(0.2, rel=1e-5)
    # a normal distribution clamped at two deviations
    assert bounded.std().item() == pytest.approx(0.1 * 0.9594, rel=0.02)
    assert not torch.equal(noisy(images, 0.15), noisy(images, 0.15))
    assert noisy(images, 0.0) is images
    assert torch.equal(images, torch.full_like(images, 3.0))
