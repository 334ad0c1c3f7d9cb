"""CutMix: who sees which view, and what is learned in the boxes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from data_builders import change_settings, read_json, write_json
from tiny_training import make_trainer, weights_after_two_steps

from alhvr_trainer.losses.cutmix import pseudo_label_loss
from alhvr_trainer.trainers.cutmix import CutMixTrainer
from alhvr_trainer.trainers.partners import unwrapped
from alhvr_trainer.trainers.samples import Forward, predictions, take_apart

pytest_plugins = ["planned_dataset"]
pytestmark = pytest.mark.any_nnunet  # test_rivals.py trains this method with the oldest release


@pytest.fixture
def trainer(tiny: Path) -> Any:
    change_settings(tiny, cutmix=1.0)
    trainer: Any = make_trainer(tiny, CutMixTrainer)
    trainer.initialize()
    return trainer


def some_samples(trainer: Any) -> Any:
    return take_apart(next(trainer.get_dataloaders()[0]), trainer.labeled_batch_size, trainer.device)


def test_the_network_sees_mixed_strong_views_and_the_average_weak_ones(trainer: Any):
    seen: dict[str, list[torch.Tensor]] = {"a": [], "average": []}
    for name, network in trainer.networks().items():
        unwrapped(network).register_forward_pre_hook(lambda _, inputs, at=name: seen[at].append(inputs[0]))
    samples = some_samples(trainer)
    forward = trainer.forward(samples)
    weak, second = trainer.views(samples.data)
    (student,), (teacher,) = seen["a"], seen["average"]
    labeled, inside = samples.labeled, forward.maps["inside"]
    assert torch.equal(teacher, weak[labeled:]) and torch.equal(student[:labeled], second[:labeled])
    strong = second[labeled:]
    for number, box in enumerate(inside):
        assert 0.05 < box.float().mean() < 0.6
        assert torch.equal(student[labeled + number][:, box], second[number % labeled][:, box])
        assert torch.equal(student[labeled + number][:, ~box], strong[number][:, ~box])


def with_labels(tiny: Path, labels: dict, **entries: Any) -> Any:
    write_json(tiny, "dataset.json", read_json(tiny, "dataset.json") | {"labels": labels, **entries})
    trainer: Any = make_trainer(tiny, CutMixTrainer)
    trainer.initialize()
    return trainer


def test_the_ignore_label_is_no_class(trainer: Any, tiny: Path):
    samples = some_samples(trainer)
    trainer = with_labels(tiny, {"background": 0, "shell": 1, "core": 2, "ignore": 3})
    true = samples.labels[0].clone()
    true[:, :, ::2] = 3
    forward = trainer.forward(replace(samples, labels=[true], valid=None, unlabeled_valid=None))
    inside = forward.maps["inside"]
    found = loss_of(trainer, replace(samples, labels=[true], valid=None, unlabeled_valid=None), forward)
    labels, known = forward.logits["weak"].argmax(dim=1), torch.ones_like(inside)
    for number, box in enumerate(inside):
        labels[number][box] = true[number % samples.labeled, 0].long()[box]
        known[number, ::2] &= ~box[::2]
    expected = pseudo_label_loss(forward.logits["strong"], labels.where(known, 0), known)
    torch.testing.assert_close(found, expected)


def loss_of(trainer: Any, samples: Any, forward: Forward) -> torch.Tensor:
    regions = trainer.label_manager.has_regions
    return trainer.unsupervised(predictions(forward, samples, {}, regions, None), samples)["pseudo_label"]


def test_labels_and_padding_are_mixed_as_the_images_are(trainer: Any):
    samples = some_samples(trainer)
    labeled, generator = samples.labeled, torch.Generator().manual_seed(0)
    valid = torch.rand(len(samples.data), *samples.data.shape[2:], generator=generator) > 0.3
    samples = replace(samples, valid=valid, unlabeled_valid=valid[labeled:])
    forward = trainer.forward(samples)
    found = loss_of(trainer, samples, forward)
    labels, inside = forward.logits["weak"].argmax(dim=1), forward.maps["inside"]
    true = samples.labels[0][:, 0].long()
    for number, box in enumerate(inside):
        labels[number][box] = true[number % labeled][box]
        valid[labeled + number][box] = valid[number % labeled][box]
    torch.testing.assert_close(found, pseudo_label_loss(forward.logits["strong"], labels, valid[labeled:]))
    found.backward()
    assert all(parameter.grad is None for parameter in trainer.partners["average"].parameters())
    assert any(parameter.grad.abs().sum() > 0 for parameter in trainer.network.parameters())


@pytest.mark.parametrize("ignore", [False, True])
def test_regions_and_ignored_voxels_stay_with_their_sample(ignore: bool, trainer: Any, tiny: Path):
    """What is right everywhere but in voxels that nobody annotated costs nothing."""
    samples = some_samples(trainer)
    labels = {"background": 0, "whole": [1, 2], "core": 2} | ({"ignore": 3} if ignore else {})
    trainer = with_labels(tiny, labels, regions_class_order=[1, 2])
    shape, unlabeled = samples.data.shape[2:], len(samples.data) - samples.labeled
    generator = torch.Generator().manual_seed(0)
    inside = torch.rand(unlabeled, *shape, generator=generator) > 0.5
    pseudo = torch.rand(unlabeled, 2, *shape, generator=generator) > 0.5
    true = torch.rand(samples.labeled, 2 + ignore, *shape, generator=generator) > 0.5
    known = ~true[:, 2] if ignore else torch.ones(samples.labeled, *shape, dtype=torch.bool)
    right = pseudo.clone()
    for number, box in enumerate(inside):
        other = number % samples.labeled
        right[number][:, box] = torch.where(known[other], true[other, :2], ~true[other, :2])[:, box]
    logits = {name: torch.where(labels, 9.0, -9.0) for name, labels in (("weak", pseudo), ("strong", right))}
    samples = replace(samples, labels=[true.float()], valid=None, unlabeled_valid=None)
    forward = Forward(labeled={}, logits=logits, maps={"inside": inside})
    assert loss_of(trainer, samples, forward).item() < 1e-3
    logits["strong"] = logits["strong"].roll(1, 0)
    assert loss_of(trainer, samples, forward).item() > 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("cutmix", 0.0), ("cutmix_end", 0.0), ("warm_up_fraction", 0.0), ("strong_transforms", 0), ("cutout", 0.5)),
        ("confidence_threshold", 1.0),
    ],
)
def test_each_setting_takes_effect(tiny: Path, key: str, value: float):
    change_settings(tiny, cutmix=1.0, warm_up_fraction=0.1)
    before = weights_after_two_steps(tiny, CutMixTrainer)
    assert torch.equal(before, weights_after_two_steps(tiny, CutMixTrainer))
    change_settings(tiny, **{key: value})
    assert not torch.equal(before, weights_after_two_steps(tiny, CutMixTrainer))


def test_unsure_voxels_teach_nothing_but_boxes_do(tiny: Path):
    change_settings(tiny, cutmix=1.0, confidence_threshold=0.6)
    trainer: Any = make_trainer(tiny, CutMixTrainer)
    trainer.initialize()
    samples = replace(some_samples(trainer), valid=None, unlabeled_valid=None)
    forward = trainer.forward(samples)
    found = loss_of(trainer, samples, forward)
    labels, inside = forward.logits["weak"].argmax(dim=1), forward.maps["inside"]
    sure = forward.logits["weak"].softmax(dim=1).amax(dim=1) >= 0.6
    assert 0.05 < sure.float().mean() < 0.95
    true = samples.labels[0][:, 0].long()
    for number, box in enumerate(inside):
        labels[number][box] = true[number % samples.labeled][box]
    torch.testing.assert_close(found, pseudo_label_loss(forward.logits["strong"], labels, sure | inside))


def test_boxes_end(tiny: Path):
    """The weight does not: the last part of the training has unmixed patches."""
    change_settings(tiny, cutmix=1.0, cutmix_end=0.5, warm_up_fraction=0.0)
    trainer: Any = make_trainer(tiny, CutMixTrainer)
    trainer.initialize()
    samples, steps = some_samples(trainer), trainer.num_epochs * trainer.num_iterations_per_epoch
    for step in range(steps):
        trainer.step = step
        assert bool(trainer.forward(samples).maps["inside"].any()) == (step < steps / 2) and trainer.weight() == 1.0
