"""AAU inside nnU-Net, once its autoencoder is trained: what the networks see, and what the term trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_rivals import inputs_of_networks, unsupervised_values
from test_shape_training import made, started
from tiny_training import make_trainer

from alhvr_trainer.errors import InputError
from alhvr_trainer.trainers.partners import unwrapped
from alhvr_trainer.trainers.samples import take_apart
from alhvr_trainer.trainers.supervised import SupervisedTrainer

pytest_plugins = ["planned_dataset"]
pytestmark = pytest.mark.any_nnunet  # test_rivals.py trains this method with the oldest release


def test_the_autoencoder_stays_as_it_was_trained(tiny: Path):
    trainer = started(tiny, shape_iterations=2)
    before = {name: value.clone() for name, value in trainer.autoencoder.state_dict().items()}
    assert list(trainer.optimizers) == ["a"]
    for epoch in range(2):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        trainer.train_step(next(trainer.dataloader_train))
    for name, value in trainer.autoencoder.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_teacher_has_noise_on_all_patches_and_the_autoencoder_sees_its_labels(tiny: Path):
    trainer = made(tiny)
    samples, seen = inputs_of_networks(trainer)
    (student,), (teacher,), (maps,) = seen["a"], seen["teacher"], seen["shape"]
    assert torch.equal(student, samples.data)
    noise = teacher - samples.data
    assert noise.abs().max().item() == pytest.approx(0.2, rel=1e-3)
    assert all(of_sample.any() for of_sample in noise)
    logits = trainer.run("teacher", teacher)[0]
    assert torch.equal(maps, (logits.argmax(dim=1) * samples.valid).unsqueeze(1).float())


def test_the_term_trains_the_student_on_labeled_and_unlabeled_samples(tiny: Path):
    trainer = started(tiny, shape_iterations=2)
    for parameter in unwrapped(trainer.partners["teacher"]).parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    batch = next(trainer.dataloader_train)
    samples = take_apart(batch, trainer.labeled_batch_size, trainer.device)
    logits: list[torch.Tensor] = []
    hook = unwrapped(trainer.network).decoder.seg_layers[-1].register_forward_hook(lambda _m, _i, z: logits.append(z))
    value = unsupervised_values(trainer, batch)["consistency"]
    hook.remove()
    gradient = torch.autograd.grad(value, logits[0], retain_graph=True)[0]
    assert all(of_sample.any() for of_sample in gradient)
    assert not gradient[~samples.valid.unsqueeze(1).expand_as(gradient)].any()
    value.backward()
    assert all(p.grad is None for name in ("teacher", "shape") for p in trainer.partners[name].parameters())


def test_each_setting_takes_effect(tiny: Path):
    trainer = started(tiny, shape_iterations=2, input_noise=0.0, code_noise=0.0)
    batch = next(trainer.dataloader_train)
    for parameter in unwrapped(trainer.partners["teacher"]).parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)

    def found(**settings: Any) -> dict[str, float]:
        trainer.settings = trainer.settings.model_copy(update=settings)
        return {name: value.item() for name, value in unsupervised_values(trainer, batch).items()}

    plain = found()
    assert found() == plain
    assert found(uncertainty_decay=5.0)["consistency"] != plain["consistency"]
    assert found(uncertainty_decay=1.0, code_noise=0.5)["uncertainty"] != plain["uncertainty"]
    assert found(code_noise_bound=0.0) == pytest.approx(plain)


@pytest.mark.parametrize(
    "setting",
    [{"uncertainty_decay": -1.0}, {"shape_iterations": 0}, {"shape_learning_rate": 0.0}, {"code_noise": -0.1}],
)
def test_a_bad_setting_is_refused(setting: dict, tiny: Path):
    with pytest.raises(InputError, match=f'"alhvr.{next(iter(setting))}" in the plans is'):
        made(tiny, **setting)


def test_without_weight_the_student_trains_as_the_supervised_trainer_does(tiny: Path):
    trainer = started(tiny, shape_iterations=2, consistency_weight=0.0)
    supervised: Any = make_trainer(tiny, SupervisedTrainer)
    supervised.on_train_start()
    supervised.on_train_epoch_start()
    for _ in range(2):
        batch = next(trainer.dataloader_train)
        labels = [scale[: trainer.labeled_batch_size, :-1] for scale in batch["target"]]
        supervised.train_step({"data": batch["data"][: trainer.labeled_batch_size], "target": labels})
        trainer.train_step(batch)
    for name, value in unwrapped(supervised.network).state_dict().items():
        assert torch.equal(unwrapped(trainer.network).state_dict()[name], value), name
