"""Rotation and scaling of many patches against batchgeneratorsv2's SpatialTransform, one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from scipy.ndimage import gaussian_filter

from alhvr_trainer.augmentation.spatial import (
    OUTSIDE,
    coordinates,
    cut,
    draw_affine,
    overlap,
    resample_box,
    resample_images,
    resample_labels,
)
from alhvr_trainer.losses import host

SIZES = [((24, 20), (37, 33)), ((10, 16, 12), (19, 22, 20))]
VALUES = (OUTSIDE, 0, 1, 2, 3)


def transform(size: tuple[int, ...], rotation: float = np.pi, p: float = 1.0, **options) -> SpatialTransform:
    given = {
        "p_rotation": p,
        "p_scaling": p,
        "p_synchronize_scaling_across_axes": 1,
        "border_mode_seg": "constant",
        "padding_value_seg": -1,
        "rotation": (-rotation, rotation),
        "scaling": (0.7, 1.4),
    }
    return SpatialTransform(size, 0, False, **given | options)


@pytest.fixture(params=SIZES, ids=["2d", "3d"])
def patches(request: pytest.FixtureRequest):
    """Eight patches: smooth images, labels of all classes with padding on two sides; the stock transform's draws."""
    size, shape = request.param
    rng = np.random.default_rng(0)
    images = gaussian_filter(rng.normal(size=(8, 2, *shape)), (0, 0, *[2] * len(shape))).astype(np.float32)
    shares = gaussian_filter(rng.normal(size=(8, 4, *shape)), (0, 0, *[1.5] * len(shape)))
    labels = shares.argmax(axis=1)[:, None].astype(np.int16)
    labels[:, :, :4], labels[..., -5:] = OUTSIDE, OUTSIDE
    np.random.seed(0)
    stock = transform(size)
    drawn = [stock.get_parameters(image=torch.from_numpy(image)) for image in images]
    affines = torch.tensor(np.stack([each["affine"] for each in drawn]), dtype=torch.float32)
    places = coordinates(affines, size, shape)
    return torch.from_numpy(images), torch.from_numpy(labels), stock, drawn, places


def test_images(patches):
    images, _, stock, drawn, places = patches
    expected = torch.stack([stock._apply_to_image(x, **d) for x, d in zip(images, drawn, strict=True)])
    torch.testing.assert_close(resample_images(images, places), expected, rtol=1e-5, atol=1e-5)
    assert (expected == 0).any()  # some voxels lie outside


@pytest.mark.parametrize("way", ["borders", "shares"])
def test_labels(patches, way, monkeypatch):
    """Both ways to find the label with the largest share: voxels at borders alone, and all."""
    _, labels, stock, drawn, places = patches
    expected = torch.stack([stock._apply_to_segmentation(x, **d) for x, d in zip(labels, drawn, strict=True)])
    if way == "shares":  # what runs on a GPU, here on the CPU
        monkeypatch.setattr(host, "LOOKS", False)
    ours = resample_labels(labels, places, VALUES)
    assert (ours != expected).float().mean() < 2e-4  # rounding of float16 shares, at borders
    assert ours.dtype == labels.dtype and set(ours.unique().tolist()) == {*VALUES}


def test_ties_go_to_the_nearest_neighbor():
    """An odd patch in the middle of an even one has its voxels half-way between two; powers of 2 leave no rounding."""
    size, shape = (5, 7), (16, 16)
    labels = torch.randint(0, 4, (1, 1, *shape), dtype=torch.int16, generator=torch.Generator().manual_seed(0))
    stock = transform(size, p=0.0)
    for factor in (1.0, 2.0, 0.5):
        affine = np.eye(2) * factor
        grid = torch.from_numpy(spatial_grid(affine, size, shape))
        expected = stock._apply_to_segmentation(labels[0], grid=grid)
        places = coordinates(torch.tensor(affine, dtype=torch.float32)[None], size, shape)
        assert torch.equal(resample_labels(labels, places, VALUES)[0], expected), factor


def spatial_grid(affine: np.ndarray, size: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Where the stock transform looks, from its definition."""
    axes = np.meshgrid(*[np.linspace((1 - n) / 2, (n - 1) / 2, n) for n in size], indexing="ij")
    places = np.stack(axes, -1) @ affine.T / (np.array(shape) / 2)
    return places[..., ::-1].astype(np.float32).copy()


def test_box_is_the_validity_mask(patches):
    """A box of ones in OUTSIDE, resampled as a label, and in closed form."""
    _, labels, stock, drawn, places = patches
    shape = labels.shape[2:]
    low = torch.tensor([[2] * len(shape), [0] * len(shape)] * 4)
    high = torch.tensor([[n - 3 for n in shape], list(shape)] * 4)
    inside = torch.full_like(labels, OUTSIDE)
    for number, box in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        inside[(number, 0, *(slice(a, b) for a, b in zip(*box, strict=True)))] = 1
    expected = torch.stack([stock._apply_to_segmentation(x, **d) for x, d in zip(inside, drawn, strict=True)])
    ours = resample_box(low, high, places)
    assert ((expected[:, 0] == 1) != ours).float().mean() < 2e-4
    assert ours.any() and not ours.all()


def test_a_box_half_outside_ties_to_the_nearest_voxel():
    places = [torch.tensor([[-0.5, 0.5, 1.5, 2.5, 3.5]])]
    made = resample_box(torch.tensor([[1]]), torch.tensor([[3]]), places)
    assert made.tolist() == [[False, False, True, True, False]]  # 0.5 and 2.5 are ties; round half to even


@pytest.mark.parametrize("options", [{}, {"p_rot_per_axis": 0.5}, {"p_synchronize_scaling_across_axes": 0.5}])
@pytest.mark.parametrize(("size", "shape"), SIZES, ids=["2d", "3d"])
def test_the_same_random_numbers_give_the_same_affine(size, shape, options):
    stock = transform(size, p=0.4, **options)
    kinds = set()
    for number in range(60):
        np.random.seed(number)
        expected = stock.get_parameters(image=torch.zeros(1, *shape))["affine"]
        np.random.seed(number)
        ours = draw_affine(stock)
        kinds.add(ours is None)
        assert (ours is None) == (expected is None)
        assert ours is None or np.allclose(ours, expected, atol=1e-12)
    assert kinds == {True, False}


@pytest.mark.parametrize("corner", [(0, 0), (-3, 2), (4, -6), (-2, -2), (9, 0), (-20, 0), (0, 40)])
def test_cut_pads_where_the_patch_leaves_the_image(corner):
    image = torch.arange(2 * 7 * 9, dtype=torch.float32).view(2, 7, 9)
    out = torch.full((2, 6, 12), 5.0)
    cut(image.numpy(), corner, out, -1)
    for y in range(6):
        for x in range(12):
            at = (y + corner[0], x + corner[1])
            within = 0 <= at[0] < 7 and 0 <= at[1] < 9
            assert out[:, y, x].tolist() == (image[:, at[0], at[1]].tolist() if within else [-1, -1])
    low, high = overlap(corner, (6, 12), (7, 9))
    inside = torch.zeros(6, 12, dtype=torch.bool)
    inside[low[0] : high[0], low[1] : high[1]] = True
    assert torch.equal(inside, (out != -1).all(dim=0))
