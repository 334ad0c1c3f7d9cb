"""``alhvr report``: what the page holds, with the viewer and without, and what is refused before anything is done."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from finished_training import MAPPED, QUICKLY, WARNING
from html_page import Page
from trained_models import DATASET, make_model

import alhvr_trainer
from alhvr_trainer import cli, report
from alhvr_trainer.errors import InputError
from alhvr_trainer.models import find_model
from alhvr_trainer.reports import viewer
from alhvr_trainer.reports.cases import ShownCase
from alhvr_trainer.reports.document import LARGEST_PAGE, Document, document
from alhvr_trainer.reports.training import read_training
from alhvr_trainer.reports.volumes import as_volume

pytestmark = pytest.mark.any_nnunet

pytest_plugins = ["report_page"]


@pytest.fixture(scope="session")
def page(page_once: Path) -> Page:
    return Page(page_once)


def refused(*arguments: Any, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        report(*arguments, **options)
    return str(error.value)


def test_page_is_one_file(page: Page, page_once: Path):
    """Nothing in it leads elsewhere."""
    assert page.links_elsewhere() == []
    assert page_once.stat().st_size < LARGEST_PAGE


def test_page_tells_of_the_training(page: Page):
    text = " ".join(page.text.split())
    assert f"<h1>Training report: {DATASET}, 2d, fold 0</h1>" in text
    assert f'{WARNING.format(2, 6)} <span class="note">(3 epochs)' in text
    curves = page.all("img")[0]
    assert str(curves["alt"]).startswith("Training curves. loss: training from 0.0127 to ")
    assert "CG-CPCL cosine: cos_a from" in str(curves["alt"])
    assert page.all("source")[0]["media"] == "(prefers-color-scheme: dark)"


def test_page_shows_the_worst_and_the_least_sure(page: Page):
    """Two of each, in this order; the first validation case has moved farthest."""
    shown = json.loads(page.scripts["cases"])
    names = [case["name"] for case in shown["cases"]]
    assert names[:2] == ["case_002", "case_001"] and set(names[2:4]) == {"scan_000", "scan_002"}
    assert [list(case["volumes"]) for case in shown["cases"]] == [
        *[["image", "reference", "prediction"]] * 2,
        *[["image", "prediction", "entropy", "regions"]] * 2,
        *[["image", "regions, early", "regions, midway", "regions, late"]] * 2,
    ]
    dice = [float(case["score"].removeprefix("mean Dice ")) for case in shown["cases"][:2]]
    sure = [float(case["score"].removeprefix("expected Dice ")) for case in shown["cases"][2:4]]
    assert dice == sorted(dice) and sure == sorted(sure)
    assert "Of 3 unlabeled cases, 2 were predicted. Shown, least sure first: 2." in " ".join(page.text.split())


def test_page_carries_volumes_and_module(page: Page):
    for case in json.loads(page.scripts["cases"])["cases"]:
        volumes = {}
        for name, key in case["volumes"].items():
            data = gzip.decompress(base64.b64decode(page.scripts[key]))
            volumes[name] = np.asarray(nibabel.Nifti1Image.from_bytes(data).dataobj)
        assert len({each.shape for each in volumes.values()}) == 1
        assert set(np.unique(volumes.get("prediction", 0))) <= {0, 1, 2}
        if "entropy" in volumes:
            assert 0 <= volumes["entropy"].min() < volumes["entropy"].max() <= 1
            assert set(np.unique(volumes["regions"])) <= {0, 1, 2, 3}
    module = gzip.decompress(base64.b64decode(page.scripts["niivue"])).decode()
    assert "initialize" in module and "render" in module


def test_page_shows_the_regions_early_midway_and_late(page: Page, page_once: Path):
    text = " ".join(page.text.split())
    assert "Early: after 10%, midway: after 50%, late: after 100% of the training. In Ω2" in text
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", text)]
    for case in MAPPED:
        (values,) = [[float(cell) for cell in row[1:]] for row in rows if row[:1] == [case] and len(row) == 7]
        early, midway, late = values[1::2]
        assert early > midway > late > 0
        cube, both, all_voxels = 2 * 16 * 12, 4 * 20 * 16, 8 * 32 * 28
        assert values[:2] == [round((both - cube) / all_voxels, 3), round(cube / all_voxels, 3)]
    assert page.text.count('aria-label="Colors: regions"') == 1


def test_page_can_be_used_without_a_mouse_and_without_eyes(page: Page):
    """Native controls with labels, headings in order, alternatives to pictures, a status that is read out."""
    page.check_accessible()
    ids = [each["id"] for _, each in page.tags if "id" in each]
    assert len(ids) == len(set(ids))
    labels = {each["for"] for each in page.all("label") if "for" in each}
    assert {each["id"] for each in page.all("select")} == labels
    inputs = len(page.all("input"))
    assert len(re.findall(r"<label>[^<]*(?:<input[^>]*>)[^<]*</label>", page.text)) == inputs == 7 + 1 + 3
    (status,) = [each for each in page.all("p") if each.get("id") == "viewer-status"]
    assert status["aria-live"] == "polite"
    assert len(page.all("button")) == 6


def test_page_stays_below_its_limit(finished: Path):
    """Noise, which hardly compresses: the volumes are shrunk until the whole page fits."""
    pytest.importorskip("ipyniivue", reason="the extra report is not installed")
    model = find_model(901, "2d")
    noise = np.random.default_rng(0).uniform(0, 1, (60, 100, 100))
    geometry = {"spacing": (1.0, 1.0, 1.0)}
    volumes = {"image": as_volume(noise, geometry), "prediction": as_volume(noise > 0.5, geometry, labels=True)}
    cases = [ShownCase(f"case {number}", "expected Dice", 0.5, {}, volumes) for number in range(2)]
    found = Document(model, 0, read_training(model, 0), None, (), cases, (), 2, 2, ())
    whole, limit = len(document(found).encode()), 3_500_000
    assert 1.2 * limit < whole < LARGEST_PAGE
    assert len(document(found, limit).encode()) <= limit


def test_page_without_the_extra_says_what_to_install(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(viewer, "find_spec", lambda name: None)
    file = report(901, "2d", output=tmp_path / "report.html", unlabeled=0)
    page = Page(file)
    assert "<code>pip install &#34;alhvr-trainer[report]&#34;</code>" in page.text
    assert not page.all("script") and not page.all("input")
    assert len(page.all("img")) == 1 + 3 + 2  # the curves, and slices of each validation case
    assert "Least sure unlabeled cases" not in page.text


def test_default_place_is_the_fold(finished_once: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Also from the command line, of a model folder elsewhere, without nnU-Net's folders: then without cases."""
    model = tmp_path / "ALHVRTrainer__ALHVRPlans__2d"
    shutil.copytree(finished_once / "results" / DATASET / model.name, model)
    assert cli.main(["report", "-m", str(model), "--device", "cpu"]) == 0
    file = model / "fold_0" / "report.html"
    assert f"{file}: 0." in capsys.readouterr().out
    text = file.read_text(encoding="utf-8")
    assert f"No cases are shown: there is no raw dataset {DATASET} here" in text
    assert "Mean Dice of 3 validation cases: 0." in text


