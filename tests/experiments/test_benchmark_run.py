"""``alhvr benchmark`` from end to end: real trainings of seconds, resumed, with a method that fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from distributed import LocalCluster
from processes_end import all_end

from alhvr_trainer.processes import run_logged

SUITE = {
    "name": "tiny",
    "dataset": "phantom",
    "phantom": {"labeled": 5, "unlabeled": 0, "test": 2, "seed": 0},
    "configuration": "2d",
    "plans": "demo",
    "folds": {"2 labeled": 0},
    "seeds": [0],
    "test": True,
    "settings": {"num_epochs": 1, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1},
    "methods": [
        {"name": "Supervised", "trainer": "SupervisedTrainer"},
        {"name": "Broken", "trainer": "SupervisedTrainer", "settings": {"num_epochs": 0}},
        {"name": "ALHVR", "trainer": "ALHVRTrainer"},
    ],
}


def write_suite(folder: Path, suite: dict) -> None:
    ids = [f"phantom_{number:03d}" for number in range(5)]
    (folder / "splits.json").write_text(json.dumps([{"train": ids[:2], "unlabeled": ids[2:4], "val": ids[4:]}]))
    (folder / "suite.yaml").write_text(yaml.safe_dump({**suite, "splits": str(folder / "splits.json")}))


def start(folder: Path, *flags: str) -> subprocess.Popen:
    """The command, with nnU-Net's folders where it puts them by itself."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("nnUNet_")}
    variables |= {"nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "0", "OMP_NUM_THREADS": "1"}
    words = ["benchmark", "--suite", str(folder / "suite.yaml"), "-o", str(folder / "out"), "--device", "cpu", *flags]
    command = [sys.executable, "-m", "alhvr_trainer", *words]
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(folder: Path, *flags: str) -> subprocess.CompletedProcess:
    """The command to its end."""
    process = start(folder, *flags)
    output = process.communicate(timeout=500)
    return subprocess.CompletedProcess(process.args, process.returncode, *output)


@pytest.mark.slow
def test_benchmark_goes_on_where_it_stopped(tmp_path):
    write_suite(tmp_path, SUITE)
    first = run(tmp_path, "--parallel", "2")
    assert first.returncode == 1, first.stdout + first.stderr
    assert "1 run(s) failed, all others are done: Broken, 2 labeled, seed 0" in first.stderr
    assert '"alhvr.num_epochs" in the plans is 0' in first.stderr
    assert ": ALHVR, 2 labeled, seed 0: done in" in first.stdout

    files = {path.name: path for path in (tmp_path / "out" / "runs").iterdir()}
    assert sorted(files) == ["alhvr__2_labeled__seed0.json", "supervised__2_labeled__seed0.json"]
    ours, theirs = (json.loads(files[name].read_text()) for name in sorted(files))
    assert (ours["labeled"], ours["unlabeled"], theirs["unlabeled"]) == (2, 2, 0)
    assert (ours["iterations"], ours["continued"], ours["settings_in_force"]["seed"]) == (1, False, 0)
    assert str(tmp_path) not in files["alhvr__2_labeled__seed0.json"].read_text()
    for checkpoint in ("final", "postprocessed", "best"):
        assert sorted(ours["metrics"][checkpoint]["test"]) == ["phantom_005", "phantom_006"]
        assert list(ours["metrics"][checkpoint]["validation"]) == ["phantom_004"]
        assert set(ours["metrics"][checkpoint]["test"]["phantom_005"]) == {"RV", "MYO", "LV"}
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| Broken | 2 labeled | none | | | |" in report and "| ALHVR | 2 | 2 | 1 |" in report

    files["alhvr__2_labeled__seed0.json"].unlink()
    again = run(tmp_path, "--methods", "ALHVR,Supervised", "--remove_checkpoints")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "2 runs, 1 of them done" in again.stdout and "plan and preprocess" not in again.stdout
    resumed = json.loads(files["alhvr__2_labeled__seed0.json"].read_text())
    assert resumed["continued"] and resumed["metrics"] == ours["metrics"]  # trained, but not measured again from anew
    checkpoints = list((tmp_path / "out" / "nnunet").rglob("checkpoint_*.pth"))
    assert checkpoints and all("SupervisedTrainer" in str(path) for path in checkpoints)

    # the same numbers as side by side
    alone = json.loads(files["supervised__2_labeled__seed0.json"].read_text())
    files["supervised__2_labeled__seed0.json"].unlink()
    for folder in (tmp_path / "out" / "nnunet" / "nnUNet_results").rglob("fold_0"):
        shutil.rmtree(folder)
    assert run(tmp_path, "--methods", "Supervised").returncode == 0
    assert json.loads(files["supervised__2_labeled__seed0.json"].read_text())["metrics"] == alone["metrics"]


def trainings(folder: Path) -> list[psutil.Process]:
    """The runs' processes, without their workers."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = process.cmdline()
            if "alhvr_trainer.experiments.benchmark" in words and str(folder / "out") in words:
                found.append(process)
    return found


def first_trainings(folder: Path) -> list[psutil.Process]:
    """Once they have started."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        found = trainings(folder)
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("no training started")


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 3], ids=["at once", "while it imports"])
def test_on_a_cluster_whose_worker_is_killed(tmp_path, after):
    """Another worker does the run anew, and the first training does not go on beside it."""
    write_suite(tmp_path, {**SUITE, "methods": [SUITE["methods"][0]]})
    killed: list[psutil.Process] = []

    def kill() -> None:
        killed.extend(first_trainings(tmp_path))
        worker = killed[0].ppid()
        time.sleep(after)
        os.kill(worker, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        killer.start()
        done = run(tmp_path, "--scheduler", cluster.scheduler_address)
        killer.join()
    assert done.returncode == 0, done.stdout + done.stderr
    assert all_end(killed) and not trainings(tmp_path)
    assert [path.name for path in (tmp_path / "out" / "runs").iterdir()] == ["supervised__2_labeled__seed0.json"]
    assert (tmp_path / "out" / "report.md").is_file()


@pytest.mark.slow
def test_on_a_cluster_trainings_are_the_workers_and_end_with_the_command(tmp_path, monkeypatch):
    """They have the environment of their worker, its GPU for instance; Ctrl-C ends them."""
    write_suite(tmp_path, {**SUITE, "settings": {"num_epochs": 1000}, "methods": [SUITE["methods"][0]]})
    monkeypatch.setenv("MARK", "the client's")
    own = {"MARK": "the worker's", "CUDA_VISIBLE_DEVICES": "7"}
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, env=own) as cluster:
        command = start(tmp_path, "--scheduler", cluster.scheduler_address)
        running = first_trainings(tmp_path)[0]
        found = running.environ()
        command.send_signal(signal.SIGINT)
        assert command.wait(timeout=180) == 130
        assert all_end([running]) and len(cluster.workers) == 1
    assert {name: found[name] for name in own} == own
    assert found["nnUNet_n_proc_DA"] == "0" and found["OMP_NUM_THREADS"] == "1"  # the client's


