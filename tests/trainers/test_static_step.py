"""The step as a CUDA graph needs it: in fixed memory, its numbers on the device. Captured it is on a GPU alone."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from data_builders import change_settings
from tiny_training import make_trainer

from alhvr_trainer.config.methods import methods
from alhvr_trainer.errors import InputError
from alhvr_trainer.losses import host
from alhvr_trainer.trainers import static_step
from alhvr_trainer.trainers.alhvr import ALHVRTrainer
from alhvr_trainer.trainers.supervised import SupervisedTrainer

pytest_plugins = ["planned_dataset"]

TRAINERS = [each.trainer for each in methods().values() if each.summary]


def steps(
    root: Path, kind: type, static: bool, monkeypatch: pytest.MonkeyPatch
) -> tuple[list, dict[str, torch.Tensor]]:
    """Values of six steps in two epochs, so that weight, decays and learning rate change, and all weights then."""
    with monkeypatch.context() as patch:
        patch.setattr(host, "LOOKS", False)
        patch.setattr(static_step, "reasons_against", lambda _trainer: [])
        change_settings(root, cuda_graph=static)
        trainer = make_trainer(root, kind)
        trainer.on_train_start()
        assert (trainer.static_step is not None) == static
        found = []
        for epoch in range(2):
            trainer.current_epoch = epoch
            trainer.on_train_epoch_start()
            found += [trainer.train_step(next(trainer.dataloader_train))["record"].values for _ in range(3)]
    weights = {f"{name}.{key}": v for name, n in trainer.networks().items() for key, v in n.state_dict().items()}
    assert all(isinstance(group["lr"], float) for o in trainer.optimizers.values() for group in o.param_groups)
    return found, weights


@pytest.mark.parametrize("kind", TRAINERS)
def test_it_trains_as_the_usual_step_does(kind: type, tiny: Path, monkeypatch: pytest.MonkeyPatch):
    change_settings(tiny, consistency_weight=1.0, num_epochs=2, num_iterations_per_epoch=3, seed=11)
    change_settings(tiny, distance_steepness=1.0)  # UG-MCL's 1500 magnifies rounding
    (usual, expected), (static, weights) = (steps(tiny, kind, way, monkeypatch) for way in (False, True))
    for one, other in zip(usual, static, strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-6)
    different = {"FixMatchTrainer": 1, "CutMixTrainer": 2}.get(kind.__name__, 3)
    assert len({values["weight"] for values in usual}) >= different
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("precision", ["float16", "bfloat16", "float32"])
def test_on_a_gpu_nothing_is_waited_for_and_a_graph_gives_the_same(
    kind: type, precision: str, tiny: Path, monkeypatch: pytest.MonkeyPatch
):
    """Augmentation on the GPU as well. The first steps run before the capture, the others are replayed."""
    monkeypatch.setenv("nnUNet_compile", "false")
    change_settings(tiny, distance_steepness=1.0)  # UG-MCL's 1500 magnifies rounding
    found = []
    for graph in (False, True):
        settings = {} if precision == "float32" else {"mixed_precision": precision}
        change_settings(tiny, augmentation="device", cuda_graph=graph, seed=11, **settings)
        trainer = make_trainer(tiny, kind, device="cuda")
        if precision == "float32":
            monkeypatch.setattr(trainer, "autocast", nullcontext)
        trainer.on_train_start()
        if precision == "float32":
            trainer.grad_scaler = None
        trainer.on_train_epoch_start()
        assert (trainer.static_step is not None) == graph
        batches = [next(trainer.dataloader_train) for _ in range(8)]
        records = [trainer.train_step(batch)["record"] for batch in batches[:5]]
        torch.cuda.set_sync_debug_mode("error" if graph or precision != "float16" else "default")  # a scaler waits
        try:
            records += [trainer.train_step(batch)["record"] for batch in batches[5:]]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        found.append([record.values for record in records])
    tolerance, of_gradients = (1e-3, 1e-2) if precision == "float32" else (0.02, 0.2)
    for one, other in zip(*found, strict=True):
        for name, value in one.items():
            close = of_gradients if name.startswith("gradient") else tolerance
            assert other[name] == pytest.approx(value, rel=close, abs=close), name


def test_numbers_follow_the_steps():
    """What a step reads lies in one place, and holds what is due."""
    now = {"weight": 1.0}
    seen: list[tuple[int, float]] = []
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], 0.5)

    def step(samples):
        weight, rate = made.number("weight", lambda: now["weight"]), optimizer.param_groups[0]["lr"]
        seen.append((weight.data_ptr(), weight.item(), rate.data_ptr(), rate.item(), samples.data.data_ptr()))
        return {"sum": samples.data.sum() * weight}

    made = static_step.StaticStep(step, [optimizer], [], torch.device("cpu"))
    first = made(samples_of(torch.ones(2, 1, 3)))
    now["weight"], optimizer.param_groups[0]["lr"] = 2.0, 0.25
    second = made(samples_of(torch.full((2, 1, 3), 5.0)))
    assert (first["sum"].item(), second["sum"].item()) == (6.0, 60.0)  # not overwritten
    (place, weight, of_rate, rate, data), (place_2, weight_2, of_rate_2, rate_2, data_2) = seen
    assert (place, of_rate, data) == (place_2, of_rate_2, data_2)
    assert (weight, rate, weight_2, rate_2) == (1.0, 0.5, 2.0, 0.25)
    assert optimizer.param_groups[0]["lr"] == 0.25


def samples_of(data: torch.Tensor):
    from alhvr_trainer.trainers.samples import Samples

    mask = torch.ones(2, 3, dtype=torch.bool)
    return Samples(data.clone(), [torch.zeros(1, 1, 3)], mask, mask[1:], 1, torch.tensor(3), ["a", "b"])


def test_the_log_says_why_there_is_no_graph(tiny: Path):
    change_settings(tiny, cuda_graph=True)
    trainer = make_trainer(tiny, ALHVRTrainer)
    trainer.on_train_start()
    assert trainer.static_step is None
    log = next(Path(trainer.output_folder).glob("training_log*.txt")).read_text()
    assert "ALHVR: no CUDA graph: the device is cpu" in log


@pytest.mark.parametrize(
    ("settings", "line"),
    [({"cuda_graph": True}, "no CUDA graph: a step without unlabeled samples is nnU-Net's own"),
     ({"cache": "host"}, '"cache" does nothing, for it goes with "augmentation": "device"')],
)  # fmt: skip
def test_the_log_says_what_a_setting_does_not_do(settings: dict, line: str, tiny: Path):
    change_settings(tiny, **settings)
    trainer = make_trainer(tiny, SupervisedTrainer)
    trainer.on_train_start()
    assert f"ALHVR: {line}" in next(Path(trainer.output_folder).glob("training_log*.txt")).read_text()


def test_a_training_that_goes_on_without_a_graph_has_the_usual_optimizers(tiny: Path):
    trainer = make_trainer(tiny, ALHVRTrainer)
    trainer.initialize()
    for optimizer in trainer.optimizers.values():
        static_step._fuse(optimizer)
    trainer.save_checkpoint(str(tiny / "captured.pth"))
    resumed = make_trainer(tiny, ALHVRTrainer, resume=True)
    resumed.load_checkpoint(str(tiny / "captured.pth"))
    groups = [group for optimizer in resumed.optimizers.values() for group in optimizer.param_groups]
    assert len(groups) == 2 and all(group["fused"] is None and group["foreach"] is None for group in groups)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_step_that_cannot_be_captured_says_so(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("nnUNet_compile", "false")
    monkeypatch.setattr(ALHVRTrainer, "after_step", lambda self: float(next(self.network.parameters()).sum()))
    change_settings(tiny, cuda_graph=True)
    trainer = make_trainer(tiny, ALHVRTrainer, device="cuda")
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    with pytest.raises(InputError, match=r'the step cannot be a CUDA graph \(.*: set "cuda_graph" to false'):
        for _ in range(4):
            trainer.train_step(next(trainer.dataloader_train))


@pytest.mark.parametrize(
    ("graph", "asked", "compiles"),
    [(True, None, False), (True, "true", True), (True, "f", False), (False, None, True), (False, "f", False)],
)
def test_a_graph_comes_before_compiling_by_default(graph, asked, compiles, tiny: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("nnUNet_compile", raising=False)
    if asked:
        monkeypatch.setenv("nnUNet_compile", asked)
    change_settings(tiny, cuda_graph=graph)
    trainer = make_trainer(tiny, ALHVRTrainer)
    assert not trainer._do_i_compile()  # never on the CPU
    trainer.device = torch.device("cuda")
    assert trainer._do_i_compile() == compiles


def test_off_by_default(tiny: Path):
    trainer = make_trainer(tiny, ALHVRTrainer)
    trainer.on_train_start()
    assert trainer.static_step is None
    assert "CUDA graph" not in next(Path(trainer.output_folder).glob("training_log*.txt")).read_text()
