"""EVIL's formulas: evidence, belief and uncertainty, the evidential cross-entropy, the terms of both networks."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Dirichlet, kl_divergence
from torch.nn.functional import cross_entropy

from alhvr_trainer.losses.evil import (
    annealed_weight,
    belief_probabilities,
    certain_cross_entropy_term,
    divergence_from_ignorance,
    evidence,
    evidential_cross_entropy,
    evidential_term,
    evidential_uncertainty,
    least_uncertainty,
)

pytestmark = pytest.mark.any_nnunet


def logits(*shape: int, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def test_evidence_and_belief_by_hand():
    """Evidence 3 and 1: S = 6, so belief 1/2 and 1/6, and u = 2/6."""
    z = torch.tensor([[[math.atanh(0.25 * math.log(3.0))], [0.0]]], dtype=torch.float64)
    torch.testing.assert_close(evidence(z), torch.tensor([[[3.0], [1.0]]], dtype=torch.float64))
    inside = 1 / (1 + math.exp(-(1 / 2 - 1 / 6)))
    assert belief_probabilities(z).flatten().tolist() == pytest.approx([inside, 1 - inside])
    assert evidential_uncertainty(z).item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("classes", [2, 4, 14])
def test_uncertainty_at_its_limits(classes):
    ignorant = torch.zeros(1, classes, 1)
    one, all_of_them, none = ignorant - 50, ignorant + 50, ignorant - 50
    one[:, 1] = 50
    assert evidential_uncertainty(ignorant).item() == pytest.approx(0.5)
    assert evidential_uncertainty(one).item() == pytest.approx(least_uncertainty(classes))
    assert evidential_uncertainty(all_of_them).item() == pytest.approx(1 / (1 + math.exp(4)))
    assert evidential_uncertainty(none).item() == pytest.approx(1 / (1 + math.exp(-4)))


def test_the_largest_belief_is_that_of_the_largest_logit():
    z = logits(2, 5, 30).detach()
    assert torch.equal(belief_probabilities(z).argmax(dim=1), z.argmax(dim=1))


def test_evidential_cross_entropy_by_hand():
    """All z are 0: alpha = 2 of three classes, S = 6, psi(6) - psi(2) = 1/2 + 1/3 + 1/4 + 1/5. Without the evidence for
    the label alpha~ = (2, 1, 2), whose S is 5: ln G(5) - ln G(3) - 2 (psi(5) - psi(2))."""
    z, label = torch.zeros(1, 3, 1, dtype=torch.float64), torch.tensor([[1]])
    expected = 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5
    divergence = math.log(24 / 2) - 2 * (1 / 2 + 1 / 3 + 1 / 4)
    for coefficient in (0.0, 0.3, 1.0):
        found = evidential_cross_entropy(z, label, coefficient).item()
        assert found == pytest.approx(expected + coefficient * divergence, rel=1e-12), coefficient


def test_divergence_is_that_of_the_two_distributions():
    alpha = torch.rand(3, 4, 6, dtype=torch.float64) * 50 + 1
    expected = kl_divergence(Dirichlet(alpha.movedim(1, -1)), Dirichlet(torch.ones(4, dtype=torch.float64)))
    torch.testing.assert_close(divergence_from_ignorance(alpha - 1), expected)
    assert divergence_from_ignorance(torch.zeros(1, 4, 1)).item() == 0


def test_expected_cross_entropy_under_the_distribution():
    z, label = torch.tensor([[[0.3], [-0.2], [0.1]]], dtype=torch.float64), torch.tensor([[2]])
    torch.manual_seed(0)
    drawn = Dirichlet(evidence(z)[0, :, 0] + 1).sample((200_000,))
    found = evidential_cross_entropy(z, label, divergence_weight=0.0).item()
    assert found == pytest.approx(-drawn[:, 2].log().mean().item(), rel=0.01)


def test_the_divergence_is_annealed_over_the_first_half():
    assert [annealed_weight(progress) for progress in (0.0, 0.25, 0.5, 1.0)] == [0.0, 0.5, 1.0, 1.0]


def test_gradients():
    z, labels = logits(2, 3, 4), torch.randint(3, (2, 4))
    assert torch.autograd.gradcheck(lambda x: evidential_cross_entropy(x, labels, 0.7), (z,))
    assert torch.autograd.gradcheck(belief_probabilities, (z,))


def test_each_term_trains_one_network():
    a, b = 3 * logits(2, 3, 8), logits(2, 3, 8, seed=4)
    for term, learns, teaches in (
        (evidential_term(a, b), a, b),
        (certain_cross_entropy_term(b, a, 0.3), b, a),
    ):
        gradient, none = torch.autograd.grad(term, (learns, teaches), allow_unused=True)
        assert gradient.any() and none is None


def test_uncertain_voxels_count_in_the_mean_but_teach_nothing():
    a, b = 3 * logits(1, 3, 40), logits(1, 3, 40, seed=4)
    certain = evidential_uncertainty(a) < 0.2
    assert 0 < certain.sum() < 40
    term = certain_cross_entropy_term(b, a, 0.2)
    errors = cross_entropy(b, a.argmax(dim=1), reduction="none")
    torch.testing.assert_close(term, errors[certain].sum() / 40)
    gradient = torch.autograd.grad(term, b)[0]
    assert torch.equal(gradient.abs().amax(dim=1) > 0, certain)


def test_no_certain_voxel_costs_nothing():
    b = logits(1, 3, 8)
    term = certain_cross_entropy_term(b, torch.zeros(1, 3, 8, dtype=torch.float64), 0.2)
    assert term.item() == 0 and not torch.autograd.grad(term, b)[0].any()


def test_padding_counts_nowhere():
    a, b = 3 * logits(2, 3, 9, 7), logits(2, 3, 9, 7, seed=4)
    valid = torch.zeros(2, 9, 7, dtype=torch.bool)
    valid[:, 2:, :5] = True
    for term, learns, teaches in ((evidential_term, a, b), (certain_cross_entropy_term, b, a)):
        padded = term(learns, teaches, 0.5, valid)
        torch.testing.assert_close(padded, term(learns[:, :, 2:, :5], teaches[:, :, 2:, :5], 0.5))
        gradient = torch.autograd.grad(padded, learns, retain_graph=True)[0]
        assert gradient.any() and not (gradient * ~valid.unsqueeze(1)).any()
        nothing = term(learns, teaches, 0.5, torch.zeros_like(valid))
        assert nothing.item() == 0 and not torch.autograd.grad(nothing, learns, retain_graph=True)[0].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_extreme_logits_keep_gradients_finite(dtype):
    z = (3e4 * logits(2, 3, 8).detach()).to(dtype).requires_grad_()
    for label in (0, 2):
        values = evidential_cross_entropy(z, torch.full((2, 8), label))
        assert values.dtype == torch.float32 and values.isfinite().all() and (values >= 0).all()
        assert torch.autograd.grad(values.sum(), z)[0].isfinite().all()
