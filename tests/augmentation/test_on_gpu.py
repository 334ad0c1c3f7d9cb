"""Each formula on a GPU, where all rows are computed and no label is looked at, gives what it gives on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from alhvr_trainer.augmentation import intensity
from alhvr_trainer.augmentation.label_steps import downsampled
from alhvr_trainer.augmentation.patches import change_rows
from alhvr_trainer.augmentation.spatial import coordinates, resample_box, resample_images, resample_labels

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
SHAPES = [(31, 24), (14, 20, 17)]
PLANES = 6
OPERATIONS: dict[str, Callable[..., torch.Tensor]] = {
    "noise": lambda x, n: intensity.add_noise(x, n, x.flip(0)),
    "brightness": intensity.multiply,
    "contrast": lambda x, n: intensity.change_contrast(x, n, True),
    "gamma": lambda x, n: intensity.change_gamma(x, n, n > 0.9, n > 0.7),
    "mirroring": lambda x, n: change_rows(x.clone(), n > 0.9, lambda rows: rows.flip(1)),
}


@pytest.fixture(params=SHAPES, ids=["2d", "3d"])
def planes(request: pytest.FixtureRequest) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(PLANES, *request.param) * 3 + 1


def assert_same(function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> None:
    expected = function(*(each.clone() for each in tensors))
    torch.testing.assert_close(function(*(each.cuda() for each in tensors)).cpu(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_intensities(operation, planes):
    assert_same(operation, planes, torch.rand(PLANES) + 0.5)


def test_resampling(planes):
    size = tuple(n - 5 for n in planes.shape[1:])
    matrices = torch.eye(len(size)).repeat(PLANES, 1, 1) + 0.2 * torch.randn(PLANES, len(size), len(size))
    labels = torch.randint(-1, 4, planes[:, None].shape, dtype=torch.int16)

    def images(x, m):
        return resample_images(x[:, None], coordinates(m, size, planes.shape[1:]))

    def found(x, m):
        return resample_labels(x, coordinates(m, size, planes.shape[1:]), (-1, 0, 1, 2, 3))

    def box(low, high, m):
        return resample_box(low, high, coordinates(m, size, planes.shape[1:]))

    assert_same(images, planes, matrices)
    ours, expected = found(labels.cuda(), matrices.cuda()).cpu(), found(labels, matrices)
    assert (ours != expected).float().mean() < 0.002  # ties in float16
    low = torch.ones(PLANES, len(size))
    ours, expected = box(low.cuda(), 8 * low.cuda(), matrices.cuda()).cpu(), box(low, 8 * low, matrices)
    assert (ours != expected).float().mean() < 0.002
    assert expected.any()
    assert not expected.all()


def test_deep_supervision(planes):
    labels = planes[:, None].round()
    for level in (0, 1):
        assert_same(lambda x, level=level: downsampled(x, [1.0, 0.5])[level], labels)
