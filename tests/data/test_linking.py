"""Links to images of chosen cases, and to what the images refer to."""

from __future__ import annotations

from pathlib import Path

import pytest

from alhvr_trainer.data.linking import linked_cases


@pytest.mark.parametrize("there", [True, False])
def test_channels_share_what_they_refer_to(there: bool, tmp_path: Path):
    """The spacing of a 3D TIFF lies in ``CASE.json``, for all of its channels."""
    files = [tmp_path / f"a_{channel:04d}.tif" for channel in range(2)]
    for file in files:
        file.write_bytes(file.name.encode())
    if there:
        (tmp_path / "a.json").write_text("{}")
    with linked_cases({"a": [str(file) for file in files]}, ".tif") as folder:
        names = {link.name for link in folder.iterdir()}
        assert names == {"a_0000.tif", "a_0001.tif"} | ({"a.json"} if there else set())
        assert all((folder / file.name).read_bytes() == file.name.encode() for file in files)
    assert not folder.exists() and all(file.is_file() for file in files)


def test_images_get_nnunets_names(tmp_path: Path):
    """``dataset.json`` may list files of any name."""
    (tmp_path / "scan.nii.gz").write_bytes(b"x")
    with linked_cases({"case": [str(tmp_path / "scan.nii.gz")]}, ".nii.gz") as folder:
        assert [link.name for link in folder.iterdir()] == ["case_0000.nii.gz"]
