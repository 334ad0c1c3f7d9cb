"""EVIL in nnU-Net: the loss of the evidential network, which voxels teach, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from data_builders import change_dataset_json, change_settings, read_json, write_json
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from tiny_training import make_trainer

from alhvr_trainer.errors import InputError
from alhvr_trainer.losses.evil import belief_probabilities, evidential_cross_entropy, evidential_uncertainty
from alhvr_trainer.trainers.evil import EVILTrainer, evidential_classes, make_evidential
from alhvr_trainer.trainers.samples import predictions, take_apart
from alhvr_trainer.trainers.variants import trainer_named

pytest_plugins = ["planned_dataset"]
pytestmark = pytest.mark.any_nnunet  # test_rivals.py trains this method with the oldest release

IGNORE = {"labels": {"background": 0, "shell": 1, "core": 2, "ignore": 3}}
REGIONS = {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}


def with_labels(root: Path, changes: dict[str, Any]) -> None:
    write_json(root, "dataset.json", read_json(root, "dataset.json") | changes)
    change_dataset_json(root / "raw" / "Dataset901_Tiny", **changes)


def ready(root: Path, progress: float = 1.0) -> Any:
    trainer: Any = make_trainer(root, EVILTrainer)
    trainer.initialize()
    trainer.step = round(progress * trainer.num_epochs * trainer.num_iterations_per_epoch)
    return trainer


def step_of(trainer: Any) -> tuple[Any, Any]:
    samples = take_apart(next(trainer.get_dataloaders()[0]), trainer.labeled_batch_size, trainer.device)
    return samples, trainer.forward(samples)


def dice(probabilities: torch.Tensor, labels: torch.Tensor, **options: Any) -> torch.Tensor:
    return MemoryEfficientSoftDiceLoss(None, batch_dice=True, smooth=1e-5, ddp=False, **options)(probabilities, labels)


@pytest.mark.parametrize("progress", [0.25, 1.0])
def test_the_evidential_network_has_evidential_cross_entropy_and_dice_of_belief(tiny: Path, progress: float):
    """At every scale, with nnU-Net's weights; the other network has nnU-Net's loss."""
    trainer = ready(tiny, progress)
    samples, forward = step_of(trainer)
    found, expected = trainer.supervised_losses(forward, samples), torch.zeros(())
    lambda_ = min(1.0, 2 * trainer.progress)
    weights = trainer.ordinary_loss.weight_factors
    assert len(weights) == len(samples.labels) > 2
    for weight, z, y in zip(weights, forward.labeled["a"], samples.labels, strict=True):
        edl = evidential_cross_entropy(z, y[:, 0], lambda_).mean()
        expected = expected + weight * (edl + dice(belief_probabilities(z), y, do_bg=False))
    torch.testing.assert_close(found["a"], expected)
    stock = make_trainer(tiny, trainer_named("CPSTrainer"))
    stock.initialize()
    torch.testing.assert_close(found["b"], stock.loss(forward.labeled["b"], samples.labels))


def test_regions_are_problems_of_in_against_out(tiny: Path):
    with_labels(tiny, REGIONS)
    trainer = ready(tiny)
    samples, forward = step_of(trainer)
    z, y = forward.labeled["a"][0], samples.labels[0]
    classes = evidential_classes(z, regions=True)
    torch.testing.assert_close(classes.softmax(dim=1)[:, 1].reshape(z.shape), torch.sigmoid(z))
    # sure of "out" and sure of "in" are alike
    torch.testing.assert_close(evidential_uncertainty(classes), evidential_uncertainty(evidential_classes(-z, True)))
    edl = evidential_cross_entropy(classes, y.flatten(0, 1)).mean()
    inside = belief_probabilities(classes)[:, 1].reshape(z.shape)
    torch.testing.assert_close(trainer.loss.loss(z, y), edl + dice(inside, y, do_bg=True))
    trainer.train_step(next(trainer.get_dataloaders()[0]))


@pytest.mark.parametrize("regions", [False, True], ids=["classes", "regions"])
def test_what_nobody_annotated_counts_nowhere(tiny: Path, regions: bool):
    with_labels(tiny, IGNORE | ({**REGIONS, "labels": {**REGIONS["labels"], "ignore": 3}} if regions else {}))
    of_scale = ready(tiny).loss.loss
    channels = 2 if regions else 3
    z = torch.randn(2, channels, 8, 8, requires_grad=True)
    ignored = torch.rand(2, 1, 8, 8) < 0.4
    if regions:
        target = torch.cat((torch.rand(2, 2, 8, 8) < 0.5, ignored), dim=1).short()
    else:
        target = torch.where(ignored, 3, torch.randint(3, (2, 1, 8, 8))).short()
    gradient = torch.autograd.grad(of_scale(z, target), z)[0]
    assert torch.equal(gradient.abs().amax(dim=1, keepdim=True) > 0, ~ignored)


def test_the_threshold_says_which_voxels_teach(tiny: Path):
    values = {}
    for threshold in (0.5, 1.0):
        change_settings(tiny, uncertainty_threshold=threshold, seed=3)
        trainer = ready(tiny)
        samples, forward = step_of(trainer)
        found = trainer.unsupervised(predictions(forward, samples, {}, False, None), samples)
        unsure = evidential_uncertainty(forward.logits["a"])
        valid = torch.ones_like(unsure, dtype=torch.bool) if samples.valid is None else samples.unlabeled_valid
        torch.testing.assert_close(found["certain"], (unsure[valid] < threshold).float().mean())
        torch.testing.assert_close(found["uncertainty"], unsure[valid].mean())
        values[threshold] = found["cross_entropy_b"].item()
    assert 0 < values[0.5] < values[1.0]


def test_each_term_trains_one_network(tiny: Path):
    change_settings(tiny, uncertainty_threshold=1.0)
    trainer = ready(tiny)
    samples, forward = step_of(trainer)
    values = trainer.unsupervised(predictions(forward, samples, {}, False, None), samples)
    for term, learns in {"evidential_a": "a", "cross_entropy_b": "b"}.items():
        for network in trainer.networks().values():
            network.zero_grad()
        values[term].backward(retain_graph=True)
        reached = {
            name
            for name, network in trainer.networks().items()
            if any(p.grad is not None for p in network.parameters())
        }
        assert reached == {learns}


def test_validation_has_the_evidential_loss(tiny: Path):
    """nnU-Net plots it beside network a's training loss."""
    trainer = ready(tiny)
    batch = next(trainer.get_dataloaders()[1])
    trainer.on_validation_epoch_start()
    with torch.no_grad():
        found = trainer.validation_step(batch)["loss"]
        expected = trainer.loss(trainer.network(batch["data"]), batch["target"])
    assert found == pytest.approx(expected.item())


