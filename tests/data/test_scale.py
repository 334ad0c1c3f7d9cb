"""What is done for each of thousands of cases is done once: comparisons, calls and opened files are counted."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import data_builders
import pytest
from data_builders import SPLIT
from tiny_training import make_trainer

from alhvr_trainer.data import dataset as dataset_module
from alhvr_trainer.data.dataset import named_dataset
from alhvr_trainer.data.fingerprint import FINGERPRINT_FILE, ALHVRFingerprintExtractor, add_unlabeled_to_fingerprint
from alhvr_trainer.data.label_geometry import misplaced_labels
from alhvr_trainer.data.loader import LabeledAndUnlabeled, SemiSupervisedDataLoader
from alhvr_trainer.data.splits import check_splits, choose_splits
from alhvr_trainer.data.stream import unlabeled_dataset
from alhvr_trainer.trainers.checks import hidden_intensities

pytest_plugins = ["planned_dataset"]

CASES = 300


class Name(str):
    """Counts comparisons with other names; looking one up in a set or dictionary takes none, or a few."""

    comparisons = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Name.comparisons += 1
        return str.__eq__(self, str(other))


@pytest.fixture
def names() -> list[Name]:
    Name.comparisons = 0
    return [Name(f"case_{number:03d}") for number in range(CASES)]


def test_splits_are_checked_in_one_pass(names: list[Name]) -> None:
    check_splits([{"train": [], "unlabeled": names, "val": []}])
    assert Name.comparisons < 10 * CASES


@pytest.mark.parametrize("labeled", [20, ",".join(f"case_{number:03d}" for number in range(0, CASES, 2))])
def test_splits_are_chosen_in_one_pass(labeled: int | str, names: list[Name]) -> None:
    (split,) = choose_splits(names, labeled, validation=[f"case_{number:03d}" for number in range(1, CASES, 2)])
    assert sum(map(len, split.values())) == CASES
    assert Name.comparisons < 10 * CASES


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int | str]:
    """The folds whose hidden cases were asked for."""
    folds: list[int | str] = []
    hidden_cases = dataset_module.hidden_cases

    def counted(splits: Any, fold: int | str) -> list[str]:
        folds.append(fold)
        return hidden_cases(splits, fold)

    monkeypatch.setattr(dataset_module, "hidden_cases", counted)
    return folds


@pytest.mark.parametrize(
    "use", [misplaced_labels, lambda dataset: ALHVRFingerprintExtractor(dataset.name, 1, source=dataset)]
)
def test_hidden_cases_are_listed_once(use: Callable[..., Any], planned: Path, asked: list[int | str]) -> None:
    data_builders.write_splits(planned / "preprocessed" / data_builders.NAME, SPLIT, SPLIT)
    data_builders.write_splits(planned / "raw" / data_builders.NAME, SPLIT, SPLIT)
    use(named_dataset(data_builders.NAME))
    assert asked == [0, 1]


class Looked(Sequence[str]):
    """Counts how many entries are looked at."""

    looks = 0

    def __init__(self, cases: Sequence[str]) -> None:
        self.cases = cases

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, place: Any) -> Any:
        self.looks += 1
        return self.cases[place]


def test_a_batch_looks_at_its_own_cases_alone(tiny: Path) -> None:
    trainer = make_trainer(tiny)
    trainer.initialize()
    data, _ = trainer.get_tr_and_val_datasets()
    both = LabeledAndUnlabeled(data.labeled, data.unlabeled, 2, 2)
    loader = SemiSupervisedDataLoader(both, 4, (1, 8, 8), (1, 8, 8), trainer.label_manager)
    both.labeled.identifiers, both.unlabeled.identifiers = (
        Looked([*kind.identifiers] * CASES) for kind in (both.labeled, both.unlabeled)
    )
    loader.generate_train_batch()
    assert (both.labeled.identifiers.looks, both.unlabeled.identifiers.looks) == (2, 2)


opened: list[str] | None = None


def _write_down(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and opened is not None:
        opened.append(str(arguments[0]))


@pytest.fixture
def files() -> Iterator[list[str]]:
    """Those opened by Python while the test runs. Such a hook cannot be removed; it rests afterwards."""
    global opened
    if not getattr(sys, "_alhvr_hook", False):
        sys.addaudithook(_write_down)
        sys._alhvr_hook = True  # type: ignore[attr-defined]
    opened = []
    yield opened
    opened = None


def test_the_start_of_a_training_opens_one_file_per_unlabeled_case(tiny: Path, files: list[str]) -> None:
    trainer = make_trainer(tiny)
    trainer.initialize()
    files.clear()
    data, _ = trainer.get_tr_and_val_datasets()
    unlabeled = Path(data.unlabeled.source_folder)
    assert [file for file in files if file.startswith(str(tiny / "raw")) and file.endswith(".nii.gz")] == []
    of_cases = Counter(Path(file).name for file in files if Path(file).parent == unlabeled)
    assert of_cases == {f"{case}.pkl": 1 for case in data.unlabeled.identifiers}
    of_splits = Counter(file for file in files if file.endswith("splits_final.json"))
    assert max(of_splits.values()) <= 2, "one reading is nnU-Net's"


def test_planning_again_reads_no_unlabeled_image(planned: Path, files: list[str]) -> None:
    dataset = named_dataset(data_builders.NAME)
    files.clear()
    add_unlabeled_to_fingerprint(dataset, 0)
    assert files and [file for file in files if file.endswith(".nii.gz")] == []


def test_copied_images_are_read_once_to_see_that_they_are_the_same(tiny: Path, files: list[str]) -> None:
    """Not at each start of a training and each planning from then on."""
    dataset, trainer = named_dataset(data_builders.NAME), make_trainer(tiny)
    labeled_folder = trainer.preprocessed_dataset_folder
    for image in (tiny / "raw").rglob("*.nii.gz"):
        os.utime(image, ns=(1, 1))

    def images_read() -> int:
        files.clear()
        add_unlabeled_to_fingerprint(dataset, 0)
        fold = dataset.fold(0, SPLIT["train"], SPLIT["val"])
        unlabeled_dataset(fold, trainer.plans_manager, trainer.configuration_manager, labeled_folder, print)
        return sum(file.endswith(".nii.gz") for file in files)

    assert images_read() == 2 * len(dataset.unlabeled), "once for the fingerprint, once for the preprocessed case"
    assert images_read() == 0


def test_without_hidden_cases_the_fingerprint_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_builders.set_environment(monkeypatch, tmp_path)
    data_builders.make_dataset(tmp_path / "raw", labeled=1, unlabeled=1)
    dataset = named_dataset(data_builders.NAME)
    Path(dataset.preprocessed).mkdir()
    (Path(dataset.preprocessed) / FINGERPRINT_FILE).write_text("no JSON")
    assert hidden_intensities(dataset, {"plans_name": "ALHVRPlans", "experiment_planner_used": "ALHVRPlanner"}) is None
