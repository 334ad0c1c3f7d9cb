"""MLRP's formulas: prototypes and their cosines, reliability, who learns where, and from what no gradient comes."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy, one_hot

from alhvr_trainer.losses import MLRPLoss, mlrp_terms
from alhvr_trainer.losses.mlrp import prototype_cosines, pseudo_labels, reliability, reliable_label_term

pytestmark = pytest.mark.any_nnunet


def draw(*shape: int, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def inputs(batch: int = 2, classes: int = 3, channels: int = 5, shape: tuple[int, ...] = (6, 7)) -> list[torch.Tensor]:
    """Logits of both decoders, then their features, which are never negative, as behind a ReLU."""
    logits = [draw(batch, classes, *shape, seed=seed) for seed in (3, 4)]
    return logits + [draw(batch, channels, *shape, seed=seed).detach().abs().requires_grad_() for seed in (5, 6)]


def test_by_hand():
    """Two voxels, two classes. On the first a is undecided and b is sure; on the second a is more certain."""
    a = torch.tensor([[[1.0, 9.0], [1.0, 1.0]]], dtype=torch.float64).log()
    b = torch.tensor([[[3.0, 1.0], [1.0, 3.0]]], dtype=torch.float64).log()
    features = torch.tensor([[[2.0, 0.0], [0.0, 5.0]]], dtype=torch.float64)
    terms = mlrp_terms(a, b, features, features)
    # b says class 0 and class 1; each voxel is its own class's prototype and has nothing of the other: cosines 1 and 0;
    # p_b = 3/4, 1/4: r = 1 - 1/16 on both
    assert terms.reliability_b.tolist() == [[15 / 16, 15 / 16]]
    assert terms.learns_a.tolist() == [[True, False]]
    assert terms.a.item() == pytest.approx(15 / 16 * torch.tensor(2.0).log().item())
    # a says class 0 on both: its prototype is (1, 5/2), class 1 has none; p_a = 9/10, 1/10 on the second voxel
    cosine = 2.5 / (1 + 2.5**2) ** 0.5
    second = 1 - ((cosine - 0.9) ** 2 + 0.1**2) / 2
    assert terms.reliability_a[0, 1].item() == pytest.approx(second)
    assert terms.b.item() == pytest.approx(second * torch.tensor(4.0).log().item())


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 5)])
def test_cosines_are_those_of_each_samples_own_class_means(shape):
    features, labels = draw(2, 6, *shape).detach(), torch.randint(0, 3, (2, *shape))
    found = prototype_cosines(features, labels, 4)
    for sample in range(2):
        for k in range(3):
            prototype = features[sample][:, labels[sample] == k].mean(dim=1)
            expected = cosine_similarity(features[sample], prototype.view(-1, *[1] * len(shape)), dim=0)
            torch.testing.assert_close(found[sample, k], expected)
    assert not found[:, 3].any()  # absent


def test_a_features_scale_does_not_matter_and_no_feature_is_near_nothing():
    features, labels = draw(1, 4, 30).detach(), torch.randint(0, 2, (1, 30))
    features[..., 7] = 0
    found = prototype_cosines(features, labels, 2)
    torch.testing.assert_close(prototype_cosines(1e3 * features, labels, 2), found)
    assert found.isfinite().all() and not found[..., 7].any()


def test_reliability_at_its_limits():
    p = torch.eye(2, dtype=torch.float64).unsqueeze(2)  # sure of class 0, and of class 1
    assert reliability(p, p).tolist() == [[1.0], [1.0]]
    assert reliability(1 - p, p).tolist() == [[0.0], [0.0]]  # near the other class alone
    assert reliability(-p, p).tolist() == [[0.0], [0.0]]  # no vote against itself


def test_with_reliable_labels_it_is_the_cross_entropy_of_the_voxels_that_learn():
    a, b = draw(2, 3, 8), draw(2, 3, 8, seed=4)
    labels, learns = b.argmax(dim=1), torch.rand(2, 8) < 0.5
    expected = cross_entropy(a, labels, reduction="none")[learns].mean()
    torch.testing.assert_close(reliable_label_term(a, labels, torch.ones(2, 8), learns), expected)
    assert torch.autograd.gradcheck(lambda z: reliable_label_term(z, labels, torch.rand(2, 8).fill_(0.5), learns), a)


def test_each_term_trains_the_logits_of_one_decoder_where_the_other_is_more_certain():
    tensors = inputs()
    terms = mlrp_terms(*tensors)
    of_a = torch.autograd.grad(terms.a, tensors, allow_unused=True, retain_graph=True)
    of_b = torch.autograd.grad(terms.b, tensors, allow_unused=True)
    assert [gradient is not None for gradient in of_a] == [True, False, False, False]
    assert [gradient is not None for gradient in of_b] == [False, True, False, False]
    assert torch.equal(of_a[0].abs().sum(dim=1) > 0, terms.learns_a)
    assert torch.equal(of_b[1].abs().sum(dim=1) > 0, ~terms.learns_a)


def test_decoders_that_agree_teach_nothing():
    a, _, features, _ = inputs()
    terms = mlrp_terms(a, a, features, features)
    gradient = torch.autograd.grad(terms.a, a)[0]
    assert terms.a.item() == 0 and gradient.isfinite().all() and not gradient.any()


def test_exchanged_decoders_exchange_their_terms():
    a, b, f, g = inputs()
    one, other = mlrp_terms(a, b, f, g), mlrp_terms(b, a, g, f)
    assert torch.equal(one.a, other.b) and torch.equal(one.b, other.a)


def test_padding_counts_nowhere():
    tensors = inputs(shape=(9, 7))
    valid = torch.zeros(2, 9, 7, dtype=torch.bool)
    valid[:, 2:, :5] = True
    padded, cut = mlrp_terms(*tensors, valid), mlrp_terms(*[x[:, :, 2:, :5] for x in tensors])
    torch.testing.assert_close(torch.stack([padded.a, padded.b]), torch.stack([cut.a, cut.b]))
    torch.testing.assert_close(padded.reliability_a[:, 2:, :5], cut.reliability_a)
    gradient = torch.autograd.grad(padded.a, tensors[0])[0]
    assert not gradient[~valid.unsqueeze(1).expand_as(gradient)].any() and gradient.any()
    nothing = mlrp_terms(*tensors, torch.zeros_like(valid))
    assert nothing.a.item() == 0 and not torch.autograd.grad(nothing.a, tensors[0])[0].any()


def test_regions_share_the_features_of_their_sample():
    a, b = draw(2 * 3, 2, 40), draw(2 * 3, 2, 40, seed=4)
    f, g = draw(2, 5, 40, seed=5), draw(2, 5, 40, seed=6)
    shared = mlrp_terms(a, b, f, g)
    repeated = mlrp_terms(a, b, *[x.repeat_interleave(3, dim=0) for x in (f, g)])
    torch.testing.assert_close(shared.reliability_a, repeated.reliability_a)
    torch.testing.assert_close(shared.a, repeated.a)


def test_extreme_predictions_and_half_precision_keep_gradients_finite():
    a, b, f, g = ((1e4 * x).detach().half() for x in inputs())
    a.requires_grad_(), b.requires_grad_()
    terms = mlrp_terms(a, b, f, g)
    assert terms.a.dtype == torch.float32 and terms.reliability_a.isfinite().all()
    assert all(x.isfinite().all() for x in torch.autograd.grad(terms.a + terms.b, (a, b)))


def test_the_module_is_the_sum_of_both_terms():
    tensors, valid = inputs(), torch.rand(2, 6, 7) > 0.3
    terms = mlrp_terms(*tensors, valid)
    assert terms.a > 0 and terms.b > 0
    assert torch.equal(MLRPLoss()(*tensors, valid), terms.a + terms.b)


def test_pseudo_labels_are_the_most_likely_classes():
    z, _, features, _ = inputs()
    found = pseudo_labels(z, features)
    assert torch.equal(one_hot(found.labels, 3).movedim(-1, 1).bool(), z == z.amax(dim=1, keepdim=True))
