"""The rival methods inside nnU-Net's loop: each trains, resumes exactly, and saves what stock nnU-Net reads."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from data_builders import change_settings, make_tiny, read_json, set_environment, write_json
from tiny_training import make_trainer

from alhvr_trainer.losses.cps import region_mask
from alhvr_trainer.trainers.aau import AAUTrainer
from alhvr_trainer.trainers.acmt import ACMTTrainer
from alhvr_trainer.trainers.checkpoints import read_checkpoint
from alhvr_trainer.trainers.cps import CPSTrainer
from alhvr_trainer.trainers.cutmix import CutMixTrainer
from alhvr_trainer.trainers.evil import EVILTrainer
from alhvr_trainer.trainers.fixmatch import FixMatchTrainer
from alhvr_trainer.trainers.mcf import MCFTrainer
from alhvr_trainer.trainers.mcnet import MCNetTrainer
from alhvr_trainer.trainers.mean_teacher import MeanTeacherTrainer
from alhvr_trainer.trainers.mlrp import MLRPTrainer
from alhvr_trainer.trainers.partners import unwrapped
from alhvr_trainer.trainers.samples import predictions, take_apart
from alhvr_trainer.trainers.semi_supervised import SemiSupervisedTrainer
from alhvr_trainer.trainers.supervised import SupervisedTrainer
from alhvr_trainer.trainers.uamt import UAMTTrainer
from alhvr_trainer.trainers.ugmcl import UGMCLTrainer
from alhvr_trainer.trainers.variants import trainer_named

pytest_plugins = ["planned_dataset"]

RIVALS = (
    MeanTeacherTrainer,
    UAMTTrainer,
    FixMatchTrainer,
    CPSTrainer,
    MCNetTrainer,
    ACMTTrainer,
    MLRPTrainer,
    UGMCLTrainer,
    EVILTrainer,
    MCFTrainer,
    AAUTrainer,
    CutMixTrainer,
)
AVERAGES = {
    MeanTeacherTrainer: "teacher",
    UAMTTrainer: "teacher",
    FixMatchTrainer: "average",
    CutMixTrainer: "average",
    ACMTTrainer: "teacher",
    UGMCLTrainer: "teacher",
    AAUTrainer: "teacher",
}
"""Partners that are moving averages of network a."""
FROZEN = ("shape",)
"""Partners that stay as they were before the first step."""
TEACH_AT_ONCE = {"confidence_threshold": 0.0, "uncertainty_passes": 2, "uncertainty_threshold": 1.0}
"""Untrained networks are sure of nothing."""
REGIONS = {
    "labels": {"background": 0, "whole": [1, 2], "core": 2},
    "regions_class_order": [1, 2],
}


def weights(trainer: SemiSupervisedTrainer) -> dict[str, torch.Tensor]:
    """Of all networks, by name, cloned."""
    return {
        f"{name}.{key}": value.clone()
        for name, network in trainer.networks().items()
        for key, value in unwrapped(network).state_dict().items()
    }


def train(trainer: SemiSupervisedTrainer, half_way: Path | None = None) -> list[dict[str, torch.Tensor]]:
    """``run_training``; the weights after every step. ``half_way``: where to put the first epoch's checkpoint."""
    step, seen = trainer.train_step, []

    def watched(batch: dict) -> dict:
        if half_way is not None and trainer.current_epoch == 1 and not half_way.exists():
            shutil.copy(Path(trainer.output_folder) / "checkpoint_latest.pth", half_way)
        values = step(batch)
        seen.append(weights(trainer))
        return values

    trainer.train_step = watched
    trainer.save_every = 1
    trainer.run_training()
    return seen


@pytest.fixture(scope="module", params=RIVALS, ids=lambda kind: kind.__name__)
def trained(
    request: pytest.FixtureRequest, planned_once: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SimpleNamespace]:
    """One training of each method, and where it lies."""
    root = tmp_path_factory.mktemp(request.param.__name__) / "nnunet"
    shutil.copytree(planned_once, root)
    with pytest.MonkeyPatch.context() as environment:
        set_environment(environment, root)
        make_tiny(root)
        change_settings(root, **TEACH_AT_ONCE)
        trainer: Any = make_trainer(root, request.param)
        steps = train(trainer, half_way=root / "half_way.pth")
        checkpoint = read_checkpoint(Path(trainer.output_folder) / "checkpoint_final.pth")
        yield SimpleNamespace(root=root, kind=request.param, trainer=trainer, steps=steps, checkpoint=checkpoint)


