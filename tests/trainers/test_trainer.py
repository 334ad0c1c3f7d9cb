"""Training through nnU-Net's own functions on a tiny dataset: what it learns from, how it resumes, when it stops."""

from __future__ import annotations

import copy
import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import data_builders
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from data_builders import NAME, QUICK, SPLIT, change_settings, read_json, set_environment, write_json
from nnunet_environment import find_trainer, set_nnunet
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from tiny_training import make_trainer, weights_after_two_steps

from alhvr_trainer.errors import InputError
from alhvr_trainer.losses.schedules import ramp_up
from alhvr_trainer.planning.plan_and_preprocess import plan_and_preprocess
from alhvr_trainer.trainers.alhvr import ALHVRTrainer
from alhvr_trainer.trainers.checkpoints import read_checkpoint
from alhvr_trainer.trainers.checks import hidden_intensities
from alhvr_trainer.trainers.supervised import SupervisedTrainer, SupervisedWholeBatchTrainer
from alhvr_trainer.trainers.variants import trainer_named

pytest_plugins = ["planned_dataset"]


def final_weights(trainer: nnUNetTrainer) -> dict[str, torch.Tensor]:
    checkpoint = read_checkpoint(Path(trainer.output_folder) / "checkpoint_final.pth")
    weights = {f"a.{key}": value for key, value in checkpoint["network_weights"].items()}
    return weights | {f"b.{key}": value for key, value in checkpoint["alhvr"]["network_b_weights"].items()}


def assert_identical(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("kind", [ALHVRTrainer, SupervisedTrainer])
def test_thread_limit_is_respected(kind: type[nnUNetTrainer], tiny: Path, monkeypatch: pytest.MonkeyPatch):
    threads = torch.get_num_threads()
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(4)  # as nnUNetv2_train does on four cores
        make_trainer(tiny, kind)
        assert torch.get_num_threads() == 1
        monkeypatch.delenv("OMP_NUM_THREADS")
        torch.set_num_threads(4)
        make_trainer(tiny, kind)
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(threads)


# --- what it learns from ------------------------------------------------------------------------------------------


def corrupt_label(file: Path) -> None:
    image = sitk.ReadImage(str(file))
    nonsense = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 3, image.GetSize()[::-1]).astype(np.uint8))
    nonsense.CopyInformation(image)
    sitk.WriteImage(nonsense, str(file))


