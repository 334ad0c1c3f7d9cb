"""MCF in nnU-Net: the other architecture, the contest, and who learns what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from data_builders import change_settings, read_json, write_json
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from tiny_training import make_trainer

from alhvr_trainer.errors import InputError
from alhvr_trainer.losses.mcf import rectification_terms
from alhvr_trainer.planning.memory import typical_architecture
from alhvr_trainer.trainers.mcf import MCFTrainer, labels_of, other_architecture
from alhvr_trainer.trainers.samples import Samples, predictions, take_apart

pytest_plugins = ["planned_dataset"]
pytestmark = pytest.mark.any_nnunet  # test_rivals.py trains this method with the oldest release


def started(root: Path) -> tuple[Any, Samples, Any]:
    """A trainer, a batch, and what the networks give for it."""
    trainer: Any = make_trainer(root, MCFTrainer)
    trainer.initialize()
    samples = take_apart(next(trainer.get_dataloaders()[0]), trainer.labeled_batch_size, trainer.device)
    return trainer, samples, trainer.forward(samples)


def built(architecture: dict[str, Any]) -> Any:
    names = architecture["network_class_name"], architecture["arch_kwargs"], architecture["_kw_requires_import"]
    return get_network_from_plans(*names, 1, 3, deep_supervision=True)


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_other_architecture_has_outputs_of_the_same_scales(dimensions: int, residual: bool):
    architecture = typical_architecture(dimensions, residual)
    kwargs = architecture["arch_kwargs"]
    kwargs |= {"features_per_stage": [4] * 4, "n_stages": 4, "n_conv_per_stage_decoder": [1] * 3}
    kwargs |= {key: kwargs[key][:4] for key in ("strides", "kernel_sizes")}
    kwargs |= {key: value[:4] for key, value in kwargs.items() if key in ("n_blocks_per_stage", "n_conv_per_stage")}
    ours, other = built(architecture), built(other_architecture(architecture, (1, 2)))
    assert [type(ours), type(other)] == [PlainConvUNet, ResidualEncoderUNet][:: -1 if residual else 1]
    data = torch.randn(1, 1, *(32,) * dimensions)
    assert [x.shape for x in ours(data)] == [x.shape for x in other(data)]


def test_the_last_number_of_blocks_is_that_of_all_deeper_stages():
    other = other_architecture(typical_architecture(2, residual=False), (1, 3))
    assert other["arch_kwargs"]["n_blocks_per_stage"] == [1, 3, 3, 3, 3]


def test_residual_arguments_do_not_reach_the_plain_network():
    architecture = typical_architecture(2, residual=True)
    architecture["arch_kwargs"] |= {"block": "x.BottleneckD", "stem_channels": 8}
    architecture["_kw_requires_import"].append("block")
    assert isinstance(built(other_architecture(architecture, (1,))), PlainConvUNet)


def test_a_third_architecture_is_refused():
    architecture = typical_architecture(2, residual=False) | {"network_class_name": "somewhere.SwinUNETR"}
    with pytest.raises(InputError, match="architecture PlainConvUNet or ResidualEncoderUNet; these have SwinUNETR"):
        other_architecture(architecture, (1,))


def test_plans_with_a_residual_encoder_train(tiny: Path):
    plans = read_json(tiny, "ALHVRPlans.json")
    configuration = plans["configurations"]["2d"]
    configuration["architecture"] = other_architecture(configuration["architecture"], (1,))
    write_json(tiny, "ALHVRPlans.json", plans)
    trainer, _, _ = started(tiny)
    assert isinstance(trainer.network, ResidualEncoderUNet) and isinstance(trainer.partners["b"], PlainConvUNet)
    trainer.on_train_epoch_start()
    assert trainer.train_step(next(trainer.get_dataloaders()[0]))["record"].values["correction"] > 0


def test_only_the_loser_learns(tiny: Path):
    change_settings(tiny, residual_blocks=[2])
    trainer, samples, forward = started(tiny)
    assert [len(stage.blocks) for stage in trainer.partners["b"].encoder.stages] == [2] * 4
    for a_wins, learns in ((True, "b"), (False, "a")):
        found = replace(forward, maps={"a_wins": torch.tensor(a_wins)})
        values = trainer.unsupervised(predictions(found, samples, {}, False, None), samples)
        assert values["a_wins"] == a_wins
        for network in trainer.networks().values():
            network.zero_grad()
        values["correction"].backward(retain_graph=True)
        for name, network in trainer.networks().items():
            assert any(p.grad is not None and p.grad.any() for p in network.parameters()) == (name == learns)


@pytest.mark.parametrize("better", ["a", "b"])
def test_who_is_right_on_the_labeled_samples_wins(tiny: Path, better: str):
    trainer, samples, forward = started(tiny)
    right = 9 * torch.nn.functional.one_hot(samples.labels[0][:, 0].long(), 3).movedim(-1, 1).float()
    outputs = {name: [right if name == better else logits[0]] for name, logits in forward.labeled.items()}
    assert trainer.a_wins(outputs, samples) == (better == "a")


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_rectification_adds_to_nnunets_loss(tiny: Path, weight: float):
    change_settings(tiny, rectification_weight=weight)
    trainer, samples, forward = started(tiny)
    found = trainer.supervised_losses(forward, samples)
    a, b = (forward.labeled[name][0] for name in "ab")
    terms = rectification_terms(a, b, samples.labels[0][:, 0], None if samples.valid is None else samples.valid[:2])
    for name, term in zip("ab", terms, strict=True):
        assert term > 0
        torch.testing.assert_close(found[name], trainer.loss(forward.labeled[name], samples.labels) + weight * term)


@pytest.mark.parametrize("regions", [False, True], ids=["classes", "regions"])
def test_padding_and_what_nobody_annotated_do_not_count(regions: bool):
    """One labeled sample of four voxels: the first padded, the second not annotated."""
    manager = SimpleNamespace(has_regions=regions, has_ignore_label=True, ignore_label=3, num_segmentation_heads=2)
    target = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 0], [0, 1, 0, 0]]] if regions else [[[0, 3, 2, 1]]])
    valid = torch.tensor([[False, True, True, True]] * 2)
    samples = Samples(torch.zeros(2, 1, 4), [target], valid, valid[1:], 1, torch.tensor(3), ["x", "y"])
    labels, counts = labels_of(samples, manager)
    assert labels.tolist() == ([[0, 0, 1, 1], [0, 0, 1, 0]] if regions else [[0, 3, 2, 1]])
    assert counts.tolist() == [[False, False, True, True]] * (2 if regions else 1)


def test_weights_loaded_into_network_a_leave_the_other_alone(tiny: Path):
    trainer, _, _ = started(tiny)
    before = {key: value.clone() for key, value in trainer.partners["b"].state_dict().items()}
    trainer.network.load_state_dict({key: value + 1 for key, value in trainer.network.state_dict().items()})
    assert all(torch.equal(value, before[key]) for key, value in trainer.partners["b"].state_dict().items())


def test_a_stage_without_blocks_is_refused(tiny: Path):
    change_settings(tiny, residual_blocks=[1, 0])
    with pytest.raises(InputError, match=r'"alhvr.residual_blocks" in the plans'):
        make_trainer(tiny, MCFTrainer)
