"""The weak and the strong view of a patch, cut out of nnU-Net's own augmentation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA

from alhvr_trainer.trainers.views import INSIDE_UNLABELED, Cutout, RandAugment, TwoViews, two_view_pipeline

CHANNELS = 2


def pipeline(kind: type = nnUNetTrainer, patch: tuple[int, ...] = (32, 24), **options: Any):
    dummy_2d = options.pop("dummy_2d", False)
    rotation = (-0.5, 0.5)
    return kind.get_training_transforms(patch, rotation, None, tuple(range(len(patch))), dummy_2d, **options)


def patch(shape: tuple[int, ...] = (32, 24), unlabeled: bool = True, segmentations: int = 1) -> dict[str, torch.Tensor]:
    """As the loader crops it: the image, then the segmentations with "inside" as the last, -1 in a padded margin."""
    image = torch.randn(CHANNELS, *shape) + 5.0
    inside = torch.full((1, *shape), INSIDE_UNLABELED if unlabeled else 1, dtype=torch.int16)
    inside[..., :3] = -1
    return {"image": image, "segmentation": torch.cat((*[inside.clamp(max=1)] * segmentations, inside))}


def seed(number: int) -> None:
    torch.manual_seed(number)
    np.random.seed(number)


def double() -> MultiplicativeBrightnessTransform:
    return MultiplicativeBrightnessTransform(2.0, synchronize_channels=True)


def test_views_share_the_geometry_and_the_strong_one_alone_is_changed_further():
    """Without intensity transforms to draw from, and nothing cut out, the strong view is the weak one."""
    for number in range(6):
        seed(number)
        made = two_view_pipeline(pipeline(), CHANNELS, strong_transforms=0, cutout=0.0)(**patch())
        weak, strong = made["image"].split(CHANNELS)
        assert torch.equal(weak, strong)
    differing = 0
    for number in range(6):
        seed(number)
        weak, strong = two_view_pipeline(pipeline(), CHANNELS, 2, cutout=0.0)(**patch())["image"].split(CHANNELS)
        differing += not torch.equal(weak, strong)
        # blurred, noisy, another contrast: but the same image in the same place
        assert np.corrcoef(weak.flatten(), strong.flatten())[0, 1] > 0.5, number
    assert differing >= 4


def test_labeled_patches_are_augmented_as_nnunet_does():
    """With the weak view's draws equal, the second view is what nnU-Net's own pipeline gives, number by number."""
    plain, ours = pipeline(), two_view_pipeline(pipeline(), CHANNELS, 2, 0.5)
    changed = 0
    for number in range(12):
        seed(number)
        sample = patch(unlabeled=False)
        seed(number)
        expected = plain(**{key: value.clone() for key, value in sample.items()})
        seed(number)
        made = ours(**sample)
        assert torch.equal(made["image"][CHANNELS:], expected["image"]), number
        assert torch.equal(made["segmentation"], expected["segmentation"]), number
        changed += not torch.equal(made["image"][:CHANNELS], expected["image"])
    assert changed > 4  # nnU-Net's intensity transforms are rare, but not that rare


def test_what_is_cut_out_of_the_strong_view_leaves_the_mask():
    seed(3)
    made = two_view_pipeline(pipeline(), CHANNELS, 0, 0.5)(**patch())
    weak, strong = made["image"].split(CHANNELS)
    inside = made["segmentation"][-1]
    erased = (strong == 0).all(dim=0) & (weak != 0).all(dim=0)
    assert erased.any() and not inside[erased].any()
    assert torch.equal(weak[:, ~erased], strong[:, ~erased])
    assert set(inside.unique().tolist()) == {0, 1} and inside[~erased].float().mean() > 0.7


@pytest.mark.parametrize("shape", [(40, 30), (20, 16, 12)], ids=["2d", "3d"])
def test_cutout_erases_one_box_of_all_channels_and_of_the_mask(shape):
    sizes = []
    for number in range(40):
        seed(number)
        sample = {
            "image": torch.ones(CHANNELS, *shape),
            "segmentation": torch.ones(2, *shape, dtype=torch.int16),
        }
        made = Cutout(0.5)(**sample)
        erased = made["image"][0] == 0
        assert torch.equal(made["image"][1] == 0, erased)
        assert torch.equal(made["segmentation"][-1] == -1, erased) and (made["segmentation"][0] == 1).all()
        edges = [int(erased.any(dim=[d for d in range(len(shape)) if d != axis]).sum()) for axis in range(len(shape))]
        assert int(erased.sum()) == np.prod(edges)
        assert all(edge <= size // 2 for edge, size in zip(edges, shape, strict=True))
        sizes.append(edges)
    whole, quarter = (max(edges[0] for edges in sizes), min(edges[0] for edges in sizes))
    assert whole == shape[0] // 2 and quarter < whole  # at a border, part of the box lies outside


def test_randaugment_draws_its_number_with_replacement():
    image = torch.ones(1, 4, 4)
    assert RandAugment([double()], 3)(image=image.clone())["image"].unique().tolist() == [8.0]
    assert RandAugment([double()], 0)(image=image.clone())["image"].unique().tolist() == [1.0]
    assert RandAugment([], 3)(image=image.clone())["image"].unique().tolist() == [1.0]
    seen = {
        RandAugment([double(), MultiplicativeBrightnessTransform(3.0, True)], 2)(image=image.clone())["image"]
        .max()
        .item()
        for _ in range(40)
    }
    assert seen == {4.0, 6.0, 9.0}


def test_each_kind_of_patch_goes_its_way_and_the_weak_view_stays():
    class Fill(BasicTransform):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def apply(self, data_dict: dict, **params: Any) -> dict:
            data_dict["image"].fill_(self.value)
            return data_dict

    views = TwoViews(labeled=Fill(1.0), unlabeled=Fill(2.0))
    for unlabeled, value in ((False, 1.0), (True, 2.0)):
        sample = patch(unlabeled=unlabeled)
        made = views(**sample)
        assert torch.equal(made["image"][:CHANNELS], sample["image"])
        assert made["image"][CHANNELS:].unique().tolist() == [value]
        assert set(made["segmentation"][-1].unique().tolist()) == {-1, 1}


def test_masked_channels_are_masked_in_both_views():
    made = two_view_pipeline(pipeline(use_mask_for_norm=[False, True]), CHANNELS, 2, 0.0)
    seed(0)
    sample = patch(unlabeled=False)
    result = made(**sample)
    outside = result["segmentation"][0] == 0  # the label is -1 there before nnU-Net removes it
    assert outside.any()
    for channel in (1, 3):
        assert not result["image"][channel][outside].any()
    assert result["image"][0][outside].any()


def test_a_cascades_previous_stage_follows_both_views():
    options = {"is_cascaded": True, "foreground_labels": [1]}
    seed(1)
    result = two_view_pipeline(pipeline(**options), CHANNELS, 2, 0.5)(**patch(segmentations=2))
    assert result["image"].shape[0] == 2 * CHANNELS + 1
    assert set(result["image"][-1].unique().tolist()) <= {0.0, 1.0}
    assert result["segmentation"].shape[0] == 2


def test_anisotropic_patches_augmented_slice_by_slice():
    seed(2)
    transforms = pipeline(patch=(8, 24, 20), dummy_2d=True)
    result = two_view_pipeline(transforms, CHANNELS, 2, 0.5)(**patch((8, 24, 20)))
    assert result["image"].shape == (2 * CHANNELS, 8, 24, 20)


def test_without_nnunets_augmentation_the_strong_view_is_cutout_alone():
    seed(0)
    sample = patch()
    result = two_view_pipeline(pipeline(nnUNetTrainerNoDA), CHANNELS, 2, 0.5)(**sample)
    weak, strong = result["image"].split(CHANNELS)
    assert torch.equal(weak, sample["image"])
    assert (strong == 0).any() and torch.equal(strong[strong != 0], weak[strong != 0])
