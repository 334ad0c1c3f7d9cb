"""CutMix's boxes and what they show."""

from __future__ import annotations

import pytest
import torch

from alhvr_trainer.augmentation.cutmix import boxes, mixed

pytestmark = pytest.mark.any_nnunet


@pytest.mark.parametrize("shape", [(40, 24), (16, 40, 24)])
def test_boxes_have_edges_of_a_quarter_to_three_quarters_everywhere(shape: tuple[int, ...]):
    inside = boxes(400, shape, 1.0, torch.Generator().manual_seed(0))
    for axis, size in enumerate(shape):
        others = [other + 1 for other in range(len(shape)) if other != axis]
        profile = inside.amax(dim=others)
        edges = profile.sum(dim=1)
        assert edges.min() == round(size / 4) and edges.max() == round(size * 3 / 4)
        assert (profile.long().diff(dim=1).abs().sum(dim=1) <= 2).all()  # in one piece
        seen = profile.float().mean(dim=0)
        assert seen.min() > 0 and seen.allclose(seen.flip(0), atol=0.1)  # up to both borders, alike
    assert torch.equal(inside.flatten(1).sum(dim=1), _products(inside))  # a box, full


def _products(inside: torch.Tensor) -> torch.Tensor:
    axes = range(1, inside.ndim)
    edges = [inside.amax(dim=[other for other in axes if other != axis]).sum(dim=1) for axis in axes]
    return torch.stack(edges).prod(dim=0)


def test_some_patches_have_none():
    inside = boxes(1000, (8, 8), 0.3, torch.Generator().manual_seed(0)).flatten(1).any(dim=1)
    assert inside.float().mean().item() == pytest.approx(0.3, abs=0.05)
    assert not boxes(10, (8, 8), 0.0, torch.Generator()).any()


def test_images_and_labels_are_mixed_alike():
    inside = boxes(2, (8, 8), 1.0, torch.Generator().manual_seed(0))
    image, other = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
    assert torch.equal(mixed(image, other, inside), inside.unsqueeze(1).expand(-1, 3, -1, -1).float())
    assert torch.equal(mixed(image[:, 0], other[:, 0], inside), inside.float())
