"""A real Dask cluster of two worker processes, one of which is killed half-way."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import blosc2
import numpy as np
import pytest
from data_builders import FOLDERS, NAME, set_environment
from distributed import LocalCluster
from nnunet_environment import set_nnunet
from trained_models import assert_same_files, make_images, make_model, predict_with_nnunet

from alhvr_trainer import benchmark, predict
from alhvr_trainer.cluster import cluster_executor, scheduler
from alhvr_trainer.data.workers import run_on_cases
from alhvr_trainer.errors import InputError
from alhvr_trainer.planning.plan_and_preprocess import plan_and_preprocess
from alhvr_trainer.resources import ext_trainer_folder

pytest_plugins = ["planned_dataset"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as made:
        yield made


def kill_once(folder: str, number: int) -> int:
    """The square; the first worker that gets number 3 dies of it."""
    marker = Path(folder) / "killed"
    if number == 3 and not marker.exists():
        marker.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return number**2


def die(_number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(folder: str, number: int) -> None:
    (Path(folder) / str(time.monotonic_ns())).touch()
    raise InputError(f"case {number} is bad")


@pytest.mark.slow
def test_nothing_is_lost_when_a_worker_is_killed(cluster: LocalCluster, tmp_path: Path):
    arguments = {f"case_{n}": (str(tmp_path), n) for n in range(8)}
    with scheduler(cluster.scheduler_address):
        assert cluster_executor().workers == 2
        found = run_on_cases(kill_once, arguments, 1, "square", show_progress=False)
    assert found == {f"case_{n}": n**2 for n in range(8)} and list(found) == list(arguments)
    assert int((tmp_path / "killed").read_text()) != os.getpid()
    assert cluster_executor() is None


@pytest.mark.slow
def test_an_error_on_a_worker_is_the_error_here(cluster: LocalCluster, tmp_path: Path):
    """At once: a bad case is no better the second time."""
    with scheduler(cluster.scheduler_address), pytest.raises(InputError, match="case 1 is bad"):
        run_on_cases(fail, {"case_1": (str(tmp_path), 1)}, 1, "fail", show_progress=False)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
def test_what_kills_every_worker_is_given_up(cluster: LocalCluster):
    message = "a part of the work was given up, for each worker that had it died"
    with scheduler(cluster.scheduler_address), pytest.raises(InputError, match=message):
        run_on_cases(die, {"case_1": (1,)}, 1, "die", show_progress=False)


def test_runs_at_a_time_are_for_one_machine(tmp_path: Path):
    """Whether the cluster is there or not."""
    with pytest.raises(InputError, match="--parallel is for one machine"):
        benchmark("phantom-quick", output=str(tmp_path), parallel=2, scheduler="tcp://127.0.0.1:1")
    assert not list(tmp_path.iterdir())


def kill_a_worker_after(folder: Path, cluster: LocalCluster, killed: list[int]) -> None:
    """As soon as the first preprocessed case appears."""
    end = time.monotonic() + 120
    while time.monotonic() < end and not list(folder.rglob("*.b2nd")):
        time.sleep(0.01)
    process = next(iter(cluster.workers.values())).process
    killed.append(process.pid)
    os.kill(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_preprocessing_gives_the_files_of_one_process(
    cluster: LocalCluster, planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """More unlabeled cases; a worker dies during their preprocessing."""
    images = planned / "raw" / NAME / "imagesTr_unlabeled"
    for number in range(8):
        for file in sorted(images.glob("*_0000.nii.gz"))[:1]:
            shutil.copyfile(file, images / f"more_{number}_0000.nii.gz")
    shutil.copytree(planned, tmp_path / "other")
    plan_and_preprocess(901, "2d", num_processes=1, verify_dataset_integrity=False)
    set_environment(monkeypatch, tmp_path / "other")
    folder = tmp_path / "other" / "preprocessed" / NAME / "ALHVRPlans_2d_unlabeled"
    shutil.rmtree(folder)
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker_after, args=(folder, cluster, killed))
    killer.start()
    plan_and_preprocess(901, "2d", num_processes=1, verify_dataset_integrity=False, scheduler=cluster.scheduler_address)
    killer.join()
    assert killed
    expected = planned / "preprocessed" / NAME / folder.name
    names = sorted(file.name for file in expected.iterdir())
    assert names == sorted(file.name for file in folder.iterdir()) and len(names) > 20
    for name in [name for name in names if name.endswith(".b2nd")]:
        one, other = (blosc2.open(str(f / name), mode="r")[:] for f in (expected, folder))
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_prediction_gives_nnunets_voxels(cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = make_model(tmp_path / "results", folds=(0, 1))
    set_nnunet(monkeypatch, **{f"nnUNet_{name}": model.parents[1] for name in FOLDERS})
    images = make_images(tmp_path / "scans")
    monkeypatch.setenv("nnUNet_extTrainer", str(ext_trainer_folder()))
    monkeypatch.chdir(tmp_path)  # the workers are elsewhere
    options = {"device": "cpu", "model_folder": model.relative_to(tmp_path), "fold": (0, 1)}
    predict(input="scans", output="out", scheduler=cluster.scheduler_address, **options)
    assert_same_files(tmp_path / "out", predict_with_nnunet(model, images, tmp_path / "expected", (0, 1)))


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense://x", "foo", "http://127.0.0.1:8786"])
def test_what_cannot_be_reached_is_named(address: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("alhvr_trainer.cluster._PATIENCE", "1s")
    with pytest.raises(InputError, match=f"no Dask scheduler answers at {address}: "), scheduler(address):
        pass


def test_without_dask_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    message = r'"--scheduler" needs Dask: pip install "alhvr-trainer\[cluster\]"'
    with pytest.raises(InputError, match=message), scheduler("tcp://127.0.0.1:9"):
        pass


@pytest.mark.slow
def test_a_scheduler_without_workers_is_refused():
    empty = LocalCluster(n_workers=0, dashboard_address=None)
    with empty, pytest.raises(InputError, match="has no workers: start some"), scheduler(empty.scheduler_address):
        pass
