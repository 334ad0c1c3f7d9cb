"""Batches made on the training's device: where patches lie, and what they hold."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from alhvr_trainer.data import case_cache, device_loader
from alhvr_trainer.data.batches import Draws
from alhvr_trainer.data.case_cache import CaseCache, bytes_of, chosen_place
from alhvr_trainer.data.device_loader import OnDevice
from alhvr_trainer.data.loader import LabeledAndUnlabeled, SemiSupervisedDataLoader

CPU = torch.device("cpu")
SHAPE = (9, 30, 26)
KINDS = {
    "2d": ((20, 16), (31, 29), False),
    "3d": ((8, 20, 16), (13, 29, 27), False),
    "dummy 2d": ((6, 20, 16), (6, 31, 29), True),
    "larger than the image": ((12, 36, 28), (17, 47, 39), False),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cases with a label, three without; two channels; what nnU-Net masked is -1."""
    root = tmp_path_factory.mktemp("cases")
    rng = np.random.default_rng(0)
    for number in range(6):
        shape = [n + number for n in SHAPE]
        images = rng.normal(size=(2, *shape)).astype(np.float32) + 5
        labels = np.zeros((1, *shape), np.int8)
        labels[:, 3:6, 8:20, 8:18], labels[:, 4:5, 10:15, 10:14], labels[:, :, :2] = 1, 2, -1
        if number > 2:
            labels = np.minimum(labels, 0)
        locations = {label: np.argwhere(labels == label) for label in (1, 2)} if number <= 2 else {}
        nnUNetDatasetBlosc2.save_case(images, labels, {"class_locations": locations}, str(root / f"case_{number}"))
    return root


def label_manager() -> Any:
    dataset = {"labels": {"background": 0, "shell": 1, "core": 2}, "channel_names": {"0": "MRI", "1": "MRI"}}
    return PlansManager({"dataset_name": "", "plans_name": ""}).get_label_manager(dataset)


def data(folder: Path, forced: float = 0.0, cache: Any = None, said: list[str] | None = None) -> LabeledAndUnlabeled:
    labeled, unlabeled = (
        nnUNetDatasetBlosc2(str(folder), [f"case_{n}" for n in numbers]) for numbers in ((0, 1, 2), (3, 4, 5))
    )
    labeled.draws = Draws((7,), 0, (forced,) * 6)
    labeled.on_device = OnDevice(CPU, cache, 1, (said if said is not None else []).append)
    return LabeledAndUnlabeled(labeled, unlabeled, 3, 3)


def transforms(kind: str, without: tuple[type, ...] = (), **options: Any):
    patch, _, dummy = KINDS[kind]
    made = nnUNetTrainer.get_training_transforms(
        patch, (-0.5, 0.5), None, tuple(range(len(patch))), dummy, use_mask_for_norm=[True, False], **options
    )
    made.transforms = [t for t in made.transforms if not isinstance(t, without)]
    for step in made.transforms:
        if isinstance(step, SpatialTransform):
            step.p_rotation = step.p_scaling = 0.3
    return made


def device_batches(folder: Path, kind: str, **options: Any):
    patch, initial, _ = KINDS[kind]
    cases = data(folder, options.pop("forced", 0.0), options.pop("cache", None), options.pop("said", None))
    steps = transforms(kind, **options)
    loader = cases.on_device.loader
    return loader(cases, 6, initial, patch, label_manager(), oversample_foreground_percent=0.33, transforms=steps)


@pytest.mark.parametrize("kind", KINDS)
def test_patches_equal_nnunets(folder, kind, monkeypatch):
    """Nothing random but the place, rotation and scaling: those that were drawn, in nnU-Net's own loader."""
    loader = device_batches(folder, kind, without=(RandomTransform, MirrorTransform))
    corners, affines = [], []
    chosen, drawn = loader.get_bbox, device_loader.draw_affine
    monkeypatch.setattr(loader, "get_bbox", lambda *a: corners.append(chosen(*a)) or corners[-1])
    monkeypatch.setattr(device_loader, "draw_affine", lambda t: affines.append(drawn(t)) or affines[-1])
    patch, initial, _ = KINDS[kind]
    stock_data = data(folder)
    del stock_data.on_device
    stock = SemiSupervisedDataLoader(
        stock_data, 6, initial, patch, label_manager(), oversample_foreground_percent=0.33,
        transforms=transforms(kind, without=(RandomTransform, MirrorTransform)),
    )  # fmt: skip
    spatial = next(t for t in stock.transforms.transforms if isinstance(t, SpatialTransform))
    turned, labels = set(), set()
    for _ in range(3):
        corners.clear()
        affines.clear()
        made = next(loader)
        places, matrices = iter(corners), iter(affines)
        monkeypatch.setattr(stock, "get_indices", lambda keys=made["keys"]: keys)
        monkeypatch.setattr(stock, "get_bbox", lambda *_a, places=places: next(places))
        given = partial(parameters, spatial, matrices)
        monkeypatch.setattr(spatial, "get_parameters", given)
        expected = next(stock)
        torch.testing.assert_close(made["data"], expected["data"], rtol=1e-4, atol=1e-4)
        assert (made["target"] != expected["target"]).float().mean() < 2e-4
        assert made["target"].dtype == expected["target"].dtype
        assert (made["target"][3:, 0] == 0).all()
        labels |= set(made["target"][:3, 0].unique().tolist())
        turned |= {affine is not None for affine in affines}
    assert turned == {True, False} and {0, 1} <= labels


