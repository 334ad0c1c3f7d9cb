"""A training step leaves every decision to the device. What a GPU runs, here on the CPU, gives the CPU's numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from data_builders import change_settings
from tiny_training import make_trainer
from torch.utils._python_dispatch import TorchDispatchMode

from alhvr_trainer.config.methods import methods
from alhvr_trainer.errors import InputError
from alhvr_trainer.losses import FeaturePerturbation, host
from alhvr_trainer.losses.regions import confidence_threshold
from alhvr_trainer.trainers.alhvr import ALHVRTrainer

pytest_plugins = ["planned_dataset"]

TRAINERS = [each.trainer for each in methods().values() if each.summary]
NAMES = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "bincount")
LOOKS = {getattr(torch.ops.aten, name) for name in NAMES}
"""What makes a CPU wait for a GPU: ``.item()``, ``.tolist()``, ``bool()`` of a tensor, counting what is true."""


class Forbidden(TorchDispatchMode):
    """Fails where a step looks at a number."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket not in LOOKS, f"the step looks at a number: {func}"
        masks = [x for x in (args[1] if len(args) > 1 and isinstance(args[1], list) else []) if torch.is_tensor(x)]
        indexed = func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put_)
        assert not (indexed and any(mask.dtype == torch.bool for mask in masks)), "indexing with a mask"
        return func(*args, **(kwargs or {}))


def ready(root: Path, kind: type) -> Any:
    trainer = make_trainer(root, kind)
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    return trainer


def padded(batch: dict[str, Any]) -> dict[str, Any]:
    """With a sample of either kind that is not all inside the image."""
    for row in (0, 3):
        batch["target"][0][row, -1, :5] = 0
    return batch


@pytest.mark.parametrize("kind", TRAINERS)
def test_no_step_looks_at_a_number(kind: type, tiny: Path, monkeypatch: pytest.MonkeyPatch):
    trainer = ready(tiny, kind)
    batches = [padded(next(trainer.dataloader_train)) for _ in range(2)]
    monkeypatch.setattr(host, "LOOKS", False)
    trainer.train_step(batches[0])  # what is built once may look
    before = trainer.step
    with Forbidden():
        trainer.train_step(batches[1])
    assert trainer.step == before + 1


def test_the_test_would_notice():
    with pytest.raises(AssertionError, match="looks at a number"), Forbidden():
        torch.ones(1).item()
    with pytest.raises(AssertionError, match=r"a mask|looks at a number"), Forbidden():
        torch.ones(3)[torch.ones(3, dtype=torch.bool)]


@pytest.mark.parametrize("kind", TRAINERS)
def test_it_gives_the_numbers_of_a_step_that_looks(kind: type, tiny: Path, monkeypatch: pytest.MonkeyPatch):
    """Losses, terms and gradient norms, and with them the weights, to rounding."""
    change_settings(tiny, consistency_weight=1.0, ramp_fraction=0.0, seed=5)
    change_settings(tiny, distance_steepness=1.0)  # UG-MCL's 1500 magnifies rounding
    found = []
    for looks in (True, False):
        trainer = ready(tiny, kind)
        batches = [padded(next(trainer.dataloader_train)) for _ in range(2)]
        with monkeypatch.context() as patch:
            patch.setattr(host, "LOOKS", looks)
            found.append([trainer.train_step(batch)["record"] for batch in batches])
    for one, other in zip(*found, strict=True):
        assert one.values == pytest.approx(other.values, rel=1e-4, abs=1e-6)


def test_what_was_not_looked_at_stops_the_epoch_before_a_checkpoint(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    trainer = ready(tiny, ALHVRTrainer)
    monkeypatch.setattr(host, "LOOKS", False)
    batches = [next(trainer.dataloader_train) for _ in range(3)]
    batches[1]["data"][2, 0, 3, 3] = float("nan")
    outputs = [trainer.train_step(batch) for batch in batches]
    with pytest.raises(InputError, match=r"epoch 0, iteration 1: .*logits_a.* not finite, with cases case_00"):
        trainer.on_train_epoch_end(outputs)
    assert list(Path(trainer.output_folder).glob("*.pth")) == []


def test_a_bad_gradient_is_seen_at_the_end_of_the_epoch(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    trainer = ready(tiny, ALHVRTrainer)
    monkeypatch.setattr(host, "LOOKS", False)
    next(trainer.partners["b"].parameters()).register_hook(lambda gradient: torch.full_like(gradient, float("inf")))
    outputs = [trainer.train_step(next(trainer.dataloader_train))]
    with pytest.raises(InputError, match="epoch 0, iteration 0: gradient_b not finite"):
        trainer.on_train_epoch_end(outputs)


@pytest.mark.parametrize("proportion", [0.01, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("inside", ["some", "one", "none"])
def test_gamma_where_the_number_of_voxels_is_not_known(proportion, inside, monkeypatch: pytest.MonkeyPatch):
    """Sorting finds what picking the inside and then the smallest values finds."""
    confidence = torch.rand(3, 20, 17, generator=torch.Generator().manual_seed(0)).double()
    confidence[:, :4] = 0.5  # equal values
    valid = torch.zeros_like(confidence, dtype=torch.bool)
    if inside != "none":
        valid[0, 0, 0] = True
    if inside == "some":
        valid[1:, 2:15] = True
    expected = confidence_threshold(confidence, proportion, valid)
    monkeypatch.setattr(host, "LOOKS", False)
    torch.testing.assert_close(confidence_threshold(confidence, proportion, valid), expected)


def test_perturbation_of_another_device_or_version_starts_anew():
    """A GPU's generator has a state of 16 bytes; version 0.1.0 had two generators."""
    features = [torch.rand(1, 2, 8, 8)]
    for state in (
        {"generator": torch.zeros(16, dtype=torch.uint8)},
        {"choices": torch.zeros(5056), "noise": torch.zeros(9)},
    ):
        perturb = FeaturePerturbation(3)
        perturb.load_state_dict(state)
        assert torch.equal(perturb(features)[0], FeaturePerturbation(3)(features)[0])