def test_labels_of_unlabeled_cases_change_no_bit(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """From planning to the final weights of both networks, with the label files of all unlabeled cases corrupted."""
    clean = make_trainer(tiny)
    clean.run_training()

    other = tmp_path / "corrupted"
    shutil.copytree(tiny / "raw", other / "raw")
    set_environment(monkeypatch, other)
    for case in SPLIT["unlabeled"]:
        corrupt_label(other / "raw" / NAME / "labelsTr" / f"{case}.nii.gz")
    plan_and_preprocess("901", "2d", num_processes=1, verify_dataset_integrity=False)
    planned = read_json(other, "ALHVRPlans.json")
    mine = read_json(tiny, "ALHVRPlans.json")
    assert planned["foreground_intensity_properties_per_channel"] == mine["foreground_intensity_properties_per_channel"]
    write_json(other, "ALHVRPlans.json", mine)
    corrupted = make_trainer(other)
    corrupted.run_training()
    assert_identical(final_weights(clean), final_weights(corrupted))


@pytest.mark.any_nnunet  # it is about the test above
def test_labels_of_labeled_cases_do_matter(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The counter-check of the test above: it would notice if the corruption reached training."""
    clean = make_trainer(tiny)
    clean.run_training()
    other = tmp_path / "corrupted"
    shutil.copytree(tiny / "raw", other / "raw")
    set_environment(monkeypatch, other)
    corrupt_label(other / "raw" / NAME / "labelsTr" / f"{SPLIT['train'][0]}.nii.gz")
    plan_and_preprocess("901", "2d", num_processes=1, verify_dataset_integrity=False)
    write_json(other, "ALHVRPlans.json", read_json(tiny, "ALHVRPlans.json"))
    corrupted = make_trainer(other)
    corrupted.run_training()
    one, two = final_weights(clean), final_weights(corrupted)
    assert not all(torch.equal(one[key], two[key]) for key in one)


def test_one_loader_yields_labeled_then_unlabeled_with_validity(tiny: Path):
    trainer = make_trainer(tiny)
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    seen: dict[str, set[str]] = {"labeled": set(), "unlabeled": set()}
    inside, outside = [], []
    for _ in range(12):
        batch = next(loader)
        seen["labeled"] |= set(batch["keys"][:2])
        seen["unlabeled"] |= set(batch["keys"][2:])
        target = batch["target"][0]
        assert batch["data"].shape[0] == 4 and target.shape[1] == 2
        assert (target[2:, 0] == 0).all()  # no label for unlabeled samples
        valid = target[:, 1]
        assert set(valid.unique().tolist()) <= {0, 1}
        inside.append(batch["data"][:, 0][valid == 1])
        outside.append(batch["data"][:, 0][valid == 0])
    assert seen["labeled"] == set(SPLIT["train"])
    assert seen["unlabeled"] == {*SPLIT["unlabeled"], "scan_000", "scan_001", "scan_002"}
    # nnU-Net pads with 0; augmentation adds little to that
    assert torch.cat(outside).abs().mean() < 0.3 * torch.cat(inside).abs().mean()


def batches(root: Path, workers: int, kind: type[nnUNetTrainer], epoch: int, monkeypatch: pytest.MonkeyPatch) -> list:
    """Of the epoch's training and validation, and three more each, as a training finds them that begins there."""
    monkeypatch.setenv("nnUNet_n_proc_DA", str(workers))
    trainer = make_trainer(root, kind)
    trainer.initialize()
    trainer.current_epoch = epoch
    with torch.random.fork_rng():
        torch.manual_seed(workers + epoch)  # what else is drawn must not matter
        loaders = trainer.get_dataloaders()
    try:
        assert [getattr(loader, "num_processes", 0) for loader in loaders] == [workers, min(workers, 1)]
        return [next(loader) for loader in loaders for _ in range(5)]
    finally:
        for loader in loaders if workers else ():
            loader._finish()


def same(one: dict, other: dict) -> bool:
    tensors = zip([one["data"], *one["target"]], [other["data"], *other["target"]], strict=True)
    return list(one["keys"]) == list(other["keys"]) and all(torch.equal(*pair) for pair in tensors)


@pytest.mark.parametrize("kind", [ALHVRTrainer, SupervisedTrainer])
def test_batches_depend_on_seed_and_number_alone(kind: type[nnUNetTrainer], tiny: Path, monkeypatch):
    """The same with any number of workers, and in a training that is continued; each another one."""
    change_settings(tiny, num_iterations_per_epoch=2, num_val_iterations_per_epoch=2)
    expected = batches(tiny, 0, kind, 0, monkeypatch)
    if kind is ALHVRTrainer:
        assert {*expected[0]["keys"][:2]} <= {*SPLIT["train"]} and not {*expected[0]["keys"][2:]} & {*SPLIT["train"]}
    assert not any(same(expected[0], other) for other in expected[1:5])
    for workers in (1, 2):  # nnU-Net takes no more than there are cores
        found = batches(tiny, workers, kind, 0, monkeypatch)
        assert all(map(same, found, expected))
    continued = batches(tiny, 2, kind, 1, monkeypatch)
    assert all(map(same, continued[:3], expected[2:5])) and all(map(same, continued[5:8], expected[7:10]))
    change_settings(tiny, seed=2)
    assert not any(map(same, batches(tiny, 0, kind, 0, monkeypatch), expected))


def test_loaders_leave_the_global_generators_alone(tiny: Path):
    trainer = make_trainer(tiny)
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    next(loader)
    assert torch.equal(torch.get_rng_state(), before[0]) and np.random.get_state()[1].tolist() == before[1]


@pytest.mark.parametrize(
    ("kind", "batch", "unlabeled", "training", "validation"),
    [
        (ALHVRTrainer, 2, 1, (0.5, 0), (0, 1)),  # nnU-Net forces one of two
        (ALHVRTrainer, 4, 2, (0, 0.5, 0, 0), (0, 0, 0, 1)),  # ... one of four
        (SupervisedTrainer, 2, 1, (0.5,), (0, 1)),
        (SupervisedTrainer, 4, 2, (0, 0.5), (0, 0, 0, 1)),
        (SupervisedWholeBatchTrainer, 4, 2, (0, 0, 0, 1), (0, 0, 0, 1)),
        (trainer_named("ALHVRTrainer_probabilisticOversampling_010"), 4, 2, (0.1, 0.1, 0, 0), (0.1,) * 4),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_foreground_is_forced_as_often_as_in_nnunets_batch(kind, batch, unlabeled, training, validation, tiny: Path):
    plans = read_json(tiny, "ALHVRPlans.json")
    plans["configurations"]["2d"]["batch_size"] = batch
    plans["configurations"]["2d"]["alhvr"]["unlabeled_batch_size"] = unlabeled
    write_json(tiny, "ALHVRPlans.json", plans)
    trainer = make_trainer(tiny, kind)
    trainer.initialize()
    loaders = [loader.data_loader for loader in trainer.get_dataloaders()]
    for loader, forced in zip(loaders, (training, validation), strict=True):
        assert loader.draws.forced == forced and len(loader.generate_train_batch()["keys"]) == len(forced)
        draws = [[loader.get_do_oversample(sample) for sample in range(len(forced))] for _ in range(2000)]
        np.testing.assert_allclose(np.mean(draws, axis=0), forced, atol=0.06)  # five standard errors


def test_stock_plans_split_the_batch_and_preprocess_what_is_missing(
    planned: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")  # nnU-Net's planner fails on 0
    from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiment_dataset, preprocess_dataset

    plan_experiment_dataset(901)
    preprocess_dataset(901, configurations=["2d"], num_processes=[1])
    trainer = make_trainer(planned, plans="nnUNetPlans")
    trainer.initialize()
    batch_size = trainer.configuration_manager.batch_size
    assert (trainer.labeled_batch_size, trainer.unlabeled_batch_size) == (-(-batch_size // 2), batch_size // 2)
    trainer.get_tr_and_val_datasets()
    assert "preprocessing 5 unlabeled cases into" in capsys.readouterr().out
    folder = planned / "preprocessed" / NAME / "nnUNetPlans_2d_unlabeled"
    assert len(list(folder.glob("*.pkl"))) == 5
    trainer.get_tr_and_val_datasets()
    assert "preprocessing" not in capsys.readouterr().out


def test_without_raw_data_the_preprocessed_cases_are_taken(tiny: Path):
    shutil.rmtree(tiny / "raw")
    trainer = make_trainer(tiny)
    trainer.initialize()
    data, _ = trainer.get_tr_and_val_datasets()
    assert set(data.unlabeled.identifiers) == {*SPLIT["unlabeled"], "scan_000", "scan_001", "scan_002"}
    (tiny / "preprocessed" / NAME / "ALHVRPlans_2d_unlabeled" / "case_004.b2nd").unlink()
    with pytest.raises(InputError, match=r"case_004 are listed in splits_final.json but not preprocessed"):
        trainer.get_tr_and_val_datasets()


# --- training -----------------------------------------------------------------------------------------------------


def test_networks_start_differently_train_and_log(tiny: Path):
    change_settings(tiny, num_epochs=3)
    trainer = make_trainer(tiny)
    trainer.initialize()
    start = {n: copy.deepcopy(net.state_dict()) for n, net in (("a", trainer.network), ("b", trainer.partners["b"]))}
    assert start["a"].keys() == start["b"].keys()
    weights = [key for key in start["a"] if key.endswith("conv.weight")]
    assert weights and not any(torch.equal(start["a"][key], start["b"][key]) for key in weights)
    trainer.run_training()
    for name, network in (("a", trainer.network), ("b", trainer.partners["b"])):
        assert not torch.equal(network.state_dict()[weights[0]], start[name][weights[0]])
    named = {f"{term}_{name}" for term in ("supervised", "dtct", "ce", "cos") for name in ("a", "b")}
    named |= {"weight", "gamma", "disagreement", "pseudo_label_1", "pseudo_label_2", "label_1", "label_2"}
    named |= {f"share_{region}" for region in ("omega1", "omega2a", "omega2b", "omega3")}
    assert set(trainer.monitor.history) == named
    assert all(len(values) == 3 and np.isfinite(values).all() for values in trainer.monitor.history.values())
    shares = np.sum([trainer.monitor.history[f"share_{r}"] for r in ("omega1", "omega2a", "omega2b", "omega3")], axis=0)
    np.testing.assert_allclose(shares, 1.0, atol=1e-3)
    assert np.all(np.diff(trainer.monitor.history["weight"]) > 0)
    log = next(Path(trainer.output_folder).glob("training_log_*.txt")).read_text()
    for word in ("dtct_a", "ce_b", "weight", "gamma", "share_omega3", "2 labeled + 2 unlabeled", "seed 1", "1 shell"):
        assert word in log
    assert (Path(trainer.output_folder) / "progress_alhvr.png").stat().st_size > 10_000
    assert (Path(trainer.output_folder) / "progress.png").is_file()


@pytest.mark.parametrize(
    "changed",
    [
        {"consistency_weight": 0.0},
        {"dtct_regions": []},
        {"cgcpcl_regions": []},
        {"threshold_proportion": 0.3},
        {"temperature": 0.5},
        {"prototype_scale": 5.0},
        {"detach_teacher": True},
        {"optimizer": "paper"},
        {"official_ce_broadcast": True},
        {"feature_stage": 1},
        {"feature_tap": "up-convolution"},
        {"ramp_fraction": 0.1},
        {"warm_up_fraction": 1.0},
        {"seed": 2},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_each_setting_takes_effect(tiny: Path, changed: dict):
    """Two steps from the same seed end in other weights when the setting is another."""

    # a weight that matters from the first step on
    change_settings(tiny, consistency_weight=5.0, ramp_fraction=1.0)
    before = weights_after_two_steps(tiny)
    assert torch.equal(before, weights_after_two_steps(tiny))
    change_settings(tiny, **changed)
    assert not torch.equal(before, weights_after_two_steps(tiny))


def test_the_papers_setting_is_one_key_away(tiny: Path):
    change_settings(tiny, preset="paper", temperature=0.2)
    trainer = make_trainer(tiny)
    trainer.initialize()
    settings = trainer.settings
    assert (settings.decay_fraction, settings.consistency_weight, settings.ramp_fraction) == (0.0, 0.1, 1.0)
    assert settings.temperature == 0.2  # what is said beside the preset counts
    for optimizer in trainer.optimizers.values():
        group = optimizer.param_groups[0]
        assert (group["momentum"], group["nesterov"], group["weight_decay"], group["lr"]) == (0.9, False, 1e-4, 0.01)


def test_warm_up_on_labeled_samples_alone_comes_before_the_ramp(tiny: Path):
    change_settings(tiny, num_epochs=10, consistency_weight=0.5, warm_up_fraction=0.2, ramp_fraction=0.5)
    trainer = make_trainer(tiny)
    steps = 10 * trainer.num_iterations_per_epoch
    weights = []
    for trainer.step in range(steps):
        weights.append(trainer.weight())
    start, end = round(0.2 * steps), round(0.7 * steps)
    assert weights[:start] == [0.0] * start and weights[end:] == [0.5] * (steps - end)
    assert weights[start:end] == [0.5 * ramp_up(step / (end - start)) for step in range(end - start)]


@pytest.mark.parametrize(("share", "constant"), [(1.0, 0), (0.4, 6), (0.0, 10)])
def test_learning_rate_falls_in_the_last_epochs_alone(tiny: Path, share: float, constant: int):
    change_settings(tiny, num_epochs=10, decay_fraction=share)
    trainer = make_trainer(tiny)
    trainer.initialize()
    for schedule, optimizer in zip(
        (trainer.lr_scheduler, *trainer._schedulers.values()), trainer.optimizers.values(), strict=True
    ):
        rates = [optimizer.param_groups[0]["lr"]]
        for epoch in range(10):
            schedule.step(epoch)
            rates.append(optimizer.param_groups[0]["lr"])
        falling = [0.01 * (1 - epoch / (10 - constant)) ** 0.9 for epoch in range(10 - constant)]
        assert rates == [0.01] * (constant + 1) + falling


def test_resuming_is_exact(tiny: Path):
    change_settings(tiny, num_epochs=4)
    at_once = make_trainer(tiny)
    at_once.run_training()
    expected, history = final_weights(at_once), at_once.monitor.history

    interrupted = make_trainer(tiny)
    interrupted.save_every = 1
    step = interrupted.train_step

    def killed(batch: dict) -> dict:
        if interrupted.current_epoch == 2:
            raise KeyboardInterrupt
        return step(batch)

    interrupted.train_step = killed
    with pytest.raises(KeyboardInterrupt):
        interrupted.run_training()
    (Path(interrupted.output_folder) / "checkpoint_final.pth").unlink()

    resumed = make_trainer(tiny, resume=True)
    resumed.load_checkpoint(str(Path(resumed.output_folder) / "checkpoint_latest.pth"))
    assert resumed.current_epoch == 2
    resumed.run_training()
    assert_identical(expected, final_weights(resumed))
    assert resumed.monitor.history == history


def test_checkpoint_is_a_stock_one_with_one_more_key(tiny: Path):
    trainer = make_trainer(tiny)
    trainer.run_training()
    ours = read_checkpoint(Path(trainer.output_folder) / "checkpoint_final.pth")
    stock = make_trainer(tiny, SupervisedTrainer)
    stock.run_training()
    theirs = read_checkpoint(Path(stock.output_folder) / "checkpoint_final.pth")
    assert set(ours) - set(theirs) == {"alhvr"} and set(theirs) <= set(ours)
    assert ours["trainer_name"] == "ALHVRTrainer"
    stock.network.load_state_dict(ours["network_weights"], strict=True)
    with pytest.raises(InputError, match="was written by SupervisedTrainer, which is not a semi-supervised trainer"):
        make_trainer(tiny).load_checkpoint(str(Path(stock.output_folder) / "checkpoint_final.pth"))


def test_disabled_checkpointing_writes_none(tiny: Path):
    trainer = make_trainer(tiny)
    trainer.disable_checkpointing = True
    trainer.run_training()
    assert not list(Path(trainer.output_folder).glob("*.pth"))


def test_supervised_trainer_sees_as_many_labeled_samples_per_step(tiny: Path):
    trainer = make_trainer(tiny, SupervisedTrainer)
    trainer.initialize()
    assert trainer.batch_size == 2
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch) == (2, 2)


def test_variants_by_number_of_epochs(tiny: Path):
    kind = trainer_named("ALHVRTrainer_5epochs")
    trainer = make_trainer(tiny, kind)
    assert trainer.num_epochs == 5 and trainer.num_iterations_per_epoch == 2
    assert "ALHVRTrainer_5epochs__ALHVRPlans__2d" in trainer.output_folder
    assert trainer_named("SupervisedTrainer_1epoch").__name__ == "SupervisedTrainer_1epoch"
    with pytest.raises(AttributeError, match="no trainer is called"):
        trainer_named("ALHVRTrainer_0epochs")


@pytest.mark.parametrize("name", ["NoMirroring", "DA5", "NoDeepSupervision", "DiceLoss", "Adam"])
def test_combined_with_a_variant_of_nnunets_trainer(tiny: Path, name: str):
    trainer = make_trainer(tiny, trainer_named(f"ALHVRTrainer{name}"))
    stock = make_trainer(tiny, find_trainer(f"nnUNetTrainer{name}"))
    for each in (trainer, stock):
        each.initialize()
    assert f"ALHVRTrainer{name}__ALHVRPlans__2d" in trainer.output_folder
    assert trainer.inference_allowed_mirroring_axes == stock.inference_allowed_mirroring_axes
    assert trainer.enable_deep_supervision == stock.enable_deep_supervision
    assert repr(trainer.loss) == repr(stock.loss)
    for optimizer in (trainer.optimizer, trainer.optimizers["b"]):
        assert type(optimizer) is type(stock.optimizer)
    trainer.run_training()
    assert all(torch.isfinite(weight).all() for weight in final_weights(trainer).values())


@pytest.mark.parametrize("name", ["_warmup", "Benchmark_5epochs_noDataLoading", "NoSuch"])
def test_variants_that_contradict_ours_are_not_found(name: str):
    with pytest.raises(AttributeError, match=f"no trainer is called ALHVRTrainer{name}"):
        trainer_named(f"ALHVRTrainer{name}")


def test_pretrained_weights_reach_both_networks(tiny: Path):
    make_trainer(tiny).run_training()
    file = Path(make_trainer(tiny, resume=True).output_folder) / "checkpoint_final.pth"
    pretrained = read_checkpoint(file)["network_weights"]
    change_settings(tiny, seed=2)
    trainer = make_trainer(tiny)
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(file))
    a, b = trainer.network.state_dict(), trainer.partners["b"].state_dict()
    for key, expected in pretrained.items():
        if ".seg_layers." not in key:
            assert torch.equal(a[key], expected) and torch.equal(b[key], expected), key
        elif key.endswith("weight"):  # biases start at 0
            assert not torch.equal(a[key], b[key]) and not torch.equal(a[key], expected), key
    trainer.run_training()
    weights = final_weights(trainer)
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    name = next(key for key in a if "encoder" in key and key.endswith("conv.weight"))
    assert not torch.equal(weights[f"a.{name}"], weights[f"b.{name}"])


ARCHITECTURES = [pytest.param(kind, marks=pytest.mark.any_nnunet) for kind in ("residual encoder", "batch norm")]
"""These come from another package than nnU-Net."""


@pytest.mark.parametrize("kind", [*ARCHITECTURES, "3d_fullres"])
def test_other_networks_train(tiny: Path, kind: str):
    """Each runs two steps and the real saving; strictness of the state dict is nnU-Net's own."""
    plans = read_json(tiny, "ALHVRPlans.json")
    name = "3d_fullres" if kind == "3d_fullres" else "2d"
    configuration = plans["configurations"][name]
    configuration["alhvr"] = QUICK
    network = configuration["architecture"]
    network["arch_kwargs"]["features_per_stage"] = [4] * network["arch_kwargs"]["n_stages"]
    if kind == "residual encoder":
        network["network_class_name"] = network["network_class_name"].replace("PlainConvUNet", "ResidualEncoderUNet")
        network["arch_kwargs"]["n_blocks_per_stage"] = network["arch_kwargs"].pop("n_conv_per_stage")
    if kind == "batch norm":
        network["arch_kwargs"]["norm_op"] = "torch.nn.modules.batchnorm.BatchNorm2d"
    configuration["batch_size"] = 4
    write_json(tiny, "ALHVRPlans.json", plans)
    if kind == "3d_fullres":
        from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset

        preprocess_dataset(901, "ALHVRPlans", ["3d_fullres"], [1])
    content = plans | {"continue_training": False}
    trainer = ALHVRTrainer(content, name, 0, read_json(tiny, "dataset.json"), torch.device("cpu"))
    trainer.run_training()
    weights = read_checkpoint(Path(trainer.output_folder) / "checkpoint_final.pth")["network_weights"]
    trainer.network.load_state_dict(weights, strict=True)
    assert np.isfinite(trainer.monitor.history["dtct_a"]).all()


# --- when it stops ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["nnUNet_preprocessed", "nnUNet_results"])
def test_missing_environment_variable(tiny: Path, monkeypatch: pytest.MonkeyPatch, variable: str):
    plans, dataset_json = read_json(tiny, "ALHVRPlans.json"), read_json(tiny, "dataset.json")
    set_nnunet(monkeypatch, **{variable: None})
    with pytest.raises(InputError, match=f"environment variable {variable} is not set"):
        ALHVRTrainer(plans | {"continue_training": False}, "2d", 0, dataset_json, torch.device("cpu"))


def test_bad_settings_stop_before_anything_else(tiny: Path):
    change_settings(tiny, treshold_proportion=0.5)
    with pytest.raises(InputError, match=r"unknown key treshold_proportion.*valid keys: unlabeled_batch_size, .*thr"):
        make_trainer(tiny)


def test_settings_out_of_range(tiny: Path):
    change_settings(tiny, threshold_proportion=1.5)
    with pytest.raises(InputError, match=r'"alhvr.threshold_proportion" .* is 1.5; it should be less'):
        make_trainer(tiny)


def test_unlabeled_batch_that_leaves_no_labeled_sample(tiny: Path):
    change_settings(tiny, unlabeled_batch_size=4)
    with pytest.raises(InputError, match="at least one labeled sample must be left"):
        make_trainer(tiny).initialize()


def test_plans_of_another_dataset(tiny: Path):
    plans = read_json(tiny, "ALHVRPlans.json")
    write_json(tiny, "Theirs.json", plans | {"dataset_name": "Dataset902_Other"})
    with pytest.raises(InputError, match='made for another dataset: their "dataset_name" is Dataset902_Other'):
        make_trainer(tiny, plans="Theirs")
    plans["configurations"]["2d"]["normalization_schemes"] *= 2
    write_json(tiny, "Theirs.json", plans)
    with pytest.raises(InputError, match=r'"normalization_schemes" must have one entry per channel'):
        make_trainer(tiny, plans="Theirs")


def test_dataset_that_is_not_preprocessed(tiny: Path):
    shutil.rmtree(tiny / "preprocessed" / NAME / "ALHVRPlans_2d")
    with pytest.raises(InputError, match="preprocess first with alhvr plan_and_preprocess -d Dataset901_Tiny -c 2d"):
        make_trainer(tiny)


def start(root: Path, fold: Any = 0) -> None:
    trainer = make_trainer(root, fold=fold)
    trainer.initialize()
    trainer.get_dataloaders()


def test_no_unlabeled_case(tiny: Path):
    shutil.rmtree(tiny / "raw" / NAME / "imagesTr_unlabeled")
    for folder in ("raw", "preprocessed"):
        (tiny / folder / NAME / "splits_final.json").write_text(
            json.dumps([{key: SPLIT[key] for key in ("train", "val")}])
        )
    with pytest.raises(InputError, match=r"no unlabeled case for fold 0: put images into .*imagesTr_unlabeled"):
        start(tiny)


@pytest.mark.parametrize("part", ["train", "val"])
def test_case_that_is_unlabeled_and_in_the_fold(tiny: Path, part: str):
    split = SPLIT | {part: [*SPLIT[part], "case_004"]}
    for folder in ("raw", "preprocessed"):
        (tiny / folder / NAME / "splits_final.json").write_text(json.dumps([split]))
    with pytest.raises(InputError, match=f'case "case_004" is in "unlabeled" and "{part}" of fold 0'):
        start(tiny)


def bad_scan(root: Path, kind: str) -> None:
    """Put a bad image in the place of an unlabeled case that is preprocessed already."""
    folder = root / "raw" / NAME / "imagesTr_unlabeled"
    file = folder / "scan_001_0000.nii.gz"
    image, _ = data_builders.ellipsoid(1, (8, 40, 36))
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:200])
    elif kind == "empty":
        data_builders.write_image(file, image * 0)
    elif kind in ("nan", "inf"):
        image[2, 3, 4] = float(kind)
        data_builders.write_image(file, image)
    elif kind == "channels":
        shutil.copy(file, folder / "scan_001_0001.nii.gz")
    elif kind == "ending":
        data_builders.write_image(folder / "scan_009_0000.nrrd", image)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "scan_001_0000.nii.gz"),
        ("empty", "scan_001_0000.nii.gz"),
        ("nan", "scan_001_0000.nii.gz.*(NaN|finite)"),
        ("inf", "scan_001_0000.nii.gz.*(Inf|finite)"),
        ("channels", "scan_001_0001.nii.gz is one channel too many"),
        ("ending", 'scan_009_0000.nrrd has another file ending.*"file_ending" in dataset.json is ".nii.gz"'),
    ],
)
def test_bad_unlabeled_image_stops_before_training(tiny: Path, kind: str, message: str):
    bad_scan(tiny, kind)
    with pytest.raises(InputError, match=message):
        start(tiny)


def test_nan_in_a_network_stops_and_keeps_the_checkpoint(tiny: Path):
    trainer = make_trainer(tiny)
    trainer.save_every = 1
    on_start = trainer.on_train_epoch_start

    def poisoned() -> None:
        on_start()
        if trainer.current_epoch == 1:
            with torch.no_grad():
                next(iter(trainer.partners["b"].parameters())).fill_(float("nan"))

    trainer.on_train_epoch_start = poisoned
    with pytest.raises(InputError, match=r"epoch 1, iteration 2: supervised_b.*not finite, with cases .*case_00"):
        trainer.run_training()
    kept = read_checkpoint(Path(trainer.output_folder) / "checkpoint_latest.pth")
    assert all(torch.isfinite(value).all() for value in kept["alhvr"]["network_b_weights"].values())


def test_terms_are_computed_in_float32_under_autocast(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    """With the CPU's autocast in place of CUDA's: bfloat16 outputs, and losses near those without autocast."""
    seen: list[torch.dtype] = []
    losses = []
    for autocast in (nullcontext(), torch.autocast("cpu", dtype=torch.bfloat16)):
        trainer = make_trainer(tiny)
        trainer.on_train_start()
        trainer.on_train_epoch_start()
        passes, terms = trainer.passes["a"], trainer.unsupervised
        monkeypatch.setattr(trainer, "autocast", lambda autocast=autocast: autocast)

        def recorded(*args: Any, passes: Any = passes) -> Any:
            output = passes(*args)
            seen.append(output[1].perturbed_logits.dtype)
            return output

        def checked(*args: Any, terms: Any = terms) -> Any:
            found = terms(*args)
            assert {found[key].dtype for key in ("gamma", "dtct_a", "ce_b", "cos_a")} == {torch.float32}
            return found

        monkeypatch.setitem(trainer.passes, "a", recorded)
        monkeypatch.setattr(trainer, "unsupervised", checked)
        losses.append(trainer.train_step(next(trainer.dataloader_train))["record"].values)
    assert seen == [torch.float32, torch.bfloat16]
    assert losses[0] != losses[1]
    for key, value in losses[0].items():
        # sums, and counts of voxels
        if not key.startswith(("labeled_logits", "logits", "share", "disagreement", "pseudo_label")):
            assert losses[1][key] == pytest.approx(value, rel=0.05, abs=0.02), key


def test_mixed_precision_is_float16_or_bfloat16(tiny: Path):
    change_settings(tiny, mixed_precision="float8")
    with pytest.raises(InputError, match=r'"alhvr.mixed_precision" .* is .float8.; it should be .float16. or'):
        make_trainer(tiny)


def test_stock_plans_with_intensities_of_hidden_cases_are_pointed_out(tiny: Path):
    """nnU-Net's planner looks at all of imagesTr; ours too, if labels were hidden after it had planned."""
    trainer = make_trainer(tiny)
    assert hidden_intensities(trainer.dataset, trainer.plans_manager.plans) is None
    plans = read_json(tiny, "ALHVRPlans.json")
    write_json(tiny, "Stock.json", plans | {"plans_name": "Stock", "experiment_planner_used": "ExperimentPlanner"})
    trainer = make_trainer(tiny, plans="Stock")
    trainer.initialize()
    trainer.on_train_start()
    trainer.on_train_end()
    (line,) = [line for line in Path(trainer.log_file).read_text().splitlines() if "WARNING: the plans Stock" in line]
    assert "intensities of 2 cases whose labels are hidden" in line
    assert f"alhvr plan_and_preprocess -d {NAME}" in line
    fingerprint = read_json(tiny, "dataset_fingerprint.json")
    write_json(tiny, "dataset_fingerprint.json", fingerprint | {"labeled_cases": ["case_000", *SPLIT["unlabeled"]]})
    assert "of 2 cases" in hidden_intensities(trainer.dataset, trainer.plans_manager.plans)
