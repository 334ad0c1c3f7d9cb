"""AC-MT's formulas: the threshold's ramp, which voxels are ambiguous, the consistency on these alone."""

from __future__ import annotations

import math

import pytest
import torch

from alhvr_trainer.losses import ACMTLoss
from alhvr_trainer.losses.acmt import ambiguity_threshold, ambiguous_consistency_term, ambiguous_voxels
from alhvr_trainer.losses.mean_teacher import consistency_term
from alhvr_trainer.losses.uamt import certain_voxels, predictive_entropy

pytestmark = pytest.mark.any_nnunet


def logits(*shape: int, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(("start", "end"), [(0.75, 0.6), (0.75, 0.95)])
def test_the_threshold_goes_from_start_to_end(start, end, classes):
    greatest = math.log(classes)
    assert ambiguity_threshold(0.0, start, end, classes) == pytest.approx(
        (start + (end - start) * math.exp(-5)) * greatest
    )
    assert ambiguity_threshold(0.5, start, end, classes) == pytest.approx(
        (start + (end - start) * math.exp(-5 / 4)) * greatest
    )
    assert ambiguity_threshold(1.0, start, end, classes) == pytest.approx(end * greatest)


def test_an_entropy_at_the_threshold_is_ambiguous():
    assert ambiguous_voxels(torch.tensor([[0.5]]), 0.5).all()


def test_ambiguous_is_what_is_not_certain():
    entropy, valid = torch.rand(2, 5, 7), torch.rand(2, 5, 7) > 0.3
    torch.testing.assert_close(
        ambiguous_voxels(entropy, 0.4, valid).int() + certain_voxels(entropy, 0.4, valid).int(), valid.int()
    )


def test_padding_is_never_ambiguous():
    valid = torch.tensor([[True, False, True]])
    assert ambiguous_voxels(torch.tensor([[0.0, 9.0, 9.0]]), 1.0, valid).tolist() == [[False, False, True]]


def test_only_ambiguous_voxels_teach():
    """Three voxels, distances 0.02, 0.08 and 0.5; the third is certain: (0.02 + 0.08) / 2 voxels / 2 classes."""
    student = torch.tensor([[[0.6, 0.7, 0.5], [0.4, 0.3, 0.5]]], dtype=torch.float64).log()
    teacher = torch.tensor([[[0.7, 0.9, 1.0], [0.3, 0.1, 0.0]]], dtype=torch.float64).log()
    ambiguous = ambiguous_voxels(torch.tensor([[0.69, 0.6, 0.1]]), 0.6)
    assert ambiguous_consistency_term(student, teacher, ambiguous).item() == pytest.approx(0.025, rel=1e-12)


def test_with_all_voxels_ambiguous_it_is_mean_teacher_over_the_classes():
    student, teacher = logits(2, 3, 4, 5), logits(2, 3, 4, 5, seed=4)
    everywhere = torch.ones(2, 4, 5, dtype=torch.bool)
    torch.testing.assert_close(
        ambiguous_consistency_term(student, teacher, everywhere), consistency_term(student, teacher) / 3
    )


def test_no_ambiguous_voxel_costs_nothing_and_teaches_nothing():
    student = logits(1, 2, 4, 4)
    term = ambiguous_consistency_term(student, logits(1, 2, 4, 4, seed=4), torch.zeros(1, 4, 4, dtype=torch.bool))
    term.backward()
    assert term.item() == 0 and not student.grad.any() and student.grad.isfinite().all()


def test_the_gradient_reaches_the_students_ambiguous_voxels_alone():
    student, teacher = logits(2, 3, 4, 4), logits(2, 3, 4, 4, seed=4)
    ambiguous = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    ambiguous_consistency_term(student, teacher, ambiguous).backward()
    assert torch.equal(student.grad.abs().amax(dim=1) > 0, ambiguous)
    assert teacher.grad is None


def test_the_gradient_is_that_of_the_formula():
    student, teacher = logits(2, 3, 6), logits(2, 3, 6, seed=4).detach()
    ambiguous = torch.arange(12).view(2, 6) % 3 > 0
    assert torch.autograd.gradcheck(lambda z: ambiguous_consistency_term(z, teacher, ambiguous), student)


@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_sure_predictions_keep_gradients_finite(scale):
    student = (scale * logits(2, 3, 8).detach()).float().requires_grad_()
    value = ACMTLoss()(student, scale * logits(2, 3, 8, seed=4).detach().float(), 0.5)
    value.backward()
    assert value == 0 and student.grad.isfinite().all()  # nothing is ambiguous


@pytest.mark.parametrize("shape", [(2, 4, 9, 7), (2, 2, 3, 6, 5)])
def test_the_module_judges_the_student_or_the_mean_of_its_passes(shape):
    student, teacher = logits(*shape), logits(*shape, seed=4)
    valid = torch.rand(shape[0], *shape[2:], generator=torch.Generator().manual_seed(0)) < 0.8
    mean = logits(*shape, seed=5).detach().softmax(dim=1)
    for judged, given in ((student.detach().softmax(dim=1), None), (mean, mean)):
        threshold = ambiguity_threshold(0.3, 0.8, 0.5, shape[1])
        ambiguous = (predictive_entropy(judged) >= threshold) & valid
        assert ambiguous.any() and not ambiguous.all()
        expected = ambiguous_consistency_term(student, teacher, ambiguous)
        assert torch.equal(ACMTLoss(0.8, 0.5)(student, teacher, 0.3, valid, given), expected)


def test_padding_changes_nothing():
    student, teacher = logits(2, 3, 9, 7), logits(2, 3, 9, 7, seed=4)
    valid = torch.zeros(2, 9, 7, dtype=torch.bool)
    valid[:, 2:, :5] = True
    padded = ACMTLoss()(student, teacher, 0.5, valid)
    torch.testing.assert_close(padded, ACMTLoss()(student[:, :, 2:, :5], teacher[:, :, 2:, :5], 0.5))
    (gradient,) = torch.autograd.grad(padded, student)
    assert not gradient[~valid.unsqueeze(1).expand_as(gradient)].any() and gradient.any()