def test_trains_and_logs(trained: SimpleNamespace):
    trainer = trained.trainer
    assert set(trainer.terms) | set(trainer.observed) <= set(trainer.monitor.history)
    for name, values in trainer.monitor.history.items():
        assert len(values) == trainer.num_epochs and np.isfinite(values).all(), name
    assert all(trainer.monitor.history[term][-1] > 0 for term in trainer.terms)
    first, last = trained.steps[0], trained.steps[-1]
    for name in trainer.networks():
        changed = [not torch.equal(first[key], last[key]) for key in first if key.startswith(f"{name}.")]
        assert not any(changed) if name in FROZEN else sum(changed) > len(changed) / 2, name
    assert (Path(trainer.output_folder) / "progress_alhvr.png").is_file()


def test_the_checkpoint_is_a_stock_one_of_the_network_that_predicts(trained: SimpleNamespace):
    stock = make_trainer(trained.root, SupervisedTrainer)
    stock.initialize()
    stock.network.load_state_dict(trained.checkpoint["network_weights"], strict=True)
    saved = trained.checkpoint["network_weights"]
    predicts = trained.trainer.predicts_with
    for key, value in trained.steps[-1].items():
        name, _, parameter = key.partition(".")
        theirs = saved if name == predicts else trained.checkpoint["alhvr"][f"network_{name}_weights"]
        assert torch.equal(theirs[parameter], value), key


def test_a_training_that_was_interrupted_ends_alike(trained: SimpleNamespace):
    resumed: Any = make_trainer(trained.root, trained.kind, resume=True)
    resumed.load_checkpoint(str(trained.root / "half_way.pth"))
    assert resumed.current_epoch == 1
    steps = train(resumed)
    assert len(steps) == len(trained.steps) / 2
    for key, value in trained.steps[-1].items():
        assert torch.equal(steps[-1][key], value), key
    assert resumed.monitor.history == trained.trainer.monitor.history


def test_averages_are_the_mean_of_all_weights_so_far(trained: SimpleNamespace):
    """Four steps are far fewer than any decay reaches back: nothing of the initial weights is left."""
    if trained.kind not in AVERAGES:
        pytest.skip("no moving average")
    average = AVERAGES[trained.kind]
    for steps in (1, len(trained.steps)):
        for key in trained.steps[0]:
            if key.startswith("a."):
                mean = torch.stack([weights[key] for weights in trained.steps[:steps]]).mean(dim=0)
                found = trained.steps[steps - 1][f"{average}.{key.removeprefix('a.')}"]
                torch.testing.assert_close(found, mean, rtol=1e-5, atol=1e-6, msg=lambda text, at=key: f"{at}: {text}")


def unsupervised_values(trainer: Any, batch: dict) -> dict[str, torch.Tensor]:
    samples = take_apart(batch, trainer.labeled_batch_size, trainer.device)
    forward = trainer.forward(samples)
    found = predictions(forward, samples, {}, trainer.label_manager.has_regions, None)
    return trainer.unsupervised(found, samples)


# but for MCF's, whose winner learns nothing: test_mcf_trainer.py
@pytest.mark.parametrize("kind", [kind for kind in RIVALS if kind is not MCFTrainer])
def test_the_terms_reach_all_of_the_trained_network_and_no_average(kind: type[SemiSupervisedTrainer], tiny: Path):
    change_settings(tiny, **TEACH_AT_ONCE)
    trainer: Any = make_trainer(tiny, kind)
    trainer.initialize()
    loader, validation = trainer.get_dataloaders()
    for each in (loader, validation):
        getattr(each, "_finish", lambda: None)()
    for network in trainer.networks().values():  # an average equals network a until the first step
        for parameter in network.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    values = unsupervised_values(trainer, next(loader))
    sum(values[term] for term in trainer.terms).backward()
    network = unwrapped(trainer.network)
    for part in (network.encoder.stages[0], network.encoder.stages[-1], network.decoder.seg_layers[-1]):
        assert any(p.grad is not None and p.grad.any() for p in part.parameters())
    for name, partner in trainer.partners.items():
        if name == AVERAGES.get(kind):
            assert all(p.grad is None and not p.requires_grad for p in partner.parameters())


