"""UG-MCL inside nnU-Net: the distance head, what its losses reach, and which voxels they count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from data_builders import change_settings, read_json, write_json
from tiny_training import make_trainer

from alhvr_trainer.errors import InputError
from alhvr_trainer.losses.ugmcl import cross_task_term
from alhvr_trainer.trainers.partners import unwrapped
from alhvr_trainer.trainers.samples import full_resolution, predictions, take_apart
from alhvr_trainer.trainers.ugmcl import UGMCLTrainer, foreground_masks

pytest_plugins = ["planned_dataset"]
pytestmark = pytest.mark.any_nnunet  # test_rivals.py trains this method with the oldest release

REGIONS = {
    "labels": {"background": 0, "whole": [1, 2], "core": 2},
    "regions_class_order": [1, 2],
}


def started(root: Path, **settings: Any) -> Any:
    """A trainer in its first epoch; a flat sigmoid, so that every voxel has a gradient, unless told otherwise."""
    change_settings(root, **{"distance_steepness": 1.0, "uncertainty_passes": 1, **settings})
    trainer = make_trainer(root, UGMCLTrainer)
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    trainer.step = trainer.num_epochs * trainer.num_iterations_per_epoch  # when the teacher is certain of most voxels
    return trainer


def one_forward(trainer: Any) -> tuple[Any, Any, Any]:
    samples = take_apart(next(trainer.dataloader_train), trainer.labeled_batch_size, trainer.device)
    forward = trainer.forward(samples)
    return samples, forward, predictions(forward, samples, {}, trainer.label_manager.has_regions, None)


def reached(module: torch.nn.Module, value: torch.Tensor) -> bool:
    parameters = list(module.parameters())
    found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return any(gradient is not None and bool(gradient.any()) for gradient in found)


def test_the_head_is_trained_with_network_a(tiny: Path):
    trainer = started(tiny)
    assert list(trainer.optimizers) == ["a"]
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    parts = unwrapped(trainer.network), trainer.partners["distance"]
    assert trained == {id(p) for part in parts for p in part.parameters()}


@pytest.mark.parametrize("network", ["PlainConvUNet", "ResidualEncoderUNet"])
@pytest.mark.parametrize("deep_supervision", [True, False])
def test_the_head_reads_what_the_last_segmentation_layer_reads(network: str, deep_supervision: bool, tiny: Path):
    plans = read_json(tiny, "ALHVRPlans.json")
    architecture = plans["configurations"]["2d"]["architecture"]
    architecture["network_class_name"] = architecture["network_class_name"].replace("PlainConvUNet", network)
    if network == "ResidualEncoderUNet":
        architecture["arch_kwargs"]["n_blocks_per_stage"] = architecture["arch_kwargs"].pop("n_conv_per_stage")
    write_json(tiny, "ALHVRPlans.json", plans)
    trainer = started(tiny, dropout=0.0)
    trainer.set_deep_supervision_enabled(deep_supervision)
    whole, head = unwrapped(trainer.network), trainer.partners["distance"]
    data, read = torch.randn(2, 1, *trainer.configuration_manager.patch_size), []
    whole.decoder.seg_layers[-1].register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    outputs, distance = trainer.student(data)
    torch.testing.assert_close(outputs, whole(data))
    torch.testing.assert_close(distance, torch.tanh(head.convolution(read[0])))
    assert distance.shape == (2, 2, *data.shape[2:]) and distance.dtype == torch.float32


def test_the_compiled_student_is_the_same_without_graph_breaks(tiny: Path):
    trainer = started(tiny, dropout=0.0)
    data = torch.randn(2, 1, *trainer.configuration_manager.patch_size)
    skips = trainer._encode(data)
    compiled = torch.compile(trainer._decode, backend="aot_eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(skips), trainer._decode(skips))


def test_each_loss_reaches_its_part_of_the_student_and_none_the_teacher(tiny: Path):
    trainer = started(tiny)
    samples, forward, found = one_forward(trainer)
    losses, terms = trainer.supervised_losses(forward, samples), trainer.unsupervised(found, samples)
    network, head = unwrapped(trainer.network), trainer.partners["distance"]
    own = network.decoder.seg_layers[-1]
    expected = {  # segmentation layer, distance head
        "a": (losses["a"], True, False),
        "distance": (losses["distance"], False, True),
        "intra_task": (terms["intra_task"], True, False),
        "cross_task": (terms["cross_task"], True, True),
    }
    for name, (value, segmentation, distance) in expected.items():
        assert (reached(own, value), reached(head, value)) == (segmentation, distance), name
        assert reached(network.encoder, value), name
    assert not any(p.requires_grad for p in trainer.partners["teacher"].parameters())


def test_the_student_sees_clean_samples_and_the_teacher_all_of_them_with_noise(tiny: Path):
    trainer = started(tiny, uncertainty_passes=3)
    seen: dict[str, list[torch.Tensor]] = {"a": [], "teacher": []}
    for name, inputs in seen.items():
        encoder = unwrapped(trainer.networks()[name]).encoder
        encoder.register_forward_pre_hook(lambda _, given, to=inputs: to.append(given[0]))
    samples, _, _ = one_forward(trainer)
    assert len(seen["a"]) == 1 and torch.equal(seen["a"][0], samples.data)
    assert len(seen["teacher"]) == 1 + 3
    for data in seen["teacher"]:
        assert 0 < (data - samples.data).abs().max() <= 0.2 + 1e-6


@pytest.mark.parametrize("regions", [False, True])
def test_foreground_masks(regions: bool):
    labels = torch.tensor([0, 1, 2, 3]).view(1, 1, 2, 2)  # 3: ignore
    if regions:
        labels = torch.cat([(labels == 1) | (labels == 2), labels == 2, labels == 3], dim=1).short()
    targets = foreground_masks(labels, 2, regions)
    assert targets[0, 0].tolist() == [[False, True], [regions, False]]
    assert targets[0, 1].tolist() == [[False, False], [True, False]]


@pytest.mark.parametrize("regions", [False, True])
def test_distances_have_one_channel_per_class_or_region_and_padding_counts_nowhere(regions: bool, tiny: Path):
    if regions:
        write_json(tiny, "dataset.json", read_json(tiny, "dataset.json") | REGIONS)
    trainer = started(tiny)
    samples, forward, found = one_forward(trainer)
    distance = forward.maps["distance"]
    assert distance.shape[1] == 2
    losses, terms = trainer.supervised_losses(forward, samples), trainer.unsupervised(found, samples)
    inside = samples.valid
    assert not inside.all()
    (gradient,) = torch.autograd.grad(losses["distance"], distance, retain_graph=True)
    counted = inside & (torch.arange(len(inside)) < samples.labeled).view(-1, 1, 1)
    assert torch.equal(gradient.any(dim=1), counted)
    (gradient,) = torch.autograd.grad(terms["cross_task"], distance, retain_graph=True)
    assert not gradient.any(dim=1)[~inside].any() and gradient.any(dim=1)[samples.labeled :].any()
    if regions:  # probabilities of each region against its own distances
        certain = torch.ones_like(found.valid)
        error = torch.sigmoid(-distance) - torch.sigmoid(full_resolution(forward.logits["a"]))
        folded = distance.flatten(0, 1).unsqueeze(1)
        value = cross_task_term(found.logits["a"], folded, certain, 1.0)
        torch.testing.assert_close(value, error.square().mean())


def test_the_steepness_takes_effect(tiny: Path):
    found = []
    for steepness in (1.0, 1500.0):
        trainer = started(tiny, distance_steepness=steepness)
        samples, forward, _ = one_forward(trainer)
        found.append(trainer.supervised_losses(forward, samples)["distance"].item())
    assert found[0] != pytest.approx(found[1], rel=0.01)


@pytest.mark.parametrize(("setting", "value"), [("distance_steepness", 0.0), ("dropout", 1.0)])
def test_a_bad_setting_is_refused(setting: str, value: float, tiny: Path):
    change_settings(tiny, **{setting: value})
    with pytest.raises(InputError, match=setting):
        make_trainer(tiny, UGMCLTrainer)
