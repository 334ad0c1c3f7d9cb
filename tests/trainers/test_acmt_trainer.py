"""AC-MT inside nnU-Net: what says which voxels are ambiguous, and what its settings change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from data_builders import change_settings, read_json, write_json
from tiny_training import make_trainer

from alhvr_trainer.errors import InputError
from alhvr_trainer.losses.uamt import predictive_entropy
from alhvr_trainer.trainers.acmt import ACMTTrainer
from alhvr_trainer.trainers.partners import unwrapped
from alhvr_trainer.trainers.samples import predictions, take_apart
from alhvr_trainer.trainers.supervised import SupervisedTrainer

pytest_plugins = ["planned_dataset"]
pytestmark = pytest.mark.any_nnunet  # test_rivals.py trains this method with the oldest release


def started(root: Path, kind: type = ACMTTrainer, **settings: Any) -> Any:
    """A trainer in its first epoch."""
    change_settings(root, **settings)
    trainer = make_trainer(root, kind)
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    return trainer


def samples_and_terms(trainer: Any) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    samples = take_apart(next(trainer.dataloader_train), trainer.labeled_batch_size, trainer.device)
    found = predictions(trainer.forward(samples), samples, {}, trainer.label_manager.has_regions, None)
    return samples, found, trainer.unsupervised(found, samples)


def watch(trainer: Any) -> dict[str, list[torch.Tensor]]:
    """What each network sees from now on."""
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in trainer.networks()}
    for name, network in trainer.networks().items():
        unwrapped(network).register_forward_pre_hook(lambda _, inputs, at=name: seen[at].append(inputs[0]))
    return seen


@pytest.mark.parametrize(("ambiguity", "passes"), [("entropy", 0), ("dropout", 3)])
def test_the_student_sees_noise_only_in_its_passes_without_gradients(ambiguity: str, passes: int, tiny: Path):
    trainer = started(tiny, ambiguity=ambiguity, uncertainty_passes=3)
    seen = watch(trainer)
    samples, _, _ = samples_and_terms(trainer)
    unlabeled = samples.data[samples.labeled :]
    clean, *noisy = seen["a"]
    assert torch.equal(clean, samples.data) and len(noisy) == passes
    for data in (*noisy, *seen["teacher"]):
        assert 0 < (data - unlabeled).abs().max() <= 0.2 + 1e-6
    assert len(seen["teacher"]) == 1


def test_ambiguous_is_where_the_students_own_entropy_is_high(tiny: Path):
    trainer = started(tiny, dropout=0.0, ambiguity_threshold=0.9, final_ambiguity_threshold=0.9)
    samples, found, values = samples_and_terms(trainer)
    inside = samples.unlabeled_valid
    high = predictive_entropy(found.logits["a"].softmax(dim=1)) >= trainer.threshold(3)
    assert 0 < values["ambiguous"] < 1
    torch.testing.assert_close(values["ambiguous"], high[inside].double().mean().float())
    (gradient,) = torch.autograd.grad(values["consistency"], found.logits["a"])
    assert torch.equal(gradient.abs().sum(dim=1) > 0, high & inside)


def test_with_dropout_it_is_where_the_mean_of_its_passes_is(tiny: Path):
    trainer = started(tiny, ambiguity="dropout", ambiguity_threshold=0.9, final_ambiguity_threshold=0.9)
    samples, found, values = samples_and_terms(trainer)
    high = predictive_entropy(found.maps["mean"]) >= trainer.threshold(3)
    assert 0 < values["ambiguous"] < 1
    torch.testing.assert_close(values["ambiguous"], high[samples.unlabeled_valid].double().mean().float())


@pytest.mark.parametrize("ambiguity", ["entropy", "dropout"])
def test_a_threshold_of_0_takes_all_voxels_inside_the_image(ambiguity: str, tiny: Path):
    trainer = started(tiny, ambiguity=ambiguity, ambiguity_threshold=0.0, final_ambiguity_threshold=0.0)
    samples, _, values = samples_and_terms(trainer)
    assert not samples.unlabeled_valid.all() and values["ambiguous"].item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("settings", "end"),
    [({}, 0.6), ({"ambiguity": "dropout"}, 0.9), ({"final_ambiguity_threshold": 0.95}, 0.95)],
)
def test_the_threshold_ends_where_the_variant_has_it(settings: dict, end: float, tiny: Path):
    change_settings(tiny, ambiguity_threshold=0.7, **settings)
    trainer: Any = make_trainer(tiny, ACMTTrainer)
    trainer.num_epochs, trainer.num_iterations_per_epoch = 2, 2
    log_2 = torch.tensor(2.0).log().item()
    assert trainer.threshold(2) / log_2 == pytest.approx(0.7, abs=0.002)
    trainer.step = 4
    assert trainer.threshold(2) / log_2 == pytest.approx(end)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("ambiguity", "S-Err"),
        ("ambiguity_threshold", 1.5),
        ("final_ambiguity_threshold", -0.1),
        ("uncertainty_passes", 0),
    ],
)
def test_a_bad_setting_is_refused(setting: str, value: Any, tiny: Path):
    change_settings(tiny, **{setting: value})
    with pytest.raises(InputError, match=setting):
        make_trainer(tiny, ACMTTrainer)


@pytest.mark.parametrize("network", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_with_weight_0_and_no_dropout_it_is_nnunet(network: str, tiny: Path):
    plans = read_json(tiny, "ALHVRPlans.json")
    architecture = plans["configurations"]["2d"]["architecture"]
    architecture["network_class_name"] = architecture["network_class_name"].replace("PlainConvUNet", network)
    if network == "ResidualEncoderUNet":
        architecture["arch_kwargs"]["n_blocks_per_stage"] = architecture["arch_kwargs"].pop("n_conv_per_stage")
    write_json(tiny, "ALHVRPlans.json", plans)
    supervised, trainer = (
        started(tiny, kind, consistency_weight=0.0, dropout=0.0) for kind in (SupervisedTrainer, ACMTTrainer)
    )
    for _ in range(2):
        batch = next(trainer.dataloader_train)
        labeled = {"data": batch["data"][:2], "target": [scale[:2, :-1] for scale in batch["target"]]}
        supervised.train_step(labeled)
        trainer.train_step(batch)
    found = unwrapped(trainer.network).state_dict()
    for key, value in unwrapped(supervised.network).state_dict().items():
        assert torch.equal(found[key], value), key