@pytest.mark.parametrize("kind", RIVALS)
@pytest.mark.parametrize("case", ["regions", "3d", "no deep supervision"])
def test_steps_on_other_kinds_of_data(kind: type[SemiSupervisedTrainer], case: str, tiny: Path):
    """Overlapping regions; volumes; networks with one output."""
    plans, configuration = read_json(tiny, "ALHVRPlans.json"), "2d"
    dataset_json = read_json(tiny, "dataset.json") | (REGIONS if case == "regions" else {})
    write_json(tiny, "dataset.json", dataset_json)
    if case == "3d":
        configuration = "3d_fullres"
        flat, volumes = (plans["configurations"][name] for name in ("2d", configuration))
        architecture = volumes["architecture"]["arch_kwargs"]
        architecture["features_per_stage"] = [4] * architecture["n_stages"]
        # the voxels as they are preprocessed for 2D
        volumes |= {key: flat[key] for key in ("data_identifier", "batch_size", "alhvr")}
    plans["configurations"][configuration]["alhvr"] |= TEACH_AT_ONCE
    made = trainer_named(f"{kind.__name__}NoDeepSupervision") if case == "no deep supervision" else kind
    trainer: Any = made(plans | {"continue_training": False}, configuration, 0, dataset_json, torch.device("cpu"))
    trainer.initialize()
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    trainer.on_train_epoch_start()
    loader, _ = trainer.get_dataloaders()
    before = weights(trainer)
    values = [trainer.train_step(next(loader))["record"].values for _ in range(2)]
    assert all(np.isfinite(list(step.values())).all() for step in values)
    assert all(values[-1][term] > 0 for term in trainer.terms)
    assert any(not torch.equal(before[key], value) for key, value in weights(trainer).items())


# --- what only one of them has --------------------------------------------------------------------------------------


def test_uamt_predicts_without_dropout_and_with_it_draws_anew(tiny: Path):
    change_settings(tiny, uncertainty_passes=3)
    trainer: Any = make_trainer(tiny, UAMTTrainer)
    trainer.initialize()
    trainer.on_train_epoch_start()
    data = torch.randn(2, 1, *trainer.configuration_manager.patch_size)
    with torch.no_grad():
        one, two = (trainer.run("teacher", data)[0] for _ in range(2))
        mean = trainer.mean_prediction(data)
        assert not torch.equal(one, two)
        torch.testing.assert_close(mean.sum(dim=1), torch.ones_like(mean[:, 0]))
        trainer.on_validation_epoch_start()
        assert torch.equal(trainer.run("a", data)[0], trainer.run("a", data)[0])


def test_uamt_certain_share_follows_the_threshold(tiny: Path):
    """Untrained networks are about as unsure as can be: certain of all voxels at the end of the ramp alone."""
    trainer: Any = make_trainer(tiny, UAMTTrainer)
    trainer.initialize()
    trainer.on_train_epoch_start()
    loader, _ = trainer.get_dataloaders()
    batch = next(loader)
    with torch.no_grad():
        early = unsupervised_values(trainer, batch)["certain"].item()
        trainer.step = trainer.num_epochs * trainer.num_iterations_per_epoch
        late = unsupervised_values(trainer, batch)["certain"].item()
    assert early < late and late > 0.95


