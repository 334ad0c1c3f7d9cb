"""Hundreds of damaged inputs: each is used or refused with one clear line, in bounded time, and nothing else happens.

The examples are the same in every run. ``pytest -rP tests/commands/test_fuzz.py`` shows how many of each kind were used
and refused.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import signal
import sys
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import data_builders
import numpy as np
import pytest
import torch
from data_builders import NAME, read_json, set_environment, write_image
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mutations import damaged_bytes, documents, json_files, nifti_files
from nnunet_environment import set_nnunet
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from trained_models import DATASET, checkpoint_of, make_model

import alhvr_trainer
from alhvr_trainer import cli
from alhvr_trainer.data.case_images import read_case
from alhvr_trainer.errors import InputError
from alhvr_trainer.trainers.alhvr import ALHVRTrainer

pytest_plugins = ["planned_dataset"]

EXAMPLES = {
    "plans, exported": 170,
    "checkpoint, exported": 80,
    "checkpoint, resumed": 50,
    "plans, trained": 150,
    "dataset.json, split": 90,
    "splits, trained": 80,
    "NIfTI, unlabeled": 120,
    "NIfTI, evaluated": 60,
}
SECONDS = 20
PACKAGE = str(Path(alhvr_trainer.__file__).parent)


class TooSlow(BaseException):
    """No ``Exception``, so that nothing takes it for bad input."""


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TooSlow(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def command(*words: object) -> str:
    """Run ``alhvr WORDS``; "used" or "refused". Anything else than one clear line is an error."""
    out, err = io.StringIO(), io.StringIO()
    with time_limit(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(list(map(str, words)))
    said = [line for line in err.getvalue().splitlines() if line.startswith("alhvr: ")]
    assert PACKAGE not in err.getvalue() + out.getvalue().replace(f"{PACKAGE}/plans", ""), "a traceback of ours"
    if status == 0:
        assert not said
        return "used"
    assert status == 1 and len(said) == 1 and 20 < len(said[0]) < 1500, (status, err.getvalue()[-2000:])
    return "refused"


def call(function: Callable[[], object]) -> str:
    """The same for a Python function: it works, or raises InputError of one line."""
    with time_limit(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            function()
        except InputError as error:
            assert 20 < len(str(error)) < 1500
            return "refused"
    return "used"


def fuzz(kind: str, sound: Any, inputs: st.SearchStrategy, use: Callable[[Any], str]) -> None:
    """Use the ``sound`` input, and as many damaged ones as :data:`EXAMPLES` says, of which some must be refused."""
    count: Counter = Counter()
    assert use(sound) == "used"

    @settings(
        max_examples=EXAMPLES[kind],
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def run(example: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            count[use(example)] += 1

    run()
    print(f"{kind}: {count.total()} inputs, {count['used']} used, {count['refused']} refused")
    assert count.total() >= EXAMPLES[kind]
    assert count["refused"]


# --- trained models -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("fuzz_model")
    with pytest.MonkeyPatch.context() as patch:
        set_nnunet(patch, nnUNet_results=root / "results")
        yield make_model(root / "results")


def exported_with(model: Path, file: str) -> Callable[[bytes], str]:
    """Put a file into the model folder and export it, as a zip or as a bundle in turns; then put the old one back."""
    path, out = model / file, model.parents[2] / "out"
    original, turns = path.read_bytes(), Counter()

    def use(content: bytes) -> str:
        turns["all"] += 1
        path.write_bytes(content)
        shutil.rmtree(out, ignore_errors=True)
        name = ("export_nnunet", "export_bundle")[turns["all"] % 2]
        try:
            return command(name, "-d", DATASET, "-c", "2d", "-o", out / "exported", "-n", "both")
        finally:
            path.write_bytes(original)

    return use


def as_bytes(document: Any) -> bytes:
    return json.dumps(document).encode()


def one_configuration(plans: dict[str, Any]) -> dict[str, Any]:
    """Without the other configurations, whose damages do not matter; the one that counts inherits a part."""
    entries = dict(plans["configurations"]["2d"])
    parent = {key: entries.pop(key) for key in ("spacing", "architecture", "batch_size")}
    return {**plans, "configurations": {"parent": parent, "2d": {**entries, "inherits_from": "parent"}}}


def test_plans_of_a_model(model: Path):
    plans = one_configuration(json.loads((model / "plans.json").read_text()))
    fuzz("plans, exported", as_bytes(plans), json_files(plans), exported_with(model, "plans.json"))


def saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def test_checkpoint_of_a_model(model: Path):
    path = model / "fold_0" / "checkpoint_final.pth"
    bare = {key: value for key, value in checkpoint_of(model).items() if key != "init_args"}
    inputs = st.one_of(damaged_bytes(path.read_bytes()), damaged_bytes(path.read_bytes()), documents(bare).map(saved))
    fuzz("checkpoint, exported", path.read_bytes(), inputs, exported_with(model, "fold_0/checkpoint_final.pth"))


# --- training -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(planned_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("fuzz") / "nnunet"
    shutil.copytree(planned_once, root)
    with pytest.MonkeyPatch.context() as patch:
        set_environment(patch, root)
        yield root


def small_plans(root: Path) -> dict[str, Any]:
    plans = one_configuration(read_json(root, "ALHVRPlans.json"))
    keywords = plans["configurations"]["parent"]["architecture"]["arch_kwargs"]
    keywords["features_per_stage"] = [4] * keywords["n_stages"]
    plans["configurations"]["parent"]["batch_size"] = 2
    plans["configurations"]["2d"]["alhvr"] = {"num_epochs": 1, "seed": 1, "unlabeled_batch_size": 1}
    return plans


def trainer_of(root: Path, plans: Any) -> ALHVRTrainer:
    """What ``nnUNetv2_train 901 2d 0 -tr ALHVRTrainer`` makes of plans that it has read."""
    if isinstance(plans, dict):  # nnU-Net sets this, and fails before us on anything but an object
        plans = {**json.loads(json.dumps(plans)), "continue_training": False}
    return ALHVRTrainer(plans, "2d", 0, read_json(root, "dataset.json"), torch.device("cpu"))


def prepare(root: Path, plans: Any) -> None:
    """Up to the first step, with the first batches drawn."""
    trainer = trainer_of(root, plans)
    trainer.initialize()
    trainer.get_dataloaders()


def trained_with(root: Path) -> Callable[[Any], str]:
    return lambda plans: call(lambda: prepare(root, plans))


def test_plans_of_a_training(dataset: Path):
    fuzz("plans, trained", small_plans(dataset), documents(small_plans(dataset)), trained_with(dataset))


def test_splits_of_a_training(dataset: Path):
    path = dataset / "preprocessed" / NAME / "splits_final.json"
    original, plans, raw = path.read_bytes(), small_plans(dataset), dataset / "raw" / NAME / "splits_final.json"

    def use(content: bytes) -> str:
        path.write_bytes(content)
        raw.write_bytes(content)  # both must agree, else nothing but that would be looked at
        return call(lambda: prepare(dataset, plans))

    try:
        fuzz("splits, trained", original, json_files(json.loads(original)), use)
    finally:
        path.write_bytes(original)
        raw.write_bytes(original)


def test_checkpoint_of_a_training(dataset: Path, tmp_path: Path):
    trainer, path = trainer_of(dataset, small_plans(dataset)), tmp_path / "checkpoint_latest.pth"
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.initialize()
        trainer.save_checkpoint(str(path))
    whole = path.read_bytes()
    checkpoint = torch.load(path, weights_only=False)
    checkpoint["init_args"] = {}

    def use(content: bytes) -> str:
        path.write_bytes(content)
        return call(lambda: trainer.load_checkpoint(str(path)))

    fuzz("checkpoint, resumed", whole, st.one_of(damaged_bytes(whole), documents(checkpoint).map(saved)), use)


# --- planning -----------------------------------------------------------------------------------------------------


def test_dataset_json_of_a_split(dataset: Path, tmp_path: Path):
    path = dataset / "raw" / NAME / "dataset.json"

    def use(content: bytes) -> str:
        path.write_bytes(content)
        return command("make_split", "-d", 901, "--labeled", 1, "--output", tmp_path / "split.json", "--overwrite")

    original = path.read_bytes()
    try:
        fuzz("dataset.json, split", original, json_files(json.loads(original)), use)
    finally:
        path.write_bytes(original)


# --- images -------------------------------------------------------------------------------------------------------


def test_images_of_unlabeled_cases(tmp_path: Path):
    path = write_image(tmp_path / "scan_0000.nii.gz", data_builders.ellipsoid(0)[0])

    def use(content: bytes) -> str:
        path.write_bytes(content)
        return call(lambda: read_case([str(path)], SimpleITKIO()))

    fuzz("NIfTI, unlabeled", path.read_bytes(), nifti_files(path.read_bytes()), use)


@pytest.fixture
def segmentations(tmp_path: Path) -> Path:
    label = data_builders.ellipsoid(0, (4, 12, 10))[1]
    write_image(tmp_path / "predictions" / "case.nii.gz", np.roll(label, 1, 1))
    write_image(tmp_path / "references" / "case.nii.gz", label)
    content = {"labels": {"background": 0, "shell": 1, "core": 2, "both": [1, 2]}, "file_ending": ".nii.gz"}
    content |= {"channel_names": {"0": "MR"}, "numTraining": 1, "name": "x"}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    return tmp_path


def test_images_of_an_evaluation(segmentations: Path):
    root, path = segmentations, segmentations / "predictions" / "case.nii.gz"
    folders = ("--predictions", root / "predictions", "--references", root / "references")

    def use(content: bytes) -> str:
        path.write_bytes(content)
        return command("evaluate", *folders, "--dataset_json", root / "dataset.json", "-o", root / "scores")

    fuzz("NIfTI, evaluated", path.read_bytes(), nifti_files(path.read_bytes()), use)


# --- the test itself ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["raises", "says nothing", "goes on"])
def test_a_fault_would_be_noticed(fault: str, monkeypatch: pytest.MonkeyPatch):
    """A command with a fault of its own, under the same harness."""

    def faulty() -> None:
        if fault == "goes on":
            raise TooSlow  # as the alarm does
        raise (KeyError("batch_size") if fault == "raises" else InputError(""))

    module = types.ModuleType("faulty_commands")
    module.faulty = faulty  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.COMMANDS, "faulty", (module.__name__, ""))
    with pytest.raises((KeyError, AssertionError, TooSlow)):
        command("faulty")
