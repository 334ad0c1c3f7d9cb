"""UA-MT's formulas: predictive entropy, the threshold's ramp, the consistency of the certain voxels, dropout."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from alhvr_trainer.losses.mean_teacher import consistency_term
from alhvr_trainer.losses.uamt import certain_consistency_term, certain_voxels, entropy_threshold, predictive_entropy
from alhvr_trainer.trainers.dropout import add_dropout

pytestmark = pytest.mark.any_nnunet


def test_entropy_by_hand_and_at_its_limits():
    mean = torch.tensor([[[0.5, 1.0, 1 / 3, 0.8], [0.5, 0.0, 1 / 3, 0.2], [0.0, 0.0, 1 / 3, 0.0]]], dtype=torch.float64)
    expected = [math.log(2), 0.0, math.log(3), -0.8 * math.log(0.8) - 0.2 * math.log(0.2)]
    torch.testing.assert_close(predictive_entropy(mean), torch.tensor([expected], dtype=torch.float64))


def test_passes_that_contradict_each_other_are_uncertain():
    """Two sure passes of opposite opinion: the mean is undecided. Not the mean of the entropies."""
    passes = torch.tensor([[[[1.0], [0.0]]], [[[0.0], [1.0]]]])
    assert predictive_entropy(passes.mean(dim=0)).item() == pytest.approx(math.log(2))
    assert predictive_entropy(passes[0]).item() == 0


@pytest.mark.parametrize("classes", [2, 4])
def test_the_threshold_rises_from_three_quarters_of_the_greatest_entropy_to_all_of_it(classes):
    greatest = math.log(classes)
    half_way = 0.75 + 0.25 * math.exp(-5 / 4)
    assert entropy_threshold(0.0, classes) == pytest.approx((0.75 + 0.25 * math.exp(-5)) * greatest)
    assert entropy_threshold(0.5, classes) == pytest.approx(half_way * greatest)
    assert entropy_threshold(1.0, classes) == pytest.approx(greatest)


def test_only_certain_voxels_teach():
    """Three voxels, distances 0.02, 0.08 and 0.5; the third is uncertain: (0.02 + 0.08) / 2."""
    student = torch.tensor([[[0.6, 0.7, 0.5], [0.4, 0.3, 0.5]]], dtype=torch.float64).log()
    teacher = torch.tensor([[[0.7, 0.9, 1.0], [0.3, 0.1, 0.0]]], dtype=torch.float64).log()
    certain = certain_voxels(torch.tensor([[0.1, 0.2, 0.69]]), 0.6)
    assert certain.tolist() == [[True, True, False]]
    assert certain_consistency_term(student, teacher, certain).item() == pytest.approx(0.05, rel=1e-12)


def test_an_entropy_at_the_threshold_is_not_certain():
    assert not certain_voxels(torch.tensor([[math.log(2)]]), math.log(2)).any()


def test_with_all_voxels_certain_it_is_mean_teacher():
    student, teacher = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64)
    everywhere = torch.ones(2, 4, 5, dtype=torch.bool)
    torch.testing.assert_close(
        certain_consistency_term(student, teacher, everywhere), consistency_term(student, teacher)
    )


def test_no_certain_voxel_costs_nothing_and_teaches_nothing():
    student = torch.randn(1, 2, 4, 4, requires_grad=True)
    term = certain_consistency_term(student, torch.randn(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.bool))
    term.backward()
    assert term.item() == 0 and student.grad is not None and not student.grad.any()


def test_the_gradient_reaches_the_students_certain_voxels_alone():
    student, teacher = (torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(2))
    certain = torch.rand(2, 4, 4) < 0.5
    certain_consistency_term(student, teacher, certain).backward()
    assert student.grad is not None and torch.equal(student.grad.abs().amax(dim=1) > 0, certain)
    assert teacher.grad is None


def test_padding_is_never_certain():
    valid = torch.tensor([[True, False, True]])
    assert certain_voxels(torch.tensor([[0.0, 0.0, 9.0]]), 1.0, valid).tolist() == [[True, False, False]]


class Staged(nn.Module):
    """As nnU-Net's U-Nets are laid out: encoder and decoder with stages, skips between them."""

    def __init__(self, conv: type[nn.Module]) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Module(), nn.Module()
        self.encoder.stages = nn.ModuleList([conv(64, 64, 1), conv(64, 64, 1)])
        self.decoder.stages = nn.ModuleList([conv(64, 64, 1), conv(64, 64, 1)])


@pytest.mark.parametrize("conv, shape", [(nn.Conv2d, (4, 4)), (nn.Conv3d, (2, 3, 4))], ids=["2d", "3d"])
def test_dropout_drops_whole_channels_of_two_stages_in_training_alone(conv, shape):
    torch.manual_seed(0)
    network = Staged(conv)
    keys = list(network.state_dict())
    add_dropout(network, 0.5)
    assert list(network.state_dict()) == keys
    x = torch.randn(8, 64, *shape)
    for first, last in (network.encoder.stages, network.decoder.stages):
        last.eval()
        whole = last(x)
        assert not (whole == 0).any() and torch.equal(last(x), whole)
        last.train()
        dropped = last(x)
        zero = (dropped == 0).flatten(2)
        assert torch.equal(zero.any(dim=2), zero.all(dim=2))
        assert zero.all(dim=2).float().mean().item() == pytest.approx(0.5, abs=0.1)
        # what stays is twice as large: the mean is kept
        torch.testing.assert_close(dropped[dropped != 0], 2 * whole[dropped != 0])
        assert not torch.equal(last(x), dropped)
        assert not (first(x) == 0).any()


def test_no_dropout_adds_nothing():
    network = Staged(nn.Conv2d)
    add_dropout(network, 0.0)
    assert not any(module._forward_hooks for module in network.modules())
