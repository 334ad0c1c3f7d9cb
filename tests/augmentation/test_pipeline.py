"""nnU-Net's own pipelines in batched form: what is drawn, what each sample becomes, and in which order."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from scipy.stats import ks_2samp

from alhvr_trainer.augmentation import image_steps
from alhvr_trainer.augmentation.draws import scalars, uniform
from alhvr_trainer.augmentation.patches import Patches
from alhvr_trainer.augmentation.pipeline import BatchedAugmentation, OnHost, batched_step
from alhvr_trainer.errors import InputError

MANY = 3000


def pipeline(patch: tuple[int, ...] = (16, 12), mirror: bool = True, dummy_2d: bool = False, **options: Any):
    axes, scales = tuple(range(len(patch))) if mirror else (), options.pop("scales", None)
    return nnUNetTrainer.get_training_transforms(patch, (-np.pi, np.pi), scales, axes, dummy_2d, **options)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def patches(samples: int, shape: tuple[int, ...] = (16, 12), channels: int = 2, segmentations: int = 1) -> Patches:
    drawn = generator(1)
    images = torch.randn(samples, channels, *shape, generator=drawn) + 3
    segmentation = torch.randint(-1, 4, (samples, segmentations, *shape), generator=drawn, dtype=torch.int16)
    return Patches(images, segmentation, samples)


def intensity_transforms() -> list[RandomTransform]:
    return [t for t in pipeline().transforms if isinstance(t, RandomTransform)]


NAMES = ["noise", "blur", "brightness", "contrast", "low resolution", "gamma inverted", "gamma"]


@pytest.mark.parametrize("number", range(7), ids=NAMES)
def test_as_many_channels_are_changed_as_in_nnunet(number):
    """Share of the channels, and of samples in which both are changed, within four standard deviations."""
    transform = intensity_transforms()[number]
    before = patches(MANY, (128, 5))  # long, so that hardly any lower resolution is the whole one
    after = batched_step(transform)(Patches(before.images.clone(), before.segmentation, MANY), generator())
    changed = (after.images != before.images).flatten(2).any(dim=2).float()
    p_sample, p_channel = transform.apply_probability, getattr(transform.transform, "p_per_channel", 1.0)
    for found, expected in (
        (changed.mean().item(), p_sample * p_channel),
        (changed.prod(dim=1).mean().item(), p_sample * p_channel**2),
    ):
        assert abs(found - expected) < 4 * (expected * (1 - expected) / MANY) ** 0.5, (found, expected)


@pytest.mark.parametrize("number", range(7), ids=NAMES)
def test_numbers_are_drawn_from_the_same_distribution(number, monkeypatch):
    """Kolmogorov and Smirnov's test of what the batched step draws against what the transform draws."""
    transform = intensity_transforms()[number].transform
    drawn: list[torch.Tensor] = []
    monkeypatch.setattr(image_steps, "act_on", lambda images, _c, _f, *numbers: drawn.append(numbers[0]) or images)
    batched_step(transform)(patches(MANY, (4, 4)), generator())
    ours = drawn[0].flatten().numpy()
    keys = {"GaussianNoiseTransform": "sigmas", "GaussianBlurTransform": "sigmas", "GammaTransform": "gamma"}
    keys |= {"SimulateLowResolutionTransform": "scales"}
    key = keys.get(type(transform).__name__, "multipliers")
    np.random.seed(0)
    torch.manual_seed(0)
    theirs: list[float] = []
    while len(theirs) < MANY:
        found = transform.get_parameters(image=torch.zeros(2, 4, 4))[key]
        theirs.extend(np.ravel(np.asarray(found if found is not None else [], dtype=float)))
    assert ks_2samp(ours, theirs).pvalue > 1e-3
    wrong = ours * 1.03 if ours.min() > 0.1 else ours * 1.2
    assert ks_2samp(wrong, theirs).pvalue < 1e-3  # a range that is off by a few percent would show


def test_channels_and_axes_go_together_as_in_nnunet(monkeypatch):
    """Noise: one strength for all channels; low resolution: one scale for all axes; blur: its own for each."""
    drawn: dict[str, torch.Tensor] = {}
    for name, transform in zip(NAMES, intensity_transforms(), strict=True):
        monkeypatch.setattr(image_steps, "act_on", lambda x, _c, _f, *n, name=name: drawn.update({name: n[0]}) or x)
        batched_step(transform.transform)(patches(50), generator())
    assert (drawn["noise"][:, 0] == drawn["noise"][:, 1]).all()
    assert all((drawn[name][:, 0] != drawn[name][:, 1]).all() for name in ("brightness", "contrast", "gamma", "blur"))
    assert (drawn["low resolution"][..., 0] == drawn["low resolution"][..., 1]).all()
    assert (drawn["blur"][..., 0] != drawn["blur"][..., 1]).all()


def test_slices_keep_their_resolution_in_dummy_2d():
    step = pipeline((6, 16, 12), dummy_2d=True).transforms[7].transform
    assert step.ignore_axes == (0,)
    drawn: list[torch.Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_steps, "act_on", lambda x, _c, _f, *numbers: drawn.append(numbers[0]) or x)
        batched_step(step)(patches(9, (6, 16, 12)), generator())
    assert (drawn[0][..., 0] == 1).all() and (drawn[0][..., 1:] < 1).all()


