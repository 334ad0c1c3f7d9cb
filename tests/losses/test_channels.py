"""The method on sigmoid heads: every channel a two-class problem of its own."""

from __future__ import annotations

import warnings

import pytest
import torch
from literal_method import SHAPES, TERMS, draw, literal_terms

from alhvr_trainer.losses import alhvr_channel_terms, alhvr_terms

pytestmark = pytest.mark.any_nnunet

LOGITS = (0, 1, 4, 5)
MASKS = ("omega1", "omega2a", "omega2b", "omega3")


def of_channel(inputs: list[torch.Tensor], channel: int) -> list[torch.Tensor]:
    """The same problem with a softmax over two classes, in another form than the package's."""
    return [
        torch.stack((-z[:, channel] / 2, z[:, channel] / 2), dim=1) if i in LOGITS else z for i, z in enumerate(inputs)
    ]


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("term", TERMS)
def test_terms_and_gradients_are_means_over_two_class_problems(kind, term):
    inputs = draw(kind)
    channels = range(inputs[0].shape[1])
    ours = getattr(alhvr_channel_terms(*inputs), term)
    literal = torch.stack([literal_terms(of_channel(inputs, c))[term] for c in channels]).mean()
    assert ours.item() == pytest.approx(literal.item(), rel=1e-10)
    assert ours.item() > 0.01
    for mine, theirs in zip(
        torch.autograd.grad(ours, inputs, allow_unused=True),
        torch.autograd.grad(literal, inputs, allow_unused=True),
        strict=True,
    ):
        expected = torch.zeros(()) if theirs is None else theirs
        torch.testing.assert_close(torch.zeros(()) if mine is None else mine, expected, rtol=1e-6, atol=1e-10)


def test_disjoint_regions_that_cover_the_image_equal_the_softmax_problem():
    """Two regions, each the complement of the other: both channels see what the softmax over the two sees."""
    softmax_inputs = draw()
    for i in LOGITS:
        softmax_inputs[i] = softmax_inputs[i][:, :2].detach()
    margins = [z[:, :1] - z[:, 1:] if i in LOGITS else z for i, z in enumerate(softmax_inputs)]
    inputs = [torch.cat((z, -z), dim=1) if i in LOGITS else z for i, z in enumerate(margins)]
    ours, softmax = alhvr_channel_terms(*inputs), alhvr_terms(*softmax_inputs)
    torch.testing.assert_close(ours.gamma, softmax.gamma.expand(2))
    for name in MASKS:
        for channel in (0, 1):
            assert torch.equal(getattr(ours, name)[:, channel], getattr(softmax, name)), (name, channel)
        assert getattr(softmax, name).any(), name
    for name in TERMS:
        torch.testing.assert_close(getattr(ours, name), getattr(softmax, name))


def test_padding_enters_no_channel():
    inputs = [z.detach() for z in draw()]
    valid = torch.ones(inputs[0].shape[0], *inputs[0].shape[2:], dtype=torch.bool)
    valid[..., -4:] = False
    before = alhvr_channel_terms(*inputs, valid=valid)
    for i in LOGITS:
        inputs[i] = inputs[i].clone()
        inputs[i][..., -4:] = 50.0
    after = alhvr_channel_terms(*inputs, valid=valid)
    for name in ("gamma", *TERMS):
        torch.testing.assert_close(getattr(before, name), getattr(after, name))
    assert not any(getattr(after, name)[..., -4:].any() for name in MASKS)


def test_switches_reach_every_channel():
    terms = alhvr_channel_terms(*draw(), dtct_regions=(), cgcpcl_regions=())
    assert terms.total.item() == 0


@pytest.mark.slow
@pytest.mark.parametrize("function", [alhvr_terms, alhvr_channel_terms])
def test_compiles_without_graph_breaks(function):
    inputs = draw(dtype=torch.float32)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Dynamo")
        ours, expected = compiled(*inputs), function(*inputs)
    for name in ("gamma", *TERMS):
        torch.testing.assert_close(getattr(ours, name), getattr(expected, name))
    for mine, theirs in zip(
        torch.autograd.grad(ours.total, inputs), torch.autograd.grad(expected.total, inputs), strict=True
    ):
        torch.testing.assert_close(mine, theirs)
