"""NaN and Inf stop training at once and spoil no checkpoint; the gradient scaler's skipped steps are none of these."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from data_builders import change_dataset_json, change_settings, read_json, write_json
from tiny_training import make_trainer

from alhvr_trainer.errors import InputError
from alhvr_trainer.losses import TwoPasses
from alhvr_trainer.trainers.alhvr import ALHVRTrainer
from alhvr_trainer.trainers.checkpoints import read_checkpoint

pytest_plugins = ["planned_dataset"]

REGIONS = {"labels": {"background": 0, "all": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
PLACES = {  # where a bad number stands, and a term that must be named
    "labeled logits": "labeled_logits_b",
    "clean logits": "gamma",
    "perturbed logits": "gamma",
    "features": "ce_a",  # a's features are compared with b's prototypes
    "perturbed features": "ce_b",
    "weights": "supervised_b",
}
BAD = ("nan", "inf", "-inf")


def ready(root: Path) -> ALHVRTrainer:
    """A trainer in its first epoch."""
    trainer = make_trainer(root)
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    return trainer


def weights(trainer: ALHVRTrainer) -> dict[str, torch.Tensor]:
    networks = {"a": trainer.network, "b": trainer.partners["b"]}
    return {f"{n}.{key}": value.clone() for n, net in networks.items() for key, value in net.state_dict().items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """The networks of which weights differ."""
    return {key[0] for key in before if not torch.equal(before[key], after[key])}


def with_bad(tensor: torch.Tensor, sample: int, value: float) -> torch.Tensor:
    poisoned = tensor.clone()
    poisoned[(sample, *[0] * (tensor.ndim - 1))] = value
    return poisoned


def poisoned(outputs: list[torch.Tensor], passes: TwoPasses, place: str, value: float, labeled: int) -> Any:
    if place in ("labeled logits", "clean logits"):
        full, *coarser = outputs
        bad = with_bad(full, 0 if place == "labeled logits" else labeled, value)
        return [bad, *coarser], passes._replace(logits=bad[labeled:])
    field = place.replace(" ", "_")
    return outputs, passes._replace(**{field: with_bad(getattr(passes, field), 0, value)})


@pytest.mark.parametrize("heads", ["softmax", "regions"])
def test_nan_and_inf_stop_before_the_step(tiny: Path, heads: str, monkeypatch: pytest.MonkeyPatch):
    """In network b, wherever they stand. As nothing was changed, the same trainer goes on afterwards."""
    if heads == "regions":
        write_json(tiny, "dataset.json", read_json(tiny, "dataset.json") | REGIONS)
        change_dataset_json(tiny / "raw" / "Dataset901_Tiny", **REGIONS)
    trainer = ready(tiny)
    trainer.train_step(next(trainer.dataloader_train))
    file = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(file))
    content, before = file.read_bytes(), weights(trainer)
    optimizer = copy.deepcopy(trainer.optimizers["b"].state_dict()["state"])
    batch = next(trainer.dataloader_train)
    weight, clean_pass = next(trainer.partners["b"].parameters()), trainer.passes["b"]

    for place, term in PLACES.items():
        for value in BAD:
            with monkeypatch.context() as bad:
                if place == "weights":
                    weight.data.view(-1)[0] = float(value)
                else:

                    def poisoned_pass(*args: Any, place: str = place, value: str = value) -> Any:
                        return poisoned(*clean_pass(*args), place, float(value), 2)

                    bad.setitem(trainer.passes, "b", poisoned_pass)
                with pytest.raises(InputError) as error:
                    trainer.train_step(batch)
                weight.data.copy_(before[f"b.{next(iter(trainer.partners['b'].state_dict()))}"])
            cases = ", ".join(batch["keys"])
            message = rf"epoch 0, iteration 1: .*\b{term}\b.* not finite, with cases {re.escape(cases)};"
            assert re.match(message, str(error.value)), (place, value, str(error.value))
            assert changed(before, weights(trainer)) == set(), (place, value)
    for key, state in trainer.optimizers["b"].state_dict()["state"].items():
        assert torch.equal(state["momentum_buffer"], optimizer[key]["momentum_buffer"])
    assert file.read_bytes() == content
    assert [path.name for path in file.parent.glob("*.pth")] == ["checkpoint_latest.pth"]
    trainer.train_step(batch)
    assert changed(before, weights(trainer)) == {"a", "b"}


def spoil_gradient(network: torch.nn.Module, value: float) -> Any:
    """From now on one gradient of the network is ``value``; the losses stay finite."""
    return next(network.parameters()).register_hook(lambda gradient: torch.full_like(gradient, value))


def test_bad_gradients_without_a_scaler_stop_both_networks(tiny: Path):
    trainer = ready(tiny)
    before = weights(trainer)
    spoil_gradient(trainer.partners["b"], float("nan"))
    with pytest.raises(InputError, match=r"epoch 0, iteration 0: gradient_b not finite, with cases case_00"):
        trainer.train_step(next(trainer.dataloader_train))
    assert changed(before, weights(trainer)) == set()


def test_steps_that_the_scaler_skips_do_not_stop_training(tiny: Path):
    """Near the largest float the scaled gradients overflow, while every loss is finite; then the scale falls."""
    change_settings(tiny, consistency_weight=5.0, ramp_fraction=0.0)  # a loss well above 1, which the scale multiplies
    trainer = ready(tiny)
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=3e38)
    before = weights(trainer)
    values = trainer.train_step(next(trainer.dataloader_train))["record"].values
    assert all(torch.isfinite(torch.tensor(value)) for value in values.values())
    assert changed(before, weights(trainer)) == set()
    assert not trainer.optimizer.state and not trainer.optimizers["b"].state  # no momentum from a skipped step
    assert trainer.grad_scaler.get_scale() == pytest.approx(1.5e38)
    for _ in range(40):
        trainer.train_step(next(trainer.dataloader_train))
        if changed(before, weights(trainer)) == {"a", "b"}:
            break
    after = weights(trainer)
    assert changed(before, after) == {"a", "b"}
    assert all(torch.isfinite(value).all() for value in after.values())
    assert 1 < trainer.grad_scaler.get_scale() < 2e38


def test_one_network_skips_the_other_steps_and_the_scale_falls_once(tiny: Path):
    trainer = ready(tiny)
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = weights(trainer)
    hook = spoil_gradient(trainer.partners["b"], float("inf"))
    trainer.train_step(next(trainer.dataloader_train))
    assert changed(before, weights(trainer)) == {"a"}
    assert trainer.grad_scaler.get_scale() == 512.0
    hook.remove()
    trainer.train_step(next(trainer.dataloader_train))
    assert changed(before, weights(trainer)) == {"a", "b"}
    assert trainer.grad_scaler.get_scale() == 512.0


def test_the_scaler_changes_no_gradient(tiny: Path):
    """One step with a scale that is a power of two ends in the weights of the step without."""

    def after_one_step(scaler: Any) -> dict[str, torch.Tensor]:
        trainer = ready(tiny)
        trainer.grad_scaler = scaler
        trainer.train_step(next(trainer.dataloader_train))
        return weights(trainer)

    plain, scaled = after_one_step(None), after_one_step(torch.amp.GradScaler("cpu", init_scale=1024.0))
    for key, value in plain.items():
        torch.testing.assert_close(scaled[key], value)


@pytest.mark.parametrize("where", ["network a", "network b", "momentum b"])
def test_a_spoilt_network_does_not_replace_the_last_checkpoint(tiny: Path, where: str):
    """Weights that went bad in the last step of an epoch, before any loss could show it."""
    trainer = ready(tiny)
    trainer.train_step(next(trainer.dataloader_train))
    file = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(file))
    content = file.read_bytes()
    tensors = {
        "network a": next(trainer.network.parameters()).data,
        "network b": next(trainer.partners["b"].parameters()).data,
        "momentum b": next(iter(trainer.optimizers["b"].state.values()))["momentum_buffer"],
    }
    tensors[where].view(-1)[0] = float("inf")
    with pytest.raises(InputError, match=r"checkpoint_latest.pth was not written: NaN or Inf in .*is untouched"):
        trainer.save_checkpoint(str(file))
    assert file.read_bytes() == content
    with pytest.raises(InputError, match="there was none before"):
        trainer.save_checkpoint(str(file.with_name("checkpoint_best.pth")))
    assert read_checkpoint(file)["trainer_name"] == "ALHVRTrainer"