def test_mirroring_flips_every_axis_of_half_of_the_samples():
    before = patches(400, (4, 5, 6), 1)
    copy = Patches(before.images.clone(), before.segmentation.clone(), 400)
    after = batched_step(MirrorTransform((0, 1, 2)))(copy, generator())
    counts = dict.fromkeys(itertools.product((False, True), repeat=3), 0)
    for number in range(400):
        for flips in counts:
            axes = [axis + 1 for axis, flip in enumerate(flips) if flip]
            if torch.equal(before.images[number].flip(axes), after.images[number]):
                assert torch.equal(before.segmentation[number].flip(axes), after.segmentation[number])
                counts[flips] += 1
    assert sum(counts.values()) == 400 and min(counts.values()) > 25


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_mask_for_norm": [True, False]},
        {"regions": [[1, 2, 3], [2, 3], 3]},
        {"regions": [[1, 2], 2], "ignore_label": 3},
        {"scales": [[1, 1], [0.5, 0.5], [0.25, 0.5]]},
        {"is_cascaded": True, "foreground_labels": [1, 2, 3]},
    ],
    ids=["plain", "mask", "regions", "ignore", "deep supervision", "cascade"],
)
def test_what_draws_nothing_equals_nnunet_sample_by_sample(options):
    """Without rotation, intensities, mirroring and the cascade's random changes."""
    stock = pipeline(mirror=False, **options)
    stock.transforms = [t for t in stock.transforms if not isinstance(t, (RandomTransform, SpatialTransform))]
    batch = patches(5, segmentations=2 if "is_cascaded" in options else 1)
    expected = [
        stock(image=image.clone(), segmentation=seg.clone())
        for image, seg in zip(batch.images, batch.segmentation, strict=True)
    ]
    images, target = BatchedAugmentation(stock)(batch, generator())
    assert torch.equal(images, torch.stack([each["image"] for each in expected]))
    for level, scale in enumerate(target if isinstance(target, list) else [target]):
        theirs = [e["segmentation"][level] if isinstance(target, list) else e["segmentation"] for e in expected]
        assert torch.equal(scale, torch.stack(theirs)) and scale.dtype == theirs[0].dtype


def test_order_is_that_of_the_pipeline():
    """Brightness after an erasing transform changes nothing; before it, it would have been erased, too."""

    class Record(BasicTransform):
        def __init__(self, name: str, seen: list[str]) -> None:
            super().__init__()
            self.name, self.seen = name, seen

        def batched(self):
            return lambda batch, _generator: self.seen.append(self.name) or batch

    seen: list[str] = []
    BatchedAugmentation(ComposeTransforms([Record(name, seen) for name in "abc"]))(patches(1), generator())
    assert seen == ["a", "b", "c"]


def test_the_cascades_changes_run_sample_by_sample():
    augment = BatchedAugmentation(pipeline(is_cascaded=True, foreground_labels=[1, 2, 3]))
    assert augment.host_steps == [
        "ApplyRandomBinaryOperatorTransform",
        "RemoveRandomConnectedComponentFromOneHotEncodingTransform",
    ]
    np.random.seed(0)
    torch.manual_seed(0)
    images, target = augment(patches(8, segmentations=2), generator())
    assert images.shape == (8, 5, 16, 12) and target.shape == (8, 1, 16, 12)
    assert set(images[:, 2:].unique().tolist()) == {0.0, 1.0}


def test_an_unknown_transform_runs_on_the_host():
    class Negative(BasicTransform):
        def _apply_to_image(self, img: torch.Tensor, **_: Any) -> torch.Tensor:
            return -img

        def _apply_to_segmentation(self, segmentation: torch.Tensor, **_: Any) -> torch.Tensor:
            return segmentation

    batch = patches(3)
    step = batched_step(Negative())
    assert isinstance(step, OnHost) and torch.equal(step(batch, generator()).images, -batch.images)


@pytest.mark.parametrize("change", ["elastic", "late", "nearest"])
def test_other_geometry_is_refused(change):
    stock = pipeline()
    if change == "elastic":
        stock.transforms[0].p_elastic_deform = 0.2
    elif change == "nearest":
        stock.transforms[0].mode_seg = "nearest"
    else:
        stock.transforms.append(stock.transforms.pop(0))
    with pytest.raises(InputError, match=r'"alhvr\.augmentation" "device" knows nnU-Net.s rotation and scaling'):
        BatchedAugmentation(stock)


def test_a_function_cannot_be_drawn_from():
    with pytest.raises(InputError, match=r"cannot draw from <function .*; set it to \"stock\""):
        scalars(lambda: 1.0, (3,), generator())
    assert scalars(2, (2,), generator()).tolist() == [2.0, 2.0]
    assert scalars(BGContrast((1.5, 2.0)), (1000,), generator()).min() >= 1.5
    assert uniform((1000,), 3.0, 4.0, generator()).mean().item() == pytest.approx(3.5, abs=0.05)


def test_the_same_generator_gives_the_same_batch():
    augment = BatchedAugmentation(pipeline())
    made = [augment(patches(6), generator(seed))[0] for seed in (5, 5, 6)]
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