def parameters(spatial: SpatialTransform, affines: Iterator[np.ndarray | None], **sample: Any) -> dict[str, Any]:
    """nnU-Net's own, with the next matrix in the place of a drawn one."""
    affine = next(affines)
    turned = copy.copy(spatial)
    turned.p_rotation = turned.p_scaling = float(affine is not None)
    with pytest.MonkeyPatch.context() as patch:
        module = "batchgeneratorsv2.transforms.spatial.spatial.create_affine_matrix_"
        for dimensions in ("2d", "3d"):
            patch.setattr(module + dimensions, lambda *_: affine)
        return SpatialTransform.get_parameters(turned, **sample)


def test_a_batch_depends_on_the_seed_and_its_number_alone(folder):
    first = device_batches(folder, "2d")
    made = [next(first) for _ in range(3)]
    second = device_batches(folder, "2d")
    second._next.value = 2
    torch.rand(7)
    np.random.rand(7)
    again = next(second)
    assert again["number"] == made[2]["number"] == 2
    assert list(again["keys"]) == list(made[2]["keys"])
    assert torch.equal(again["data"], made[2]["data"]) and torch.equal(again["target"], made[2]["target"])
    assert not torch.equal(made[0]["data"], made[1]["data"])


@pytest.mark.parametrize("cache", ["host", "disk"])
def test_where_cases_stay_changes_no_batch(folder, cache):
    said: list[str] = []
    other, usual = device_batches(folder, "3d", cache=cache, said=said), device_batches(folder, "3d")
    for _ in range(2):
        ours, expected = next(other), next(usual)
        assert torch.equal(ours["data"], expected["data"]) and torch.equal(ours["target"], expected["target"])
    assert f"augmentation on cpu, cases on {cache} (" in said[0]


def test_foreground_is_in_every_patch_that_is_laid_around_it(folder):
    loader = device_batches(folder, "2d", forced=1.0, without=(SpatialTransform,))
    for _ in range(4):
        target = next(loader)["target"]
        assert all((label > 0).any() for label in target[:3, 0])


def test_a_label_in_the_file_of_an_unlabeled_case_stays_there(folder, tmp_path):
    """There should be none; and if there is, it goes nowhere."""
    for name in ("case_3", "case_4", "case_5"):
        shape = nnUNetDatasetBlosc2(str(folder), [name]).load_case(name)[0].shape
        images, labels = np.ones(shape, np.float32), np.ones((1, *shape[1:]), np.int8)
        nnUNetDatasetBlosc2.save_case(images, labels, {"class_locations": {}}, str(tmp_path / name))
    for name in ("case_0", "case_1", "case_2"):
        for file in folder.glob(f"{name}*"):
            (tmp_path / file.name).symlink_to(file)
    loader = device_batches(tmp_path, "3d")
    for _ in range(3):
        assert (next(loader)["target"][3:, 0] == 0).all()


def test_cases_are_read_once(folder):
    cases = nnUNetDatasetBlosc2(str(folder), ["case_0"])
    kept = CaseCache(cases, "host", CPU)
    first = kept["case_0"]
    assert kept["case_0"] is first and isinstance(first.images, torch.Tensor)
    on_disk = CaseCache(cases, "disk", CPU)
    assert on_disk["case_0"] is not on_disk["case_0"] and not isinstance(on_disk["case_0"].images, torch.Tensor)
    assert bytes_of([cases]) == first.images.numel() * 4 + first.segmentations[0].numel()


@pytest.mark.parametrize(
    ("wanted", "needed", "processes", "place"),
    [(None, 400, 1, "host"), (None, 600, 1, "disk"), (None, 400, 2, "disk"), ("host", 10**9, 1, "host"),
     ("disk", 1, 1, "disk"), ("device", 10**9, 1, "host")],
)  # fmt: skip
def test_cases_stay_where_they_fit(wanted, needed, processes, place, monkeypatch):
    monkeypatch.setattr(case_cache, "free_host_memory", lambda: 1000)
    assert chosen_place(wanted, needed, CPU, processes) == place


def test_free_memory_is_read():
    assert 2**20 < case_cache.free_host_memory() < 2**50


@pytest.mark.parametrize(
    ("version", "limit", "used", "cached"),
    [(2, "memory.max", "memory.current", "inactive_file"),
     (1, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")],
)  # fmt: skip
def test_a_job_has_what_its_control_groups_leave_it(version, limit, used, cached, tmp_path):
    """The job's own limit, 1000, is below that of the groups around it; cached files give way."""
    top = tmp_path / ("" if version == 2 else "memory")
    for folder, most in (("", "max"), ("slurm", "5000"), ("slurm/job_7", "1000"), ("slurm/job_8", "10")):
        (top / folder).mkdir(parents=True, exist_ok=True)
        (top / folder / limit).write_text(f"{most}\n")
        (top / folder / used).write_text("300\n")
        (top / folder / "memory.stat").write_text(f"anon 100\n{cached} 200\n")
    listing = tmp_path / "cgroup"
    listing.write_text("0::/slurm/job_7\n" if version == 2 else "4:cpu:/else\n9:memory:/slurm/job_7\n")
    groups = list(case_cache._control_groups(listing, tmp_path))
    assert groups == [top / "slurm/job_7", top / "slurm", top]
    assert [case_cache._free_in_group(group) for group in groups] == [900, 4900, math.inf]
    assert list(case_cache._control_groups(tmp_path / "none", tmp_path)) == []
