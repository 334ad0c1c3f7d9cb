"""Patches of label maps: cut where the case has them, background where nnU-Net masked, turned and mirrored as drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import make_trainer

from alhvr_trainer.augmentation.spatial import OUTSIDE
from alhvr_trainer.trainers import shape_training
from alhvr_trainer.trainers.aau import AAUTrainer

pytest_plugins = ["planned_dataset"]


@pytest.fixture
def trainer(tiny: Path) -> Any:
    made: Any = make_trainer(tiny, AAUTrainer)
    made.initialize()
    made.get_dataloaders()
    return made


def loader_of(trainer: Any, seed: int = 1, **geometry: Any) -> Any:
    """Patches as they are cut, unless something else is asked for."""
    found = shape_training.geometry_of(trainer)
    spatial = found.spatial
    spatial.p_rotation, spatial.p_scaling = geometry.pop("turned", 0.0), 0.0
    found = replace(found, **{"mirror_axes": (), **geometry})
    source = shape_training.made_from(trainer, found) | {"seed": seed}
    return shape_training.label_loader(trainer, found, source)


def drawn(loader: Any, batches: int = 5) -> torch.Tensor:
    return torch.cat([next(loader)["labels"] for _ in range(batches)])


def test_patches_are_cut_from_the_cases_with_padding_outside(trainer: Any):
    """Each lies in one of the padded slices, where what nnU-Net masked is background."""
    labeled, (height, width) = trainer.data.labeled, trainer.configuration_manager.patch_size
    slices = []
    for case in labeled.identifiers:
        label = np.array(labeled.load_case(case)[1][:][0]).astype(np.int16)
        slices += list(np.pad(label.clip(min=0), ((0, 0), (height, height), (width, width)), constant_values=OUTSIDE))
    windows = np.concatenate(
        [np.lib.stride_tricks.sliding_window_view(each, (height, width)).reshape(-1, height, width) for each in slices]
    )
    patches = drawn(loader_of(trainer), batches=2)
    assert patches.dtype == torch.int16 and (patches == OUTSIDE).any()
    for patch in patches.numpy():
        assert (windows == patch).all(axis=(1, 2)).any()


def test_masked_voxels_are_background(trainer: Any, monkeypatch: pytest.MonkeyPatch):
    kind = type(trainer.data.labeled)
    original = kind.load_case

    def masked(self: Any, case: str) -> Any:
        images, label, *rest = original(self, case)
        return images, np.full(label.shape, -1, np.int8), *rest

    plain = drawn(loader_of(trainer))
    monkeypatch.setattr(kind, "load_case", masked)
    patches = drawn(loader_of(trainer))
    assert set(patches.unique().tolist()) == {OUTSIDE, 0}
    assert torch.equal(patches == OUTSIDE, plain == OUTSIDE)


def test_a_batch_depends_on_the_seed_and_its_number(trainer: Any):
    one, again, other = (drawn(loader_of(trainer, seed, turned=1.0, mirror_axes=(0, 1))) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_patches_are_mirrored_along_the_axes_that_nnunet_mirrors(trainer: Any):
    plain, mirrored = drawn(loader_of(trainer)), drawn(loader_of(trainer, mirror_axes=(1,)))
    flipped = [torch.equal(m, p.flip(1)) and not torch.equal(m, p) for m, p in zip(mirrored, plain, strict=True)]
    kept = [torch.equal(m, p) for m, p in zip(mirrored, plain, strict=True)]
    assert 3 < sum(flipped) < 17 and sum(flipped) + sum(kept) == len(plain)


def test_patches_are_turned(trainer: Any):
    """Their labels stay labels, and about as many voxels have each."""
    plain, turned = drawn(loader_of(trainer)), drawn(loader_of(trainer, turned=1.0))
    assert (plain != turned).flatten(1).any(dim=1).float().mean() > 0.9
    assert set(turned.unique().tolist()) == {OUTSIDE, 0, 1, 2}
    for label in (1, 2):
        assert (turned == label).sum().item() == pytest.approx((plain == label).sum().item(), rel=0.25)
