"""Patches of unlabeled cases that are laid around foreground which the network predicted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_builders import change_settings
from tiny_training import make_trainer

from alhvr_trainer.data.batches import Draws
from alhvr_trainer.data.foreground import FOLDER, LOOKS, VOXELS, PredictedForeground, foreground_voxels
from alhvr_trainer.data.loader import LabeledAndUnlabeled, SemiSupervisedDataLoader
from alhvr_trainer.trainers.supervised import SupervisedTrainer

pytest_plugins = ["planned_dataset"]

CORNER = (3, 30, 5)
"""A voxel of the tiny cases, near enough to the border that a random patch seldom shows it in its middle."""


@pytest.mark.parametrize(
    ("epochs", "looks"), [(1, {0}), (2, {0, 1}), (7, set(range(7))), (1000, set(range(0, 1000, 100)))]
)
def test_the_network_looks_ten_times_at_most(epochs: int, looks: set[int]):
    foreground = PredictedForeground(Path(), epochs, 5, 0)
    last = [foreground.looked_in(epoch) for epoch in range(epochs)]
    assert set(last) == looks and len(looks) <= LOOKS
    assert all(look <= epoch and foreground.looked_in(look) == look for epoch, look in enumerate(last))
    assert foreground.looked_in(epochs + 3) == last[-1]  # workers make a few batches too many


def test_voxels_are_those_of_the_prediction(tiny: Path):
    manager = make_trainer(tiny).label_manager
    logits = torch.zeros(3, 4, 50, 60)
    logits[0] = 1
    logits[1, 1, :40, :40] = 2
    logits[2, 3, 5, 6] = 2
    voxels = foreground_voxels(logits, manager)
    assert list(voxels) == ["0", "1"]
    assert voxels["0"].shape == (VOXELS, 4) and np.unique(voxels["0"], axis=0).shape == (VOXELS, 4)
    assert (voxels["0"][:, :2] == (0, 1)).all() and (voxels["0"][:, 2:] < 40).all()
    assert voxels["1"].tolist() == [[0, 3, 5, 6]]
    assert foreground_voxels(torch.zeros(3, 2, 4, 4), manager) == {}


class Middles(SemiSupervisedDataLoader):
    """Writes down the middle of every patch, labeled ones first."""

    middles: list[tuple[int, ...]]

    def get_bbox(self, *args: Any, **kwargs: Any) -> Any:
        start, end = super().get_bbox(*args, **kwargs)
        self.middles.append(tuple((a + b) // 2 for a, b in zip(start, end, strict=True)))
        return start, end


def middles(trainer: Any, share: float, batches: int, has_ignore: bool = False, found: bool = True) -> np.ndarray:
    """Of patches of 8 x 8 voxels: (batches, 4, 3); two labeled samples, then two unlabeled ones."""
    labeled, _ = trainer.get_tr_and_val_datasets()
    folder = Path(trainer.output_folder) / "found"
    foreground = PredictedForeground(folder, epochs=2, iterations=batches // 2, first=0)
    foreground.folder_of(1).mkdir(parents=True)
    for case in labeled.unlabeled.identifiers:
        np.savez(foreground.folder_of(1) / f"{case}.npz", **({"0": np.array([[0, *CORNER]])} if found else {}))
    labeled.labeled.draws = Draws((1,), 0, (0.0, 0.0, share, share))
    both = LabeledAndUnlabeled(labeled.labeled, labeled.unlabeled, 2, 2, foreground)
    both.has_ignore = has_ignore
    loader = Middles(both, 4, (1, 8, 8), (1, 8, 8), trainer.label_manager)
    loader.middles, loader.has_ignore = [], has_ignore
    for _ in range(batches + 1):  # the first is nnU-Net's own, which it drops
        loader.generate_train_batch()
    shutil.rmtree(folder)
    return np.array(loader.middles).reshape(batches + 1, 4, 3)[1:]


def test_the_share_of_patches_is_aimed(tiny: Path):
    trainer = make_trainer(tiny)
    trainer.initialize()
    before, after = np.split((middles(trainer, 0.5, 200)[:, 2:] == CORNER).all(axis=-1), 2)
    assert before.mean() < 0.02  # nothing was looked for yet
    assert 0.35 < after.mean() < 0.65


def test_other_patches_stay_where_they_were(tiny: Path):
    """With the same draws, an unlabeled patch is where it was, or aimed; a share of 0 changes nothing."""
    trainer = make_trainer(tiny)
    trainer.initialize()
    stock, nothing_found = middles(trainer, 0.0, 40), middles(trainer, 1.0, 40, found=False)
    np.testing.assert_array_equal(stock, nothing_found)
    aimed = middles(trainer, 1.0, 40)
    np.testing.assert_array_equal(stock[:20], aimed[:20])
    np.testing.assert_array_equal(stock[20:, :2], aimed[20:, :2])
    assert (aimed[20:, 2:] == CORNER).all()


def run(root: Path, epochs: int | None = None, **options: Any) -> Any:
    trainer: Any = make_trainer(root, **options)
    trainer.save_every = 1
    if options.get("resume"):
        trainer.load_checkpoint(str(Path(trainer.output_folder) / "half_way.pth"))
    on_train_end, trainer.looks = trainer.on_train_end, []

    def keep_looks() -> None:
        trainer.looks = sorted(path.name for path in (Path(trainer.output_folder) / FOLDER).glob("*"))
        on_train_end()

    trainer.on_train_end = keep_looks
    on_epoch_end = trainer.on_epoch_end

    def copy() -> None:
        on_epoch_end()
        if trainer.current_epoch == epochs:
            latest = Path(trainer.output_folder) / "checkpoint_latest.pth"
            shutil.copyfile(latest, latest.with_name("half_way.pth"))

    trainer.on_epoch_end = copy
    trainer.run_training()
    return trainer


@pytest.mark.parametrize("processes", ["0", "2"])
def test_training_aims_and_continues_exactly(tiny: Path, monkeypatch: pytest.MonkeyPatch, processes: str):
    """Also where the looks are gone, and with workers, which are ahead of the looks."""
    monkeypatch.setenv("nnUNet_n_proc_DA", processes)
    change_settings(tiny, num_epochs=4, unlabeled_foreground=1.0)
    at_once = run(tiny, epochs=3)
    assert at_once.looks == ["epoch_1", "epoch_2", "epoch_3"]
    assert not (Path(at_once.output_folder) / FOLDER).exists()  # of no use any more
    continued = run(tiny, resume=True)
    assert continued.looks == ["epoch_3"]
    for name, network in at_once.networks().items():
        for key, value in network.state_dict().items():
            assert torch.equal(value, continued.networks()[name].state_dict()[key]), (name, key)
    assert continued.monitor.history == at_once.monitor.history


def test_without_the_setting_nobody_looks(tiny: Path):
    assert run(tiny).looks == []
    change_settings(tiny, unlabeled_foreground=1.0)
    labeled_only: Any = make_trainer(tiny, SupervisedTrainer)
    labeled_only.run_training()
    assert not (Path(labeled_only.output_folder) / FOLDER).exists()


def test_a_missing_look_is_no_endless_wait(tmp_path: Path):
    foreground = PredictedForeground(tmp_path, epochs=10, iterations=2, first=0)
    with pytest.raises(RuntimeError, match=r"epoch_3 is missing"):
        foreground.voxels("case", 7)


def test_looks_of_an_earlier_training_are_forgotten(tmp_path: Path):
    foreground = PredictedForeground(tmp_path, epochs=10, iterations=2, first=0)
    for name in ("epoch_2", "epoch_3", "epoch_10", "epoch_4.unfinished"):
        (tmp_path / name).mkdir()
    foreground.forget_from(3)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch_2"]
    assert foreground.is_missing(3) and not foreground.is_missing(2) and not foreground.is_missing(0)
