"""Images of ALHVR's regions that a training leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from data_builders import change_settings
from tiny_training import make_trainer

from alhvr_trainer import predict
from alhvr_trainer.data.linking import linked_cases
from alhvr_trainer.trainers import region_maps
from alhvr_trainer.trainers.cps import CPSTrainer
from alhvr_trainer.trainers.region_maps import moments, region_map_file

pytest_plugins = ["planned_dataset"]


def trained(root: Path, epochs: int = 3, **settings: Any) -> tuple[Any, Path]:
    change_settings(root, num_epochs=epochs, seed=1, **settings)
    trainer = make_trainer(root)
    trainer.run_training()
    return trainer, Path(trainer.output_folder)


@pytest.mark.parametrize("epochs", [1, 2, 3, 10, 1000])
def test_the_last_moment_is_the_end(epochs: int):
    found = moments(epochs)
    assert found[epochs] == "late" and list(found) == sorted(found) and min(found) >= 1


def test_maps_are_those_of_the_networks_at_that_time(tiny: Path, tmp_path: Path):
    """On the grid of the images; the last ones as the finished model gives them."""
    trainer, fold = trained(tiny, region_maps=2)
    files = trainer.dataset.fold(0, *trainer.do_split()).unlabeled
    cases = trainer.data.unlabeled.identifiers
    shown = [cases[0], cases[-1]]
    names = {file.name for file in (fold / "regions").iterdir()}
    assert names == {f"{case}_regions_{moment}.nii.gz" for case in shown for moment in ("early", "midway", "late")}
    with linked_cases({case: files[case] for case in shown}, ".nii.gz") as scans:
        options: dict[str, Any] = {"device": "cpu", "num_processes": 1, "mirroring": False, "uncertainty": True}
        predict("901", "2d", 0, input=scans, output=tmp_path / "out", network="both", **options)
    for case in shown:
        image = sitk.ReadImage(files[case][0])
        early, late = (
            sitk.ReadImage(str(region_map_file(fold, case, moment, ".nii.gz"))) for moment in ("early", "late")
        )
        assert (late.GetSize(), late.GetOrigin(), late.GetSpacing()) == (
            image.GetSize(),
            image.GetOrigin(),
            image.GetSpacing(),
        )
        values = sitk.GetArrayFromImage(late)
        assert set(np.unique(values)) == {1, 2, 3}
        predicted = sitk.ReadImage(str(tmp_path / "out" / "uncertainty" / f"{case}_regions.nii.gz"))
        assert np.array_equal(values, sitk.GetArrayFromImage(predicted))
        assert not np.array_equal(values, sitk.GetArrayFromImage(early))


def test_maps_do_not_change_the_training(tiny: Path):
    weights = []
    for count in (3, 0):
        trainer, fold = trained(tiny, epochs=2, region_maps=count)
        weights.append(torch.cat([each.flatten() for each in trainer.network.parameters()]))
        # the second training removes the first one's
        assert len(list((fold / "regions").iterdir())) == 2 * count
        (fold / "regions" / "scan_000_regions_early.nii.gz").touch()
    assert torch.equal(*weights)


def test_a_method_without_regions_maps_none(tiny: Path):
    change_settings(tiny, num_epochs=1)
    trainer: Any = make_trainer(tiny, CPSTrainer)
    trainer.run_training()
    assert not (Path(trainer.output_folder) / "regions").exists()


def test_a_case_that_cannot_be_mapped_does_not_end_the_training(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*confidences: Any) -> None:
        raise MemoryError("too large")

    monkeypatch.setattr(region_maps, "alhvr_regions", fail)
    trainer, fold = trained(tiny, epochs=1, region_maps=1)
    assert trainer.current_epoch == 1 and not (fold / "regions").exists()
    (log,) = fold.glob("training_log_*.txt")
    case = trainer.data.unlabeled.identifiers[0]
    assert f"ALHVR WARNING: no map of the regions of case {case}: too large" in log.read_text()
