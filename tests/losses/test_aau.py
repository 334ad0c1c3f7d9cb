"""AAU's formulas: the anatomical uncertainty, the consistency that it weights, and the loss of the autoencoder."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import one_hot

from alhvr_trainer.losses import AAULoss
from alhvr_trainer.losses.aau import anatomical_uncertainty, anatomical_weight, shape_loss, weighted_consistency_term
from alhvr_trainer.losses.mean_teacher import consistency_term

pytestmark = pytest.mark.any_nnunet


def draw(*shape: int, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def drawn_shapes(*shape: int, classes: int = 3) -> torch.Tensor:
    labels = torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(0))
    return one_hot(labels, classes).movedim(-1, 1).double()


def test_by_hand():
    """The autoencoder confirms the first voxel, and says the opposite of the second, of which the teacher is sure."""
    student = torch.tensor([[[1.0, 1.0], [1.0, 1.0]]], dtype=torch.float64)  # 1/2 everywhere
    teacher = torch.tensor([[[3.0, 1e30], [1.0, 1.0]]], dtype=torch.float64).log()  # 3/4, 1/4, and 1, 0
    restored = torch.tensor([[[0.75, 0.0], [0.25, 1.0]]], dtype=torch.float64)
    uncertainty = anatomical_uncertainty(restored, teacher.softmax(dim=1))
    torch.testing.assert_close(uncertainty, torch.tensor([[[0.0, 1.0], [0.0, 1.0]]], dtype=torch.float64))
    weight = anatomical_weight(uncertainty, decay=math.log(4))  # 1 and 1/4
    found = weighted_consistency_term(student, teacher, weight).item()
    assert found == pytest.approx((2 * 1 / 16 + 2 * 1 / 4 * 1 / 4) / (2 * (2 + 2 / 4)))


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 4, 3, 4, 5)])
def test_without_uncertainty_it_is_half_the_mean_over_voxels_and_classes(shape):
    student, teacher = draw(*shape), draw(*shape, seed=4)
    found = weighted_consistency_term(student, teacher, torch.ones(shape, dtype=torch.float64))
    torch.testing.assert_close(found, consistency_term(student, teacher) / (2 * shape[1]))
    ignored = weighted_consistency_term(student, teacher, anatomical_weight(torch.rand(shape).double(), decay=0.0))
    torch.testing.assert_close(ignored, found)


def test_only_ratios_of_weights_matter():
    student, teacher, weight = draw(2, 3, 8), draw(2, 3, 8, seed=4), torch.rand(2, 3, 8).double()
    found = weighted_consistency_term(student, teacher, weight)
    torch.testing.assert_close(weighted_consistency_term(student, teacher, 0.01 * weight), found)


def test_the_gradient_reaches_the_student_alone():
    student, teacher, restored = draw(2, 3, 8), draw(2, 3, 8, seed=4), draw(2, 3, 8, seed=5)
    found = torch.autograd.grad(
        AAULoss()(student, teacher, torch.sigmoid(restored)), (student, teacher, restored), allow_unused=True
    )
    assert found[0].any() and found[1] is None and found[2] is None
    fixed, weight = teacher.detach(), torch.rand(2, 3, 8).double()
    assert torch.autograd.gradcheck(lambda z: weighted_consistency_term(z, fixed, weight), student)


def test_padding_counts_nowhere():
    student, teacher, weight = draw(2, 3, 9, 7), draw(2, 3, 9, 7, seed=4), torch.rand(2, 3, 9, 7).double()
    valid = torch.zeros(2, 9, 7, dtype=torch.bool)
    valid[:, 2:, :5] = True
    found = weighted_consistency_term(student, teacher, weight, valid)
    inside = weighted_consistency_term(*(x[:, :, 2:, :5] for x in (student, teacher, weight)))
    torch.testing.assert_close(found, inside)
    gradient = torch.autograd.grad(found, student)[0]
    assert not gradient[~valid.unsqueeze(1).expand_as(gradient)].any() and gradient.any()
    nothing = weighted_consistency_term(student, teacher, weight, torch.zeros_like(valid))
    assert nothing.item() == 0 and not torch.autograd.grad(nothing, student)[0].any()


def test_extreme_predictions_keep_gradients_finite():
    student, teacher = (1e4 * draw(2, 3, 8)).detach().float().requires_grad_(), 1e4 * draw(2, 3, 8, seed=4).float()
    loss = AAULoss(decay=1e4)(student, teacher, torch.zeros(2, 3, 8))
    assert loss.isfinite() and torch.autograd.grad(loss, student)[0].isfinite().all()


def test_the_module_is_the_weighted_term():
    student, teacher, restored = draw(2, 3, 8), draw(2, 3, 8, seed=4), torch.rand(2, 3, 8).double()
    valid = torch.rand(2, 8) > 0.3
    weight = torch.exp(-2.0 * (restored - teacher.softmax(1)) ** 2)
    expected = weighted_consistency_term(student, teacher, weight, valid)
    assert expected > 0 and torch.equal(AAULoss(2.0)(student, teacher, restored, valid), expected)


def test_shape_loss_by_hand():
    """One voxel of background, one of class 1; 1/2 everywhere: squared errors 1/4, and 1 - (1 + s) / (1/2 + 1 + s)."""
    shapes = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    found = shape_loss(torch.zeros(1, 2, 2, dtype=torch.float64), shapes, background=True).item()
    assert found == pytest.approx((1 / 4 + 1 - (1 + 1e-5) / (1.5 + 1e-5)) / 2)


@pytest.mark.parametrize("background", [True, False])
def test_shape_loss_at_its_limits(background):
    shapes = drawn_shapes(2, 6, 6)
    sure = 60 * (2 * shapes - 1)
    assert shape_loss(sure, shapes, background).item() == pytest.approx(0, abs=1e-12)
    assert shape_loss(-sure, shapes, background).item() == pytest.approx(1, abs=1e-6)


def test_shape_loss_leaves_the_background_out_of_dice_alone():
    shapes, z = drawn_shapes(2, 6, 6), draw(2, 3, 6, 6)
    error = ((z.sigmoid() - shapes) ** 2).mean()
    dice = 2 * shape_loss(z, shapes, background=True) - error
    torch.testing.assert_close(
        2 * shape_loss(z[:, 1:], shapes[:, 1:], background=False) - ((z[:, 1:].sigmoid() - shapes[:, 1:]) ** 2).mean(),
        dice,
    )
    assert torch.autograd.gradcheck(lambda x: shape_loss(x, shapes, True), z)


def test_shape_loss_without_a_label_teaches_nothing():
    shapes, z = drawn_shapes(2, 6, 6), draw(2, 3, 6, 6)
    valid = torch.zeros(2, 6, 6, dtype=torch.bool)
    valid[:, :4] = True
    torch.testing.assert_close(shape_loss(z, shapes, True, valid), shape_loss(z[:, :, :4], shapes[:, :, :4], True))
    gradient = torch.autograd.grad(shape_loss(z, shapes, True, torch.zeros_like(valid)), z)[0]
    assert gradient.isfinite().all() and not gradient.any()
