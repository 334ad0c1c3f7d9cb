"""A training that is killed in the middle of an epoch and continued ends where an undisturbed one ends, bit for bit.

As a script this file is the training: nnU-Net's own functions, a checkpoint after every epoch.

    python tests/trainers/test_resume.py [--resume] [--stop_in_epoch N]
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_builders import NAME, make_tiny, read_json, write_json
from nnunet_environment import SUPPORT

from alhvr_trainer.resources import ext_trainer_folder
from alhvr_trainer.trainers.checkpoints import read_checkpoint

pytest_plugins = ["planned_dataset"]
pytestmark = pytest.mark.slow

EPOCHS = 6
ITERATIONS = 4
KILLED_IN = 3
"""Number of the epoch, from 0: three epochs are complete."""
READY = "waits to be killed"


def train(resume: bool, stop_in_epoch: int | None) -> None:
    """``nnUNetv2_train 901 2d 0 -tr ALHVRTrainer -p ALHVRPlans -device cpu [--c]``, saving after every epoch."""
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    trainer = get_trainer_from_args(
        "901", "2d", 0, "ALHVRTrainer", "ALHVRPlans", continue_training=resume, device=torch.device("cpu")
    )
    trainer.save_every = 1
    maybe_load_checkpoint(trainer, continue_training=resume, validation_only=False)
    step = trainer.train_step

    def stopping(batch: dict) -> dict:
        values = step(batch)
        if trainer.current_epoch == stop_in_epoch and trainer.step % ITERATIONS == ITERATIONS // 2:
            print(READY, flush=True)
            signal.pause()  # half an epoch further than the checkpoint; only the kill ends this
        return values

    trainer.train_step = stopping
    trainer.run_training()


def child(root: Path, results: str, *flags: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        **{f"nnUNet_{name}": str(root / name) for name in ("raw", "preprocessed")},
        "nnUNet_results": str(root / results),
        "nnUNet_extTrainer": str(ext_trainer_folder()),
        "nnUNet_n_proc_DA": "2",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, __file__, *flags]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def run(root: Path, results: str, *flags: str) -> None:
    with child(root, results, *flags) as process:
        printed, _ = process.communicate()
    assert process.returncode == 0, printed[-3000:]


def kill_in_the_middle(root: Path, results: str) -> None:
    with child(root, results, "--stop_in_epoch", str(KILLED_IN)) as process:
        lines = []
        for line in process.stdout or ():
            lines.append(line)
            if READY in line:
                break
        else:
            raise AssertionError("it ended before it could be killed: " + "".join(lines[-40:]))
        os.killpg(process.pid, signal.SIGKILL)  # its workers as well
    assert process.returncode == -signal.SIGKILL


def leaves(content: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Everything that a checkpoint holds, with the way to it."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from leaves(value, f"{name}.{key}")
    elif isinstance(content, (list, tuple)):
        for number, value in enumerate(content):
            yield from leaves(value, f"{name}.{number}")
    else:
        yield name, content.tolist() if isinstance(content, (np.ndarray, np.generic)) else content


def differences(one: Any, other: Any) -> list[str]:
    """Names of what is not the same to the last bit."""
    first, second = dict(leaves(one)), dict(leaves(other))
    assert first.keys() == second.keys()

    def same(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if torch.is_tensor(a) else repr(a) == repr(b)  # NaN equals NaN

    return [name for name, value in first.items() if not same(value, second[name])]


@pytest.fixture(scope="module")
def checkpoints(planned_once: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Of a training at once the final one; of one that was killed the latest then, and the final one."""
    root = tmp_path_factory.mktemp("resume") / "nnunet"
    shutil.copytree(planned_once, root)
    make_tiny(root)
    plans = read_json(root, "ALHVRPlans.json")
    plans["configurations"]["2d"]["alhvr"].update(num_epochs=EPOCHS, num_iterations_per_epoch=ITERATIONS)
    write_json(root, "ALHVRPlans.json", plans)

    def read(results: str, name: str) -> dict:
        folder = root / results / NAME / "ALHVRTrainer__ALHVRPlans__2d" / "fold_0"
        return read_checkpoint(folder / f"checkpoint_{name}.pth")

    run(root, "at_once")
    kill_in_the_middle(root, "killed")
    latest = read("killed", "latest")
    run(root, "killed", "--resume")
    return {"at once": read("at_once", "final"), "killed": latest, "continued": read("killed", "final")}


def test_nnunets_part_is_the_same(checkpoints: dict[str, dict]):
    one, other = checkpoints["at once"], checkpoints["continued"]
    assert one.keys() == other.keys()
    compared = one.keys() - {"logging", "alhvr"}
    assert {"network_weights", "optimizer_state", "grad_scaler_state", "current_epoch"} <= compared
    assert differences({key: one[key] for key in compared}, {key: other[key] for key in compared}) == []


def test_our_part_is_the_same(checkpoints: dict[str, dict]):
    ours = checkpoints["at once"]["alhvr"]
    assert {"network_b_weights", "optimizer_b_state", "ranks", "history", "seed"} <= set(ours)
    assert {"perturbation", "random_states"} <= set(ours["ranks"][0])
    assert differences(ours, checkpoints["continued"]["alhvr"]) == []
    assert all(len(values) == EPOCHS for values in ours["history"].values())
    assert np.all(np.diff(ours["history"]["weight"]) > 0)  # the ramp went on, and was the same


def test_the_log_is_the_same_but_for_times(checkpoints: dict[str, dict]):
    one, other = checkpoints["at once"]["logging"], checkpoints["continued"]["logging"]
    changed = {name.split(".")[1] for name in differences(one, other)}
    assert changed <= {"epoch_start_timestamps", "epoch_end_timestamps"}


def test_the_comparison_would_notice(checkpoints: dict[str, dict]):
    """The kill fell between two checkpoints, and training went on from there in every part that is compared."""
    killed, continued = checkpoints["killed"], checkpoints["continued"]
    assert killed["current_epoch"] == KILLED_IN and continued["current_epoch"] == EPOCHS
    for before, after in ((killed, continued), (killed["alhvr"], continued["alhvr"])):
        optimizer = "optimizer_state" if before is killed else "optimizer_b_state"
        changed = {name for name in differences(before[optimizer], after[optimizer]) if "momentum_buffer" in name}
        assert len(changed) > len(before[optimizer]["state"]) / 2  # biases that get no gradient stay at 0
    assert differences(killed["network_weights"], continued["network_weights"])
    assert differences(killed["alhvr"]["network_b_weights"], continued["alhvr"]["network_b_weights"])
    assert differences(killed["alhvr"]["ranks"][0]["perturbation"], continued["alhvr"]["ranks"][0]["perturbation"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--stop_in_epoch", type=int)
    train(**vars(parser.parse_args()))
