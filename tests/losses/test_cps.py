"""Cross pseudo supervision: by hand, limiting cases, region masks, and which network each term trains."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from alhvr_trainer.losses.cps import REGIONS, cps_terms, region_mask
from alhvr_trainer.losses.regions import split_regions

pytestmark = pytest.mark.any_nnunet


def two_networks(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    a, b = (torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return a.requires_grad_(), b.requires_grad_()


def test_by_hand():
    """Two voxels, probabilities (a) 3/4, 1/4 and 1/5, 4/5; (b) 1/3, 2/3 and 1/10, 9/10."""
    a = torch.tensor([[[3.0, 1.0], [1.0, 4.0]]], dtype=torch.float64).log()
    b = torch.tensor([[[1.0, 1.0], [2.0, 9.0]]], dtype=torch.float64).log()
    terms = cps_terms(a, b)
    assert terms.pseudo_labels_a.tolist() == [[0, 1]] and terms.pseudo_labels_b.tolist() == [[1, 1]]
    assert terms.a.item() == pytest.approx((math.log(4) + math.log(5 / 4)) / 2)
    assert terms.b.item() == pytest.approx((math.log(3) + math.log(10 / 9)) / 2)
    first = torch.tensor([[True, False]])
    assert cps_terms(a, b, first).a.item() == pytest.approx(math.log(4))


@pytest.mark.parametrize("shape", [(3, 4, 6, 5), (2, 2, 4, 3, 5)])
def test_each_term_trains_its_own_network(shape):
    a, b = two_networks(*shape)
    terms = cps_terms(a, b)
    of_a, of_b = torch.autograd.grad(terms.a, (a, b), allow_unused=True)
    assert of_b is None
    softmax_minus_one_hot = a.softmax(1) - torch.nn.functional.one_hot(b.argmax(1), shape[1]).movedim(-1, 1)
    torch.testing.assert_close(of_a, softmax_minus_one_hot / a[:, 0].numel())
    assert torch.autograd.grad(terms.b, (a, b), allow_unused=True)[0] is None


def test_symmetry_and_agreement():
    a, b = two_networks(2, 3, 8)
    there, back = cps_terms(a, b), cps_terms(b, a)
    assert there.a == back.b and there.b == back.a
    same = cps_terms(a, a)
    assert same.a == same.b == -a.log_softmax(1).amax(1).mean()
    assert cps_terms(1e6 * a, 1e6 * a).a.item() == pytest.approx(0, abs=1e-12)  # sure of the same labels: no loss


@pytest.mark.parametrize("regions", [c for n in (1, 2, 3) for c in itertools.permutations(REGIONS, n)])
def test_padding_counts_nowhere(regions):
    a, b = two_networks(2, 4, 9, 7)
    valid = torch.zeros(2, 9, 7, dtype=torch.bool)
    valid[:, 2:, :5] = True
    garbage = torch.where(valid.unsqueeze(1), a, 50 * a.roll(1, 1))
    options = {"regions": regions, "threshold_proportion": 0.7}
    inside = cps_terms(a[:, :, 2:, :5], b[:, :, 2:, :5], **options)
    padded = cps_terms(garbage, b, valid, **options)
    assert padded.a.item() == pytest.approx(inside.a.item()) and padded.b.item() == pytest.approx(inside.b.item())
    gradient = torch.autograd.grad(padded.a + padded.b, garbage)[0]
    assert not gradient[~valid.unsqueeze(1).expand_as(a)].any() and gradient.any()


def test_regions_are_those_of_alhvr_and_together_they_are_cps():
    a, b = two_networks(2, 4, 12, 12)
    split = split_regions(a.softmax(1), b.softmax(1), 0.6)
    expected = {"omega1": split.omega1, "omega2": split.omega2a | split.omega2b, "omega3": split.omega3}
    masks = {name: region_mask(a, b, (name,), 0.6) for name in REGIONS}
    for name, mask in masks.items():
        assert torch.equal(mask, expected[name]) and mask.any() and not mask.all()
    assert (sum(mask.int() for mask in masks.values()) == 1).all()
    assert torch.equal(region_mask(a, b, REGIONS[1:], 0.6), ~masks["omega1"])
    assert region_mask(a, b, REGIONS, 0.6) is None
    one, every = cps_terms(a, b, regions=("omega2",), threshold_proportion=0.6), cps_terms(a, b)
    elementwise = torch.nn.functional.cross_entropy(a, b.argmax(1), reduction="none")
    torch.testing.assert_close(one.a, elementwise[masks["omega2"]].mean())
    torch.testing.assert_close(every.a, elementwise.mean())


def test_empty_region_is_zero_with_zero_gradient():
    """Equal confidences everywhere: no voxel is strictly below gamma."""
    a = torch.tensor([[[2.0, 0.0], [0.0, 2.0]]], requires_grad=True)
    terms = cps_terms(a, a.detach().flip(1), regions=("omega3",))
    assert terms.a == 0
    assert not torch.autograd.grad(terms.a, a)[0].any()


def test_no_valid_voxel_is_zero():
    a, b = two_networks(1, 2, 4)
    assert cps_terms(a, b, torch.zeros(1, 4, dtype=torch.bool)).a == 0
