"""MCF's formulas: the contest on labeled samples, the rectification, what the loser learns."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from alhvr_trainer.losses.mcf import correction_term, labeled_dice_loss, rectification_terms

pytestmark = pytest.mark.any_nnunet

A_WINS, B_WINS = torch.tensor(True), torch.tensor(False)


def logits(*shape: int, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def of(*probabilities: list[float]) -> torch.Tensor:
    """Logits of one sample, by class and voxel."""
    return torch.tensor([probabilities], dtype=torch.float64).log()


def test_dice_by_hand():
    """Two foreground classes, the sums over both samples; background does not count."""
    sample = of([0.5, 0.25], [0.25, 0.5], [0.25, 0.25])
    z, labels = torch.cat((sample, sample)), torch.tensor([[0, 1], [1, 1]])
    first = 2 * (1 / 2 + 1 / 4 + 1 / 2) / (2 * (1 / 16 + 1 / 4) + 3)
    second = 0 / (4 / 16)  # in no label
    assert labeled_dice_loss(z, labels).item() == pytest.approx(1 - (first + second) / 2, abs=1e-4)
    only = torch.tensor([[False, True], [False, False]])
    one = 2 * (1 / 2) / (1 / 4 + 1)
    assert labeled_dice_loss(z, labels, only).item() == pytest.approx(1 - one / 2, abs=1e-4)


def test_dice_at_its_limits_and_without_gradient():
    labels = torch.randint(3, (2, 5, 4))
    right = 50 * nn.functional.one_hot(labels, 3).movedim(-1, 1).double()
    assert labeled_dice_loss(right, labels).item() == pytest.approx(0, abs=1e-9)
    assert labeled_dice_loss(right.roll(1, dims=1), labels).item() == pytest.approx(1, abs=1e-4)
    assert not labeled_dice_loss(right.requires_grad_(), labels).requires_grad
    assert labeled_dice_loss(right, labels, torch.zeros_like(labels, dtype=torch.bool)).item() == 0


def test_rectification_by_hand():
    """Three voxels; the networks differ on the last two, of which a errs by 0.8 and 0.4, b by 0.1 and 0.7."""
    a, b = of([0.9, 0.8, 0.4], [0.1, 0.2, 0.6]), of([0.6, 0.1, 0.7], [0.4, 0.9, 0.3])
    of_a, of_b = rectification_terms(a, b, torch.tensor([[0, 1, 1]]))
    assert of_a.item() == pytest.approx((0.64 + 0.16) / 2)
    assert of_b.item() == pytest.approx((0.01 + 0.49) / 2)
    of_a, of_b = rectification_terms(a, b, torch.tensor([[0, 1, 1]]), torch.tensor([[True, True, False]]))
    assert (of_a.item(), of_b.item()) == (pytest.approx(0.64), pytest.approx(0.01))


def test_rectification_trains_each_network_where_they_differ():
    a, b, labels = logits(2, 3, 20), logits(2, 3, 20, seed=4), torch.randint(3, (2, 20))
    assert torch.autograd.gradcheck(lambda x, y: rectification_terms(x, y, labels), (a, b))
    differ = a.argmax(dim=1) != b.argmax(dim=1)
    of_a, of_b = rectification_terms(a, b, labels)
    for term, learns, other in ((of_a, a, b), (of_b, b, a)):
        gradient, none = torch.autograd.grad(term, (learns, other), allow_unused=True)
        assert torch.equal(gradient.abs().amax(dim=1) > 0, differ) and none is None


def test_networks_that_agree_are_not_rectified():
    a = logits(2, 3, 20)
    term = rectification_terms(a, 2 * a, torch.zeros(2, 20, dtype=torch.long))[0]
    assert term.item() == 0 and not torch.autograd.grad(term, a)[0].any()


def test_correction_by_hand():
    """T = 1/2 squares and renormalizes: (0.8, 0.2) becomes (16, 1) / 17, (0.5, 0.5) stays."""
    a, b = of([0.8, 0.5], [0.2, 0.5]), of([0.3, 0.1], [0.7, 0.9])
    expected = ((0.3 - 16 / 17) ** 2 + (0.1 - 0.5) ** 2) / 2
    assert correction_term(a, b, A_WINS, temperature=0.5).item() == pytest.approx(expected)
    first = torch.tensor([[True, False]])
    assert correction_term(a, b, A_WINS, 0.5, first).item() == pytest.approx((0.3 - 16 / 17) ** 2)
    torch.testing.assert_close(correction_term(b, a, B_WINS, 0.5), correction_term(a, b, A_WINS, 0.5))


def test_only_the_loser_learns():
    a, b = logits(2, 3, 8), logits(2, 3, 8, seed=4)
    for wins, winner, loser in ((A_WINS, a, b), (B_WINS, b, a)):
        of_winner, of_loser = torch.autograd.grad(correction_term(a, b, wins), (winner, loser))
        assert not of_winner.any() and of_loser.any()


@pytest.mark.parametrize("wins", [A_WINS, B_WINS])
def test_the_losers_gradient(wins: torch.Tensor):
    a, b = logits(2, 3, 8), logits(2, 3, 8, seed=4)
    loser, winner = (b, a.detach()) if wins else (a, b.detach())
    order = (lambda x: (winner, x)) if wins else (lambda x: (x, winner))
    assert torch.autograd.gradcheck(lambda x: correction_term(*order(x), wins, 0.5), (loser,))


def test_padding_counts_nowhere():
    a, b = logits(2, 3, 9, 7), logits(2, 3, 9, 7, seed=4)
    valid = torch.zeros(2, 9, 7, dtype=torch.bool)
    valid[:, 2:, :5] = True
    term = correction_term(a, b, A_WINS, valid=valid)
    torch.testing.assert_close(term, correction_term(a[:, :, 2:, :5], b[:, :, 2:, :5], A_WINS))
    gradient = torch.autograd.grad(term, b)[0]
    assert gradient.any() and not (gradient * ~valid.unsqueeze(1)).any()
    nothing = correction_term(a, b, A_WINS, valid=torch.zeros_like(valid))
    assert nothing.item() == 0 and not torch.autograd.grad(nothing, b)[0].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_extreme_logits_keep_gradients_finite(dtype):
    a, b = ((1e4 * logits(2, 3, 8, seed=s).detach()).to(dtype).requires_grad_() for s in (3, 4))
    terms = [correction_term(a.float(), b.float(), A_WINS, 0.02)]
    terms += rectification_terms(a, b, torch.randint(3, (2, 8)))
    assert all(term.dtype == torch.float32 for term in terms)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(sum(terms), (a, b)))
    assert labeled_dice_loss(a, torch.zeros(2, 8)).isfinite()
