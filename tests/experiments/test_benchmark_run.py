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
from pathlib import Path

import psutil
import pytest
import yaml
from distributed import LocalCluster

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


def run(folder: Path, *flags: str) -> subprocess.CompletedProcess:
    """The command, with nnU-Net's folders where it puts them by itself."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("nnUNet_")}
    variables |= {"nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "0", "OMP_NUM_THREADS": "1"}
    words = ["benchmark", "--suite", str(folder / "suite.yaml"), "-o", str(folder / "out"), "--device", "cpu", *flags]
    command = [sys.executable, "-m", "alhvr_trainer", *words]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=500)


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
    for checkpoint in ("final", "best"):
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


def kill_the_worker_of_a_run(folder: Path, found: list[psutil.Process]) -> None:
    """The Dask worker that started the first training, as soon as that is there."""
    end = time.monotonic() + 300
    while time.monotonic() < end and not found:
        found += [p for p in psutil.process_iter() if "alhvr_trainer.experiments.benchmark" in words_of(p, folder)]
        time.sleep(0.2)
    time.sleep(3)  # it imports nnU-Net
    os.kill(found[0].ppid(), signal.SIGKILL)


def words_of(process: psutil.Process, folder: Path) -> list[str]:
    try:
        words = process.cmdline()
    except psutil.Error:
        return []
    return words if str(folder / "out") in words else []


@pytest.mark.slow
def test_on_a_cluster_whose_worker_is_killed(tmp_path):
    """Another worker does the run anew, and the first training does not go on beside it."""
    write_suite(tmp_path, {**SUITE, "methods": [SUITE["methods"][0], SUITE["methods"][2]]})
    trainings: list[psutil.Process] = []
    killer = threading.Thread(target=kill_the_worker_of_a_run, args=(tmp_path, trainings))
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        killer.start()
        done = run(tmp_path, "--scheduler", cluster.scheduler_address)
        killer.join()
    assert done.returncode == 0, done.stdout + done.stderr
    assert not trainings[0].is_running()
    results = sorted(path.name for path in (tmp_path / "out" / "runs").iterdir())
    assert results == ["alhvr__2_labeled__seed0.json", "supervised__2_labeled__seed0.json"]
    assert (tmp_path / "out" / "report.md").is_file()


def test_a_process_ends_with_its_parent(tmp_path):
    """And what it started."""
    child = "import subprocess, sys, time; from alhvr_trainer.experiments.processes import end_with_parent; "
    child += "end_with_parent(); subprocess.Popen(['sleep', '60']); print(1, flush=True); time.sleep(60)"
    parent = "import subprocess, sys, time; "
    parent += f"subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    left = psutil.Process(process.pid).children(recursive=True)
    assert len(left) == 2
    process.kill()
    process.wait()
    _gone, alive = psutil.wait_procs(left, timeout=10)
    assert not alive
