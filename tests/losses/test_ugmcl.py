"""UG-MCL's formulas: probabilities from signed distances, Dice of these, consistency within a task and across tasks."""

from __future__ import annotations

import pytest
import torch

from alhvr_trainer.losses import UGMCLLoss
from alhvr_trainer.losses.dice import soft_dice_loss
from alhvr_trainer.losses.uamt import certain_voxels, entropy_threshold, predictive_entropy
from alhvr_trainer.losses.ugmcl import cross_task_term, inside_probability, intra_task_term

pytestmark = pytest.mark.any_nnunet


def draw(*shape: int, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def mask(*shape: int, seed: int = 0, share: float = 0.5) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < share


def test_negative_distances_are_inside():
    """sigmoid(ln 3) = 3/4, sigmoid(-ln 3) = 1/4."""
    step = torch.tensor(3.0).log().item() / 10
    found = inside_probability(torch.tensor([-step, 0.0, step]), steepness=10)
    torch.testing.assert_close(found, torch.tensor([0.75, 0.5, 0.25]))


def test_dice_by_hand():
    """Class 1: p 0.5 + 1, y 1 + 1, overlap 1.5: Dice 3 / 3.5. Class 2: no overlap, Dice 0. The third voxel is out."""
    p = torch.tensor([[[0.5, 1.0, 1.0], [0.0, 0.0, 1.0]]], dtype=torch.float64)
    y = torch.tensor([[[True, True, False], [False, True, True]]])
    counted = torch.tensor([[True, True, False]])
    assert soft_dice_loss(p, y, counted).item() == pytest.approx(1 - (3 / 3.5 + 0) / 2, abs=1e-4)


def test_dice_is_taken_over_all_samples_at_once():
    p, y = draw(3, 2, 5, 4).detach().sigmoid(), mask(3, 2, 5, 4)
    flat = (x.transpose(0, 1).reshape(1, 2, 60) for x in (p, y))
    torch.testing.assert_close(soft_dice_loss(p, y), soft_dice_loss(*flat))


def test_perfect_absent_and_uncounted_classes_cost_nothing():
    y = torch.stack((mask(2, 6), torch.zeros(2, 6, dtype=torch.bool)), dim=1)
    assert soft_dice_loss(y.double(), y).item() == pytest.approx(0)
    nothing = torch.zeros(2, 6, dtype=torch.bool)
    d = draw(2, 2, 6)
    loss = soft_dice_loss(inside_probability(d), y, nothing)
    loss.backward()
    assert loss.item() == 0 and not d.grad.any()


def test_dice_counts_no_padding():
    d, y, counted = draw(2, 2, 9), mask(2, 2, 9), mask(2, 9, seed=1)
    soft_dice_loss(inside_probability(d, 2.0), y, counted).backward()
    assert torch.equal(d.grad.any(dim=1), counted)


def test_intra_task_by_hand():
    """Distances 0.02, 0.08 and 0.5, the third is uncertain: (0.02 + 0.08) / 2 voxels / 2 classes / 2."""
    student = torch.tensor([[[0.6, 0.7, 0.5], [0.4, 0.3, 0.5]]], dtype=torch.float64).log()
    teacher = torch.tensor([[[0.7, 0.9, 1.0], [0.3, 0.1, 0.0]]], dtype=torch.float64).log()
    certain = torch.tensor([[True, True, False]])
    assert intra_task_term(student, teacher, certain).item() == pytest.approx(0.0125, rel=1e-12)


def test_cross_task_by_hand():
    """p of the two foreground classes 1/2, 1/4 against 1/2, 3/4: (0 + 1/4) / 2; the second voxel is uncertain."""
    student = torch.tensor([[[1.0, 1.0], [2.0, 1.0], [1.0, 9.0]]], dtype=torch.float64).log()
    ln_3 = torch.tensor(3.0, dtype=torch.float64).log().item()
    distance = torch.tensor([[[0.0, 1.0], [-ln_3 / 4, -1.0]]], dtype=torch.float64)
    certain = torch.tensor([[True, False]])
    assert cross_task_term(student, distance, certain, steepness=4.0).item() == pytest.approx(0.125)


def test_tasks_that_agree_cost_nothing():
    student = draw(2, 2, 8).detach()
    distance = -(student[:, 1:] - student[:, :1]) / 5  # softmax of two classes is the sigmoid of their difference
    assert cross_task_term(student, distance, mask(2, 8), steepness=5.0).item() == pytest.approx(0, abs=1e-20)


def test_gradients_reach_the_student_and_its_distances_where_the_teacher_is_certain():
    student, teacher, distance, certain = draw(2, 3, 8), draw(2, 3, 8, seed=4), draw(2, 2, 8, seed=5), mask(2, 8)
    intra_task_term(student, teacher, certain).backward()
    assert torch.equal(student.grad.any(dim=1), certain) and teacher.grad is None
    student.grad = None
    cross_task_term(student, distance, certain, steepness=1.0).backward()
    for x in (student, distance):
        assert torch.equal(x.grad.any(dim=1), certain)


def test_gradients_are_those_of_the_formulas():
    student, distance, certain, y = draw(2, 3, 5), draw(2, 2, 5, seed=5), mask(2, 5), mask(2, 2, 5)
    assert torch.autograd.gradcheck(lambda z, d: cross_task_term(z, d, certain, 2.0), (student, distance))
    assert torch.autograd.gradcheck(lambda d: soft_dice_loss(inside_probability(d, 2.0), y, certain), distance)


def test_no_certain_voxel_costs_nothing_and_teaches_nothing():
    student, distance, nothing = draw(1, 2, 4), draw(1, 1, 4, seed=5), torch.zeros(1, 4, dtype=torch.bool)
    term = intra_task_term(student, draw(1, 2, 4, seed=4), nothing) + cross_task_term(student, distance, nothing)
    term.backward()
    assert term.item() == 0 and not student.grad.any() and not distance.grad.any()


def test_extreme_predictions_keep_gradients_finite():
    student, teacher = (1e4 * draw(2, 3, 8, seed=seed).detach().float() for seed in (3, 4))
    student.requires_grad_()
    distance = torch.tensor([-1.0, 1.0]).repeat(2, 2, 4).requires_grad_()
    value = UGMCLLoss()(student, distance, teacher, torch.softmax(teacher, dim=1), 0.5)
    value.backward()
    assert value > 0 and student.grad.isfinite().all() and distance.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(2, 4, 9, 7), (2, 2, 3, 6, 5)])
def test_the_module_equals_the_functions_and_padding_counts_nowhere(shape):
    student, teacher, mean = draw(*shape), draw(*shape, seed=4), draw(*shape, seed=5).detach().softmax(dim=1)
    distance = draw(shape[0], shape[1] - 1, *shape[2:], seed=6)
    valid = mask(shape[0], *shape[2:], share=0.7)
    certain = certain_voxels(predictive_entropy(mean), entropy_threshold(0.3, shape[1]), valid)
    assert certain.any() and (valid & ~certain).any()
    expected = intra_task_term(student, teacher, certain) + cross_task_term(student, distance, certain, 2.0)
    found = UGMCLLoss(2.0)(student, distance, teacher, mean, 0.3, valid)
    assert torch.equal(found, expected)
    for gradient in torch.autograd.grad(found, (student, distance)):
        assert not gradient[~valid.unsqueeze(1).expand_as(gradient)].any()