CHILD = """
import subprocess, sys, time
from alhvr_trainer.processes import end_with_parent
subprocess.Popen(["sleep", "60"])
print(1, flush=True)
time.sleep({busy})
end_with_parent()
time.sleep(60)
"""
PARENT = """
import os, sys
from pathlib import Path
from alhvr_trainer.processes import run_logged
run_logged([sys.executable, "-c", {child!r}], Path({log!r}), dict(os.environ))
"""


@pytest.mark.parametrize("busy", [0, 2], ids=["it waits", "it has just started"])
def test_a_process_ends_with_the_one_that_started_it(tmp_path, busy):
    """And what it started."""
    log = tmp_path / "log"
    code = PARENT.format(child=CHILD.format(busy=busy), log=str(log))
    parent = subprocess.Popen([sys.executable, "-c", code])
    while not log.is_file() or log.read_text().splitlines()[-1:] != ["1"]:
        time.sleep(0.05)
    left = psutil.Process(parent.pid).children(recursive=True)
    assert len(left) == 2
    parent.kill()
    parent.wait()
    assert all_end(left)


def test_what_a_killed_process_started_ends_as_well(tmp_path):
    """The reason is the signal, not the last line of the log."""
    code = "import os, subprocess; print(subprocess.Popen(['sleep', '600']).pid, flush=True); os.kill(os.getpid(), 9)"
    problem = run_logged([sys.executable, "-c", code], tmp_path / "log", dict(os.environ))
    assert problem == "ended by SIGKILL; the system sends SIGKILL when memory runs out"
    worker = int((tmp_path / "log").read_text().split()[-1])
    with suppress(psutil.NoSuchProcess):
        assert all_end([psutil.Process(worker)])
