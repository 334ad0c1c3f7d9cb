"""Several ranks (gloo, CPU) against one process with the whole batch; two "machines" end to end; a rank that dies."""

from __future__ import annotations

import copy
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import ranks
import torch
from data_builders import NAME, SPLIT, change_settings, read_json, write_json, write_splits

from alhvr_trainer.cli import main
from alhvr_trainer.errors import InputError
from alhvr_trainer.trainers.checkpoints import read_checkpoint
from alhvr_trainer.trainers.checks import check_batch_fits_ranks
from alhvr_trainer.trainers.parallel import share

pytest_plugins = ["planned_dataset"]

LABELS = {
    "labels": {},
    "sample_dice": {"batch_dice": False},
    "ignore": {"labels": {"background": 0, "shell": 1, "core": 2, "ignore": 3}},
    "regions_ignore": {
        "labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
        "regions_class_order": [1, 2],
    },
}
METHODS = {
    # ranks draw noise and dropout of their own; here they must draw as one process does: nothing
    "MeanTeacherTrainer": {"input_noise": 0.0},
    "UAMTTrainer": {"input_noise": 0.0, "dropout": 0.0, "uncertainty_passes": 1},
    "FixMatchTrainer": {"confidence_threshold": 0.34},
    "CutMixTrainer": {"cutmix": 0.0, "warm_up_fraction": 0.0},
    "CPSTrainer": {},
    "MCNetTrainer": {},
    "ACMTTrainer": {"input_noise": 0.0, "dropout": 0.0},
    "MLRPTrainer": {},
    "UGMCLTrainer": {"input_noise": 0.0, "dropout": 0.0, "uncertainty_passes": 1},
    "EVILTrainer": {"uncertainty_threshold": 0.5},
    "MCFTrainer": {},
    "AAUTrainer": {"input_noise": 0.0, "code_noise": 0.0},
}
"""The other methods, and settings for them."""
LABELS_OF = {
    **dict.fromkeys(("MCNetTrainer", "MLRPTrainer", "EVILTrainer", "MCFTrainer", "AAUTrainer"), "regions_ignore"),
    "UGMCLTrainer": "ignore",
}


@pytest.fixture
def uneven(tiny: Path) -> Path:
    """The tiny dataset with a batch of 5 + 4, which does not come out even on 2 or 4 ranks."""
    plans = read_json(tiny, "ALHVRPlans.json")
    configuration = plans["configurations"]["2d"]
    configuration["batch_size"] = 9
    configuration["alhvr"]["unlabeled_batch_size"] = 4
    write_json(tiny, "ALHVRPlans.json", plans)
    return tiny