def test_stock_trainings_have_reports(finished: Path, tmp_path: Path):
    """No history of ours, no validation, no log: less is told."""
    model = make_model(tmp_path, trainer="nnUNetTrainer")
    file = model / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False)
    torch.save(checkpoint | {"logging": {"train_losses": [0.5, -0.25]}}, file)
    text = report(model_folder=model, unlabeled=0).read_text(encoding="utf-8")
    assert "Training curves. loss: training from 0.5 to -0.25." in text
    assert "The training was not validated" in text and "The training log has none." in text


def test_damaged_maps_of_regions_are_named_and_left_out(finished: Path, tmp_path: Path):
    model = tmp_path / "ALHVRTrainer__ALHVRPlans__2d"
    shutil.copytree(finished / "results" / DATASET / model.name, model)
    maps = model / "fold_0" / "regions"
    (maps / "scan_000_regions_late.nii.gz").write_bytes(b"no image")
    shutil.copyfile(
        finished / "raw" / DATASET / "imagesTr" / "case_000_0000.nii.gz", maps / "scan_001_regions_early.nii.gz"
    )
    text = report(model_folder=model, unlabeled=0, validation=0).read_text(encoding="utf-8")
    assert "The regions of unlabeled case scan_000 are not shown: cannot read " in text
    assert "scan_001_regions_early.nii.gz is no map of ALHVR&#39;s regions, 1 to 3" in text