def test_fixmatch_batches_hold_two_views(tiny: Path):
    trainer: Any = make_trainer(tiny, FixMatchTrainer)
    trainer.initialize()
    loader, validation = trainer.get_dataloaders()
    labeled, unlabeled, erased = trainer.labeled_batch_size, trainer.unlabeled_batch_size, 0
    for _ in range(6):
        batch = next(loader)
        assert batch["data"].shape[:2] == (labeled + unlabeled, 2)
        weak, second = trainer.views(batch["data"])
        target = batch["target"][0]
        assert set(target[:, -1].unique().tolist()) <= {0, 1}
        missing = (second == 0) & (weak != 0)
        assert not missing[:labeled].any() and not target[:, -1:][missing].any()
        erased += int(missing[labeled:].flatten(1).sum(dim=1).gt(20).sum())
    assert erased >= 10  # of 12 unlabeled patches; a box may lie in the padding
    assert next(validation)["data"].shape[1] == 1


def test_fixmatch_views_share_a_cascades_previous_stage():
    data = torch.arange(7.0).view(1, 7, 1, 1)  # two channels in two views, three labels of the previous stage
    weak, second = FixMatchTrainer.views(SimpleNamespace(num_input_channels=5), data)  # type: ignore[arg-type]
    assert weak.flatten().tolist() == [0, 1, 4, 5, 6] and second.flatten().tolist() == [2, 3, 4, 5, 6]


def test_mean_teacher_disturbs_the_image_alone(tiny: Path):
    trainer: Any = make_trainer(tiny, MeanTeacherTrainer)
    trainer.initialize()
    data = torch.zeros(2, 3, 8, 8)  # one image channel, then a cascade's labels
    one, two = trainer.perturbed(data), trainer.perturbed(data)
    assert not torch.equal(one[:, 0], two[:, 0]) and not one[:, 1:].any()


def inputs_of_networks(trainer: Any) -> tuple[Any, dict[str, list[torch.Tensor]]]:
    """A batch, and what each network sees of it."""
    trainer.initialize()
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in trainer.networks()}
    for name, network in trainer.networks().items():
        unwrapped(network).register_forward_pre_hook(lambda _, inputs, at=name: seen[at].append(inputs[0]))
    samples = take_apart(next(trainer.get_dataloaders()[0]), trainer.labeled_batch_size, trainer.device)
    trainer.forward(samples)
    return samples, seen


def test_mean_teacher_has_noise_on_unlabeled_patches_for_each_network_its_own(tiny: Path):
    samples, seen = inputs_of_networks(make_trainer(tiny, MeanTeacherTrainer))
    (student,), (teacher,) = seen["a"], seen["teacher"]
    labeled = samples.labeled
    assert torch.equal(student[:labeled], samples.data[:labeled])
    for unlabeled in (student[labeled:], teacher):
        assert (unlabeled - samples.data[labeled:]).std().item() == pytest.approx(0.15, rel=0.1)
    assert not torch.equal(student[labeled:], teacher)


def test_uamt_has_noise_on_the_teachers_patches_in_every_pass_another(tiny: Path):
    samples, seen = inputs_of_networks(make_trainer(tiny, UAMTTrainer))
    (student,), passes = seen["a"], seen["teacher"]
    assert torch.equal(student, samples.data)
    assert len(passes) == 1 + 8
    noise = torch.stack(passes) - samples.data[samples.labeled :]
    assert noise.abs().max().item() == pytest.approx(0.2, rel=1e-3) and noise.std().item() == pytest.approx(
        0.096, rel=0.1
    )
    assert (noise[1:] != noise[:1]).flatten(1).any(dim=1).all()


def test_fixmatch_learns_from_the_second_views_and_targets_come_from_the_weak_ones(tiny: Path):
    trainer: Any = make_trainer(tiny, FixMatchTrainer)
    samples, seen = inputs_of_networks(trainer)
    weak, second = trainer.views(samples.data)
    assert torch.equal(seen["a"][0], second) and torch.equal(seen["a"][1], weak[samples.labeled :])
    assert len(seen["a"]) == 2 and seen["average"] == []


