"""An output that is an input is found, however the two paths are written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from alhvr_trainer.bundle.scripts.overwriting import inside_raw_dataset, not_writable, overwritten_input

pytestmark = pytest.mark.any_nnunet


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    (folder / "a.nii.gz").write_bytes(b"a")
    return folder


def test_names_both_paths(scans):
    assert overwritten_input([scans], [scans]) == (
        f"{scans} would be written over {scans}, which is an input: choose another output"
    )


def test_the_folder_of_an_input_file_is_no_output(scans):
    assert overwritten_input([scans / "a.nii.gz"], [scans])


def test_relative_paths(scans, monkeypatch):
    monkeypatch.chdir(scans)
    assert overwritten_input(["a.nii.gz"], ["."])
    assert overwritten_input(["a.nii.gz"], [scans / "a.nii.gz"])
    assert overwritten_input([scans], ["../scans/."])


def test_links(scans, tmp_path):
    (tmp_path / "link").symlink_to(scans)
    os.link(scans / "a.nii.gz", tmp_path / "hard.nii.gz")
    assert overwritten_input([scans], [tmp_path / "link"])
    assert overwritten_input([scans / "a.nii.gz"], [tmp_path / "link"])
    assert overwritten_input([scans / "a.nii.gz"], [tmp_path / "hard.nii.gz"])


def test_other_places_are_free(scans, tmp_path):
    outputs = [tmp_path / "out", scans / "out", scans / "b.nii.gz", tmp_path]
    assert overwritten_input([scans, scans / "a.nii.gz"], outputs) is None


@pytest.mark.parametrize(("folder", "refused"), [
    ("", True), ("labelsTr", True), ("labelsTs", True), ("imagesTr_unlabeled", True), ("link", True),
    ("predictions", False), ("../elsewhere", False), ("imagesTr/deeper", False),
])  # fmt: skip
def test_predictions_do_not_belong_into_a_raw_dataset(folder, refused, tmp_path):
    dataset = tmp_path / "Dataset001_Raw"
    (dataset / "imagesTr").mkdir(parents=True)
    (dataset / "labelsTr").mkdir()
    (dataset / "dataset.json").write_text("{}")
    (dataset / "link").symlink_to(dataset / "labelsTr")
    problem = inside_raw_dataset(dataset / folder)
    assert bool(problem) == refused
    if refused:
        assert "belongs to the raw dataset Dataset001_Raw, whose files must stay as they are" in problem


def test_where_there_can_be_no_folder(tmp_path):
    (tmp_path / "file").touch()
    assert not_writable(tmp_path / "new" / "folder") is None
    assert not_writable(tmp_path / "file") == f"output {tmp_path / 'file'} is a file; name a folder"
    assert not_writable(tmp_path / "file" / "x") == f"output {tmp_path / 'file' / 'x'}: {tmp_path / 'file'} is a file"