def test_missing_files_of_a_case_are_named(finished: Path, tmp_path: Path):
    model = tmp_path / "ALHVRTrainer__ALHVRPlans__2d"
    shutil.copytree(finished / "results" / DATASET / model.name, model)
    (model / "fold_0" / "validation" / "case_002.nii.gz").unlink()
    text = report(model_folder=model, unlabeled=0).read_text(encoding="utf-8")
    assert "Validation case case_002 is not shown: its image, reference or prediction is not there." in text
    assert "case_001, mean Dice" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 21}, "validation is 21; it must be a whole number from 0 to 20"),
        ({"unlabeled": -1}, "unlabeled is -1; it must be a whole number of at least 0"),
        ({"num_processes": 0}, "num_processes is 0; it must be at least 1"),
        ({"output": "model.pth"}, "output model.pth is no name of a page; name a file that ends in .html"),
        ({"fold": "0,1"}, "fold is '0,1'; name one: a report is about one training"),
        ({"fold": 3}, "no fold 3 in "),
        ({"device": "gpu"}, 'device is \'gpu\'; it must be "cuda", "cpu" or "mps"; or predict no unlabeled cases'),
    ],
)
def test_bad_options(options: dict[str, Any], message: str, finished: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("alhvr_trainer.reports.training.read_training", lambda *_: pytest.fail("too late"))
    assert message in refused(901, "2d", **options)


def test_bad_outputs(finished: Path, tmp_path: Path):
    (tmp_path / "page.html").mkdir()
    assert "page.html is a folder; name a file in it" in refused(901, "2d", output=tmp_path / "page.html")
    assert "belongs to the raw dataset" in refused(901, "2d", output=finished / "raw" / DATASET / "report.html")
    (tmp_path / "file").touch()
    assert "file is a file; name a folder" in refused(901, "2d", output=tmp_path / "file" / "report.html")


def test_a_model_must_be_named():
    assert "name the model: dataset and configuration (-d 27 -c 2d), or model_folder" in refused()


def test_what_cannot_be_predicted_is_refused_before_anything_is_computed(finished: Path, tmp_path: Path):
    """One network, trained without mirroring: there is but one opinion."""
    model = make_model(tmp_path, trainer="nnUNetTrainer", mirror_axes=None)
    message = refused(model_folder=model, **QUICKLY)
    assert "makes one only" in message and message.endswith("; or predict no unlabeled cases: --unlabeled 0")
    assert not (model / "fold_0" / "report.html").exists()


def test_damaged_files_are_named(finished: Path, tmp_path: Path):
    model = tmp_path / "ALHVRTrainer__ALHVRPlans__2d"
    shutil.copytree(finished / "results" / DATASET / model.name, model)
    prediction = model / "fold_0" / "validation" / "case_002.nii.gz"
    prediction.write_bytes(b"nothing")
    assert f"cannot read {prediction}: " in refused(model_folder=model, unlabeled=0)
    (prediction.parent / "summary.json").write_text("[")
    assert "summary.json is not valid JSON" in refused(model_folder=model, unlabeled=0)


def test_importing_the_pages_leaves_the_command_alone():
    """A package of the command's name would take its place."""
    assert callable(alhvr_trainer.report) and alhvr_trainer.report is report