def torchrun(*words: object, nodes: int = 1, node: int = 0, processes: int = 1, port: int = 0) -> subprocess.Popen:
    """A launcher in a session of its own, as on a machine of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", nodes, "--node-rank", node]
    command += ["--nproc-per-node", processes, "--master-addr", "127.0.0.1", "--master-port", port or free_port()]
    path = os.pathsep.join([str(Path(ranks.__file__).parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [*map(str, command), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.slow
def test_ranks_equal_one_process(uneven: Path, tmp_path: Path):
    """Losses and gradients of the method and of whole training steps, 2 and 4 ranks, uneven batches."""
    expected = {f"method {name}": ranks.method_results(name, None) for name in ranks.METHOD_CASES}
    plans, dataset_json = read_json(uneven, "ALHVRPlans.json"), read_json(uneven, "dataset.json")
    for name, changes in {**LABELS, **{method: LABELS[LABELS_OF.get(method, "labels")] for method in METHODS}}.items():
        content = {"plans": copy.deepcopy(plans), "dataset_json": {**dataset_json, **changes}}
        content["method"] = name if name in METHODS else "ALHVRTrainer"
        content["plans"]["configurations"]["2d"]["alhvr"].update(METHODS.get(name, {}))
        content["dataset_json"].pop("batch_dice", None)
        content["plans"]["configurations"]["2d"]["batch_dice"] = changes.get("batch_dice", True)
        write_json(uneven, "dataset.json", content["dataset_json"])
        (tmp_path / f"trainer_{name}.json").write_text(json.dumps(content))
        with ranks.double_precision():
            expected[f"trainer_{name}"] = ranks.train_steps(
                content["plans"], content["dataset_json"], content["method"]
            )
    terms = {"MeanTeacher": "consistency", "UAMT": "consistency", "FixMatch": "pseudo_label", "CutMix": "pseudo_label"}
    for method, term in terms.items():
        assert expected[f"trainer_{method}Trainer"][f"0 {term}"] > 0.01, method
    assert 0 < expected["trainer_UAMTTrainer"]["0 certain"] < 1
    worst: dict[str, float] = {}
    for number in (2, 4):
        process = torchrun(Path(ranks.__file__), tmp_path, processes=number)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        found = torch.load(tmp_path / f"found_{number}.pt")
        baseline = found.pop("baseline")  # labeled samples as for ALHVRTrainer, whose batch is 5 + 4
        parts, all_parts = ([len(share(samples, rank, number)) for rank in range(number)] for samples in (5, 9))
        assert baseline["samples"] == [(part, part, whole) for part, whole in zip(parts, all_parts, strict=True)]
        # nnU-Net forces the last 3 of 9, so 5/3 of 5
        assert list(itertools.chain(*baseline["forced"])) == pytest.approx([0, 0, 0, 2 / 3, 1])
        assert list(itertools.chain(*baseline["forced in validation"])) == [0] * 6 + [1] * 3
        assert len(set(baseline["draws"])) == number
        for case, results in expected.items():
            for key, value in results.items():
                assert value.dtype in (torch.float64, torch.bool), (case, key)
                difference = (found[case][key].double() - value.double()).abs().max().item()
                worst[f"{case}, {number} ranks"] = max(difference, worst.get(f"{case}, {number} ranks", 0))
                torch.testing.assert_close(
                    found[case][key], value, rtol=1e-8, atol=1e-10, msg=lambda m, w=(case, key): f"{w}: {m}"
                )
    print(json.dumps(worst, indent=1))


# --- two "machines": launchers in sessions of their own, which share nothing but the folders and a port -------------


def start_machines(*flags: object) -> list[subprocess.Popen]:
    words = ["-m", "alhvr_trainer", "train", "901", "2d", "0", "--device", "cpu", *flags]
    port = free_port()
    return [torchrun(*words, nodes=2, node=node, port=port) for node in range(2)]


def outputs_of(machines: list[subprocess.Popen], timeout: float = 240) -> list[str]:
    end = time.monotonic() + timeout
    try:
        return [machine.communicate(timeout=max(1, end - time.monotonic()))[0] for machine in machines]
    finally:
        for machine in machines:
            if machine.poll() is None:
                os.killpg(machine.pid, signal.SIGKILL)


def trainer_processes(machine: subprocess.Popen) -> list[int]:
    """Children of a launcher (Linux)."""
    found = Path(f"/proc/{machine.pid}/task/{machine.pid}/children").read_text()
    return [int(word) for word in found.split()]


@pytest.mark.slow
def test_two_machines_train_and_continue_after_one_dies(uneven: Path):
    """A rank killed in mid-training ends both machines, with a message; both then continue from the checkpoint.

    There is one unlabeled case, fewer than ranks; when training continues, no look at its foreground is there yet.
    """
    change_settings(uneven, num_epochs=100_000, unlabeled_foreground=0.5)
    for folder in ("raw", "preprocessed"):
        write_splits(uneven / folder / NAME, {key: SPLIT[key] for key in ("train", "val")})
    for scan in ("scan_001", "scan_002"):
        (uneven / "raw" / NAME / "imagesTr_unlabeled" / f"{scan}_0000.nii.gz").unlink()
    machines = start_machines()
    fold = uneven / "results" / NAME / "ALHVRTrainer__ALHVRPlans__2d" / "fold_0"
    end = time.monotonic() + 200
    while not (fold / "checkpoint_best.pth").is_file():  # written after the first epoch
        assert time.monotonic() < end and all(machine.poll() is None for machine in machines), outputs_of(machines, 1)
        time.sleep(0.2)
    os.kill(trainer_processes(machines[1])[0], signal.SIGKILL)
    killed = time.monotonic()
    outputs = outputs_of(machines)
    assert time.monotonic() - killed < 60
    assert all(machine.returncode != 0 for machine in machines)
    assert "alhvr: rank 0 stops: another process of this training ended" in outputs[0]
    assert "SIGKILL" in outputs[1] or "exitcode  : -9" in outputs[1]
    assert list(fold.parent.parent.rglob("plans.json")) == [fold.parent / "plans.json"]

    reached = read_checkpoint(fold / "checkpoint_best.pth")["current_epoch"]
    change_settings(uneven, num_epochs=reached + 1)
    machines = start_machines("--continue_training", "--npz")
    outputs = outputs_of(machines)
    assert [machine.returncode for machine in machines] == [0, 0], "\n".join(outputs)
    checkpoint = read_checkpoint(fold / "checkpoint_final.pth")
    assert checkpoint["current_epoch"] == reached + 1
    history = checkpoint["alhvr"]["history"]
    assert all(len(values) == reached + 1 and np.isfinite(values).all() for values in history.values())
    assert len(checkpoint["alhvr"]["ranks"]) == 2
    states = [rank["perturbation"][0]["generator"] for rank in checkpoint["alhvr"]["ranks"]]
    assert not torch.equal(*states)  # each rank draws its own perturbation
    draws = [rank["random_states"]["torch"] for rank in checkpoint["alhvr"]["ranks"]]
    assert not torch.equal(*draws)
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 2 and len(list((fold / "validation").glob("*.npz"))) == 2
    logs = list(fold.glob("training_log_*.txt"))
    assert "ALHVR: 1 unlabeled cases" in logs[0].read_text()
    assert sum("looked for foreground in 1 unlabeled" in log.read_text() for log in logs) == 1
    assert len(logs) == 2  # one of each start: rank 0 alone writes
    assert "alhvr:" not in outputs[0]


def test_batch_is_spread_over_ranks():
    for samples, parts in ((9, 4), (4, 4), (7, 2)):
        numbers = [list(share(samples, number, parts)) for number in range(parts)]
        assert list(itertools.chain(*numbers)) == list(range(samples))
        assert max(map(len, numbers)) - min(map(len, numbers)) <= 1
    check_batch_fits_ranks(4, 2, 2)
    with pytest.raises(InputError, match=r"2 labeled \+ 1 unlabeled samples cannot be spread over 2 .* at most 1"):
        check_batch_fits_ranks(2, 1, 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device", "tpu"], 'device is .tpu.; it must be "cuda", "cpu" or "mps"'),
        (["--device", "cpu", "--gpus", "2"], "gpus is 2; more than 1 is for device cuda without torchrun"),
        (["--device", "cpu", "--gpus", "0"], "gpus is 0"),
        (["--device", "cpu", "--continue_training", "--validation_only"], "continue_training excludes"),
        (["--device", "cpu", "--weights", "nowhere.pth"], "weights nowhere.pth is not a file"),
        (["--device", "cpu", "--best", "--nocheckpoints"], "best needs checkpoints"),
    ],
)
def test_bad_flags_of_train(flags, message, capsys: pytest.CaptureFixture[str]):
    assert main(["train", "901", "2d", "0", *flags]) == 1
    error = capsys.readouterr().err
    assert error.startswith("alhvr: ") and error.count("\n") == 1
    assert re.search(message, error)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["999", "2d", "0"], "Dataset901_Tiny; plan it first: alhvr plan_and_preprocess -d 999"),
        (
            ["901", "2d", "0", "--plans", "Nowhere"],
            "Nowhere.json does not exist; there are: ALHVRPlans; make it with: alhvr plan_and",
        ),
        (
            ["901", "2d", "0", "--trainer", "ALHVRTrainerX"],
            "no trainer is called ALHVRTrainerX; did you mean ALHVRTrainer?; there are AAUTrainer",
        ),
        (["901", "4d", "0"], "4d"),
        (["901", "2d", "0", "--validation_only"], "fold 0 cannot be validated: dataset 901 not found"),
        (["901", "2d", "first"], "fold is 'first'; it must be a number"),
    ],
)
def test_bad_names_for_train(tiny: Path, words, message, capsys: pytest.CaptureFixture[str]):
    assert main(["train", *words, "--device", "cpu"]) == 1
    assert message in capsys.readouterr().err