def test_a_threshold_that_no_voxel_can_pass_is_refused(tiny: Path):
    change_settings(tiny, uncertainty_threshold=0.05)
    with pytest.raises(InputError, match=r"threshold. in the plans is 0.05, but with 3 classes .* at least 0.052"):
        make_trainer(tiny, EVILTrainer).initialize()
    with_labels(tiny, REGIONS)
    make_trainer(tiny, EVILTrainer).initialize()  # of two classes it is 0.035


def test_a_compiled_dice_loss_is_that_of_the_belief(tiny: Path):
    """nnU-Net compiles the Dice loss before it is made evidential."""
    loss = ready(tiny).ordinary_loss.loss
    loss.dc = torch.compile(loss.dc, backend="aot_eager", fullgraph=True)
    z, y = torch.randn(2, 3, 8, 8), torch.randint(3, (2, 1, 8, 8))
    make_evidential(loss, lambda: 1.0)
    torch.testing.assert_close(loss.dc(z, y), dice(belief_probabilities(z), y, do_bg=False))


@pytest.mark.parametrize("variant", ["DiceLoss", "CELoss", "Topk10Loss"])
def test_losses_without_dice_or_cross_entropy_are_refused(tiny: Path, variant: str):
    with pytest.raises(InputError, match="EVIL replaces the cross-entropy in nnU-Net's loss"):
        make_trainer(tiny, trainer_named(f"EVILTrainer{variant}")).initialize()


def test_the_evidential_network_has_the_authors_optimizer(tiny: Path):
    trainer = ready(tiny)
    (a,), (b,) = (trainer.optimizers[name].param_groups for name in ("a", "b"))
    assert (a["momentum"], a["nesterov"], a["weight_decay"]) == (0.9, False, 1e-3)
    assert (b["momentum"], b["nesterov"], b["weight_decay"]) == (0.99, True, 3e-5)
    assert a["lr"] == b["lr"] == trainer.initial_lr


def test_the_evidential_network_may_learn_at_a_rate_of_its_own(tiny: Path):
    change_settings(tiny, evidential_learning_rate=0.1)
    trainer = ready(tiny)
    trainer.on_train_epoch_start()
    rates = [trainer.optimizers[name].param_groups[0]["lr"] for name in ("a", "b")]
    assert rates == [0.1, trainer.initial_lr] == [0.1, 0.01]
    change_settings(tiny, evidential_learning_rate=0.0)
    with pytest.raises(InputError, match="evidential_learning_rate"):
        ready(tiny)
