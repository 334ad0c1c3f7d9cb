"""``alhvr rounds``: what each round trains on, going on after an interruption, and what is refused."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import SimpleITK as sitk
from data_builders import NAME, change_settings
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from processes_end import all_end
from tiny_training import make_trainer

from alhvr_trainer import rounds
from alhvr_trainer.config.files import read_object
from alhvr_trainer.errors import InputError
from alhvr_trainer.pseudo_labels import rounds as module
from alhvr_trainer.trainers.evil import EVILTrainer
from alhvr_trainer.trainers.uamt import UAMTTrainer

pytest_plugins = ["planned_dataset"]

UNLABELED = {"case_004", "case_005", "scan_000", "scan_001", "scan_002"}
STUDENT = "SupervisedTrainer"
QUICKLY: dict[str, Any] = {"device": "cpu", "num_processes": 1, "student": STUDENT, "threshold": 0}


def raw(root: Path, number: int) -> Path:
    """901 is the tiny dataset's own number."""
    return root / "raw" / f"Dataset{901 + number}_{NAME[11:]}_2d_fold0_round{number}"


def test_two_rounds(untrained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Students of stock nnU-Net's kind train on all true labels and the kept pseudo-labels, from two teachers."""
    folder = rounds(901, "2d", rounds=2, **QUICKLY)
    assert folder == untrained / "results" / raw(untrained, 2).name / f"{STUDENT}__ALHVRPlans__2d"
    assert (folder / "fold_0" / "checkpoint_final.pth").is_file()
    teachers = []
    for number in (1, 2):
        record = read_object(raw(untrained, number) / "pseudo_labels.json")
        kept = [case for case, each in record["cases"].items() if each["kept"]]
        assert set(record["cases"]) == UNLABELED and kept
        assert record["cases_to_train_on"] == {"true": 2, "pseudo": len(kept), "dropped": 5 - len(kept)}
        assert all((each["rounds"] is None) == (number == 1) for each in record["cases"].values() if each["kept"])
        teachers.append(record["teacher"])
        listed = read_object(raw(untrained, number) / "dataset.json")["dataset"]
        assert set(listed) == {"case_000", "case_001", "case_002", "case_003", *kept}
        for case, entry in listed.items():
            own = Path(entry["label"]).parent
            assert own == (
                raw(untrained, number) / "predicted" if case in UNLABELED else untrained / "raw" / NAME / "labelsTr"
            )
            assert all(Path(file).parent.parent == untrained / "raw" / NAME for file in entry["images"])
        preprocessed = untrained / "preprocessed" / raw(untrained, number).name
        (split,) = json.loads((preprocessed / "splits_final.json").read_text())
        assert split == {"train": ["case_000", "case_001", *kept], "val": ["case_002", "case_003"]}
        references = preprocessed / "gt_segmentations"
        pseudo = sitk.GetArrayFromImage(sitk.ReadImage(str(references / f"{kept[0]}.nii.gz")))
        own = sitk.GetArrayFromImage(sitk.ReadImage(str(raw(untrained, number) / "predicted" / f"{kept[0]}.nii.gz")))
        np.testing.assert_array_equal(pseudo, own)
    assert [teacher["model"].split("__")[0] for teacher in teachers] == ["ALHVRTrainer", STUDENT]
    printed = capsys.readouterr().out
    assert printed.count("trains on 2 true and") == 2 and "round 2: validation Dice 0." in printed

    def must_not_run(*words: Any) -> None:
        raise AssertionError("trains again")

    monkeypatch.setattr("alhvr_trainer.processes.run_logged", must_not_run)
    assert rounds(901, "2d", rounds=2, **QUICKLY) == folder  # all is there, and found again
    another = {**QUICKLY, "threshold": 0.001}
    with pytest.raises(InputError, match=r"made with .*threshold.*, now it is .*0.001.*: choose another --first_id"):
        rounds(901, "2d", rounds=2, **another)
    shutil.rmtree(raw(untrained, 1))
    with pytest.raises(InputError, match=r"results/\S+ holds the student of an earlier round 1, whose data are gone"):
        rounds(901, "2d", rounds=2, first_id=902, **another)


def test_goes_on_where_it_was_interrupted(untrained: Path, monkeypatch: pytest.MonkeyPatch):
    """After the pseudo-labels, before the training: the predictions are not made again."""
    commands: list[list[str]] = []

    def stop(command: list[str], log: Path, environment: dict[str, str]) -> str:
        commands.append(command)
        return "no space left on device"

    monkeypatch.setattr("alhvr_trainer.processes.run_logged", stop)
    with pytest.raises(InputError, match=r"training SupervisedTrainer on .*_round1 failed \(no space left on device\)"):
        rounds(901, "2d", **QUICKLY)
    (folder,) = (untrained / "raw").glob("*_round1")
    made = {file: file.stat().st_mtime_ns for file in folder.rglob("*.nii.gz")}
    assert len(made) >= 3 * len(UNLABELED)
    fold = untrained / "results" / folder.name / f"{STUDENT}__ALHVRPlans__2d" / "fold_0"
    fold.mkdir(parents=True)
    (fold / "checkpoint_latest.pth").write_bytes(b"")
    with pytest.raises(InputError, match="no space left"):
        rounds(901, "2d", **QUICKLY)
    assert made == {file: file.stat().st_mtime_ns for file in folder.rglob("*.nii.gz")}
    assert "--continue_training" in commands[1] and "--continue_training" not in commands[0]


@pytest.mark.parametrize("kind", [nnUNetTrainer, UAMTTrainer, EVILTrainer])
def test_any_trainer_is_a_teacher(kind: type[nnUNetTrainer], tiny: Path, monkeypatch: pytest.MonkeyPatch):
    trainer = make_trainer(tiny, kind)
    trainer.on_train_start()
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    monkeypatch.setattr("alhvr_trainer.processes.run_logged", lambda *words: "it is not the student's turn")
    with pytest.raises(InputError, match="it is not the student's turn"):
        rounds(901, "2d", trainer=kind.__name__, **QUICKLY)
    (folder,) = (tiny / "raw").glob("*_round1")
    record = read_object(folder / "pseudo_labels.json")
    assert record["teacher"]["model"] == f"{kind.__name__}__ALHVRPlans__2d"
    assert set(record["cases"]) == UNLABELED and record["cases_to_train_on"]["pseudo"] > 0


def training_of(command: subprocess.Popen, log: Path) -> list[psutil.Process]:
    """The processes that a command has started, once its training has finished an epoch."""
    end = time.monotonic() + 300
    while not (log.is_file() and "epoch 1/" in log.read_text(encoding="utf-8")):
        assert command.poll() is None and time.monotonic() < end, f"no training began; see {log}"
        time.sleep(0.05)
    return psutil.Process(command.pid).children(recursive=True)


@pytest.mark.slow
@pytest.mark.parametrize(("end", "status"), [(signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_command_that_is_ended_ends_its_training(
    end: signal.Signals, status: int, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """As a scheduler ends it: training and workers end as well, and the step is still to be done."""
    change_settings(tiny, num_epochs=1000)
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    words = ["-d", "901", "-c", "2d", "--device", "cpu", "--num_processes", "1"]
    with subprocess.Popen([sys.executable, "-m", "alhvr_trainer", "rounds", *words]) as command:
        started: list[psutil.Process] = []
        try:
            started = training_of(command, tiny / "results" / NAME / "rounds_logs" / "ALHVRTrainer_fold_0.log")
            assert len(started) > 1 and any("train" in process.cmdline() for process in started)
            command.send_signal(end)
            assert command.wait(timeout=180) == status
            assert all_end(started)
        finally:
            for process in (command, *started):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
    assert not list(tiny.rglob("checkpoint_final.pth"))
    rounds(901, "2d", device="cpu", dry_run=True)
    assert capsys.readouterr().out.startswith(f"nnUNetv2_train {NAME} 2d 0 -tr ALHVRTrainer")


def test_a_dry_run_prints_nnunets_commands(untrained: Path, capsys: pytest.CaptureFixture):
    before = sorted(untrained.rglob("*"))
    rounds(901, "2d", rounds=2, final="nnUNetTrainer", dry_run=True, **QUICKLY)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("nnUNetv2_")]
    assert [line.split()[0].removeprefix("nnUNetv2_") for line in lines] == [
        *("train", "predict", "preprocess", "train"),
        *("predict", "preprocess", "train"),
    ]
    assert lines[0] == f"nnUNetv2_train {NAME} 2d 0 -tr ALHVRTrainer -p ALHVRPlans -device cpu"
    assert lines[-1] == f"nnUNetv2_train {raw(untrained, 2).name} 2d 0 -tr nnUNetTrainer -p ALHVRPlans -device cpu"
    assert sorted(untrained.rglob("*")) == before


def test_numbers_of_datasets_that_are_taken_are_left(untrained: Path):
    (untrained / "raw" / "Dataset900_Other").mkdir()
    (untrained / "raw" / "Dataset902_Other").mkdir()
    fold, plans = module._fold(901, "2d", 0, None)
    for number in (1, 2):
        assert module._rounds(fold, "2d", plans, [STUDENT] * number, None)[0].identifier == 903
    with pytest.raises(
        InputError, match=r"round 1 would be Dataset900_Tiny_2d_fold0_round1, and there is ..Dataset900_Other"
    ):
        rounds(901, "2d", rounds=2, first_id=900, **QUICKLY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, "threshold is 1.5; it must be a Dice from 0 to 1"),
        ({"rounds": 0}, '"rounds" must be a whole number of at least 1, found 0'),
        ({"student": "ALHVRTrainer"}, "student ALHVRTrainer learns from unlabeled cases, and a round has none"),
        ({"final": "CPSTrainer"}, "student CPSTrainer learns from unlabeled cases"),
        ({"fold": 3}, "fold is 3; splits_final.json of Dataset901_.* has 1 folds"),
        ({"fold": "all"}, "fold is all; splits_final.json of"),
        ({"plans": "Others"}, "Others.json"),
        ({"threshold": 0.999}, "round 1: no pseudo-label reaches a Dice of 0.999, the best has 0.*: lower --threshold"),
    ],
)
def test_refused(untrained: Path, options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        rounds(901, "2d", **{**QUICKLY, **options})
