"""Corrupted label maps: morphology against SciPy's, exchanged boundary pixels by hand, and what is drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from alhvr_trainer.augmentation.corruption import (
    boundary,
    closed,
    corrupted,
    dilated,
    eroded,
    exchange_boundary,
    opened,
)

pytestmark = pytest.mark.any_nnunet

SCIPY = {
    dilated: lambda x, disk: ndimage.grey_dilation(x, footprint=disk, mode="constant", cval=-np.inf),
    eroded: lambda x, disk: ndimage.grey_erosion(x, footprint=disk, mode="constant", cval=np.inf),
}


def disk(radius: int) -> np.ndarray:
    axis = np.arange(-radius, radius + 1)
    return axis[:, None] ** 2 + axis**2 <= radius**2


def drawn_maps(*shape: int) -> torch.Tensor:
    """Smooth label maps with labels 0 to 3."""
    shares = np.random.default_rng(0).normal(size=(4, *shape))
    smooth = ndimage.gaussian_filter(shares, (0, *[0] * (len(shape) - 2), 3, 3))
    return torch.from_numpy(smooth.argmax(axis=0))


@pytest.mark.parametrize("radius", [1, 2, 3, 4])
@pytest.mark.parametrize("operation", SCIPY, ids=lambda f: f.__name__)
def test_morphology_is_that_of_a_disk(operation, radius):
    maps = drawn_maps(3, 17, 6).float()
    expected = np.stack([SCIPY[operation](each, disk(radius)) for each in maps.numpy()])
    assert torch.equal(operation(maps, radius), torch.from_numpy(expected))


def test_opening_removes_what_is_thin_and_closing_fills_it():
    thin = torch.zeros(1, 20, 20)
    thin[:, 5:15, 9] = 1
    assert not opened(thin, 1).any()
    assert torch.equal(closed(1 - thin, 1), torch.ones_like(thin))


def test_boundary_pixels_change_places_with_those_at_a_distance():
    row = torch.tensor([[[0.0, 0.0, 0.0, 1.0, 2.0, 3.0]]])
    assert boundary(row).tolist() == [[[False, False, True, True, True, True]]]
    step = torch.tensor([[[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]]])  # its boundary are the third and the fourth pixel
    to_the_right, beyond = torch.tensor([[0, 2]]), torch.tensor([[0, 6]])
    assert exchange_boundary(step, to_the_right, share=1.0).tolist() == [[[0, 0, 1, 1, 0, 1]]]
    assert torch.equal(exchange_boundary(step, beyond, share=1.0), step)
    assert torch.equal(
        exchange_boundary(step.mT, to_the_right.flip(1), share=1.0).mT, exchange_boundary(step, to_the_right, 1.0)
    )
    assert torch.equal(exchange_boundary(step, to_the_right, share=0.0), step)


def test_each_map_has_a_distance_of_its_own():
    maps, shifts = drawn_maps(2, 12, 12).float(), torch.tensor([[0, 3], [-4, 0]])
    both = exchange_boundary(maps, shifts, share=1.0)
    each = [exchange_boundary(maps[i : i + 1], shifts[i : i + 1], share=1.0) for i in range(2)]
    assert torch.equal(both, torch.cat(each)) and not torch.equal(both, maps)


def test_about_a_third_of_the_slices_is_corrupted():
    """One or the other, each with probability 0.2: 0.36."""
    maps = drawn_maps(2, 500, 24, 20)
    found = corrupted(maps, np.random.default_rng(0))
    assert found.shape == maps.shape and found.dtype == torch.float32
    assert set(found.unique().tolist()) <= {0, 1, 2, 3}
    changed = (found != maps).flatten(2).any(dim=2).float().mean().item()
    assert changed == pytest.approx(0.36, abs=0.05)


def test_what_is_drawn_depends_on_the_generators_alone():
    maps, found = drawn_maps(40, 24, 20), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(corrupted(maps, np.random.default_rng(seed)))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_maps_without_a_boundary_stay():
    assert torch.equal(corrupted(torch.full((50, 9, 8), 2), np.random.default_rng(0)), torch.full((50, 9, 8), 2.0))
