"""Checkpoint files survive a kill and a full disk."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from trained_models import file_size_limit

from alhvr_trainer.errors import InputError
from alhvr_trainer.trainers.checkpoints import read_checkpoint, write_atomically
from alhvr_trainer.trainers.state import random_states, restore_random_states, seed_everything

WRITER = """
import sys, torch
from alhvr_trainer.trainers.checkpoints import write_atomically
print("ready", flush=True)
for i in range(10**6):
    write_atomically({"network_weights": torch.full((2_000_000,), float(i))}, sys.argv[1])
"""


def content(value: float) -> dict:
    return {"network_weights": {"w": torch.full((1000,), value)}}


def test_a_process_killed_while_writing_leaves_a_whole_checkpoint(tmp_path: Path):
    path = tmp_path / "checkpoint_latest.pth"
    write_atomically({"network_weights": torch.full((2_000_000,), -1.0)}, path)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    seen = set()
    for pause in (0.05, 0.11, 0.07):
        time.sleep(pause)  # the file is whole at any time, also while the writer is at work
        seen.add(check_whole(path))
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    seen.add(check_whole(path))
    assert max(seen) >= 0  # the writer did replace the first one
    write_atomically({"network_weights": torch.full((2_000_000,), -2.0)}, path)
    assert list(tmp_path.iterdir()) == [path]  # nor does half a file stay


def check_whole(path: Path) -> float:
    weights = read_checkpoint(path)["network_weights"]
    assert len(weights) == 2_000_000 and (weights == weights[0]).all()
    return weights[0].item()


def test_a_full_disk_leaves_the_previous_checkpoint_and_says_so(tmp_path: Path):
    path = tmp_path / "checkpoint_best.pth"
    write_atomically(content(1.0), path)
    with file_size_limit(1000), pytest.raises(InputError, match=r"could not write.*checkpoint_best.pth.*untouched"):
        write_atomically({"network_weights": {"w": torch.zeros(100_000)}}, path)
    assert read_checkpoint(path)["network_weights"]["w"][0] == 1.0
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint_best.pth"]  # no half file is left behind


def test_a_folder_that_is_gone_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"could not write.*gone.*there was none before"):
        write_atomically(content(0.0), tmp_path / "gone" / "checkpoint.pth")


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"hello"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage):
    path = tmp_path / "checkpoint_final.pth"
    write_atomically(content(0.0), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"checkpoint_final.pth is missing or not a readable checkpoint"):
        read_checkpoint(path)


def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path):
    torch.save({"weights": 1}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r'other.pth is not an nnU-Net checkpoint: it has no "network_weights"'):
        read_checkpoint(tmp_path / "other.pth")


def test_random_states_are_taken_up():
    def draws() -> list[float]:
        return [random.random(), float(np.random.rand()), torch.rand(()).item()]

    seed_everything(1)
    states = random_states()
    first = draws()
    assert draws() != first
    restore_random_states(states)
    assert draws() == first