@pytest.mark.parametrize(("kind", "early"), [(MeanTeacherTrainer, {"ramp_ema_decay": 0.25}), (UAMTTrainer, {})])
def test_mean_teacher_alone_forgets_faster_during_the_ramp_up(kind: Any, early: dict, tiny: Path):
    change_settings(tiny, num_epochs=100, warm_up_fraction=0.2, ramp_fraction=0.5, ema_decay=0.9, **early)
    trainer: Any = make_trainer(tiny, kind)
    trainer.initialize()
    teacher, student = (next(unwrapped(trainer.networks()[name]).parameters()) for name in ("teacher", "a"))
    with torch.no_grad():
        for step, kept in ((120, early.get("ramp_ema_decay", 0.9)), (150, 0.9)):
            teacher.fill_(1.0), student.fill_(0.0)
            trainer.step = step
            trainer.after_step()
            torch.testing.assert_close(teacher, torch.full_like(teacher, kept))


@pytest.mark.parametrize("regions", [False, True], ids=["classes", "regions"])
def test_cps_adds_the_means_over_labeled_and_unlabeled_samples(regions: bool, tiny: Path):
    write_json(tiny, "dataset.json", read_json(tiny, "dataset.json") | (REGIONS if regions else {}))
    change_settings(tiny, cps_samples="unlabeled")
    unlabeled_only: Any = make_trainer(tiny, CPSTrainer)
    change_settings(tiny, cps_samples="all")
    trainer: Any = make_trainer(tiny, CPSTrainer)
    trainer.initialize()
    samples = take_apart(next(trainer.get_dataloaders()[0]), trainer.labeled_batch_size, trainer.device)
    assert samples.valid is not None  # some are padded
    found = predictions(trainer.forward(samples), samples, {}, regions, None)
    both, one = (each.unsupervised(found, samples) for each in (trainer, unlabeled_only))
    a, b = found.logits["a"], found.logits["b"]
    error = torch.nn.functional.cross_entropy(a, b.argmax(1), reduction="none")
    mine = samples.valid[: samples.labeled].repeat_interleave(a.shape[0] // len(samples.data), dim=0)
    of_labeled = error[: len(mine)][mine].mean()
    of_unlabeled = error[len(mine) :][found.valid[len(mine) :]].mean()
    torch.testing.assert_close(one["cps_a"], of_unlabeled)
    torch.testing.assert_close(both["cps_a"], of_labeled + of_unlabeled)


def test_cps_trains_in_some_regions_alone(tiny: Path):
    change_settings(tiny, cps_regions=["omega2", "omega3"], threshold_proportion=0.5)
    trainer: Any = make_trainer(tiny, CPSTrainer)
    trainer.initialize()
    samples = take_apart(next(trainer.get_dataloaders()[0]), trainer.labeled_batch_size, trainer.device)
    found = predictions(trainer.forward(samples), samples, {}, False, None)
    restricted = trainer.unsupervised(found, samples)
    a, b = found.logits["a"].detach(), found.logits["b"].detach()
    unlabeled = slice(samples.labeled, None)
    counts = region_mask(a[unlabeled], b[unlabeled], ("omega2", "omega3"), 0.5, found.valid[unlabeled])
    gradient = torch.autograd.grad(restricted["cps_a"], found.logits["a"])[0][unlabeled]
    assert torch.equal(gradient.abs().sum(dim=1) > 0, counts)


def test_mcnet_is_one_model_whose_decoders_share_what_was_pretrained(tiny: Path):
    trainer: Any = make_trainer(tiny, MCNetTrainer)
    trainer.initialize()
    assert list(trainer.optimizers) == ["a"]
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    network, auxiliary = unwrapped(trainer.network), trainer.partners["auxiliary"]
    assert trained == {id(p) for part in (network, auxiliary) for p in part.parameters()}
    values = unsupervised_values(trainer, next(trainer.get_dataloaders()[0]))
    reached = {"encoder": network.encoder, "decoder": network.decoder.stages, "auxiliary": auxiliary.transpconvs}
    for term in trainer.terms:
        trainer.optimizer.zero_grad()
        values[term].backward(retain_graph=True)
        for name, part in reached.items():
            assert any(p.grad is not None and p.grad.any() for p in part.parameters()), (term, name)
    before = {key: value.clone() for key, value in auxiliary.state_dict().items()}
    network.load_state_dict({key: torch.full_like(value, 0.1) for key, value in network.state_dict().items()})
    for key, value in auxiliary.state_dict().items():
        assert torch.equal(value, torch.full_like(value, 0.1) if key.startswith("stages.") else before[key]), key
