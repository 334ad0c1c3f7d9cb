"""``alhvr predict``: nnU-Net's voxels, and what it refuses before anything is computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from data_builders import FOLDERS
from nnunet_environment import set_nnunet
from trained_models import assert_same_files, both_weights, make_images, make_model, predict_with_nnunet

from alhvr_trainer import cli, predict
from alhvr_trainer.errors import InputError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("results"), folds=(0, 1))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("data") / "scans")


@pytest.fixture(autouse=True)
def folders(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_nnunet(monkeypatch, **{f"nnUNet_{name}": model.parents[1] for name in FOLDERS})


def test_voxels_are_nnunets(model, images, tmp_path, capsys, monkeypatch):
    """By dataset with two folds, into a folder with an odd name; by model folder with network b; one case alone."""
    monkeypatch.chdir(tmp_path)
    (images / "._oblique_0000.nii.gz").touch()
    words = ["-d", "901", "-c", "2d", "-f", "0,1", "-i", str(images), "-o", "1e3", "--device", "cpu"]
    assert cli.main(["predict", *words, "--num_processes", "1"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "next: alhvr evaluate --predictions 1e3 --references LABELS --dataset_json 1e3/dataset.json"
    assert_same_files(
        tmp_path / "1e3", predict_with_nnunet(model, images_without_hidden(images), tmp_path / "a", (0, 1))
    )

    options = {"device": "cpu", "num_processes": 1, "model_folder": model}
    predict(input=images, output=tmp_path / "b", network="b", **options)
    expected = predict_with_nnunet(model, images, tmp_path / "c", weights=both_weights(model)[1:])
    assert_same_files(tmp_path / "b", expected)

    predict(input=images / "coronal_0001.nii.gz", output=tmp_path / "one", network="b", **options)
    assert [file.name for file in (tmp_path / "one").glob("*.nii.gz")] == ["coronal.nii.gz"]
    one, all_three = (sitk.ReadImage(str(folder / "coronal.nii.gz")) for folder in (tmp_path / "one", expected))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(one), sitk.GetArrayFromImage(all_three))


def images_without_hidden(images: Path) -> Path:
    (images / "._oblique_0000.nii.gz").unlink()
    return images


def test_refused_before_anything_is_written(model, images, tmp_path):
    def message(**changes) -> str:
        options = {"input": images, "output": tmp_path / "out", "device": "cpu", "model_folder": model}
        with pytest.raises(InputError) as caught:
            predict(**{**options, **changes})
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    named = {"model_folder": None, "dataset": 901, "configuration": "2d"}
    assert message(output=images).startswith(f"{images} would be written over {images}/coronal_0000.nii.gz")
    assert "did you mean ALHVRTrainer__ALHVRPlans__2d?" in message(**named, plans="ALHVRPlan")
    assert "did you mean Dataset901_Tiny?" in message(**{**named, "dataset": "Dataset901_tiny"})
    assert message(fold=5).startswith(f"no fold 5 in {model}")
    assert message(step_size=0).startswith("step_size is 0")
    assert message(input=tmp_path).startswith(f"no image in input {tmp_path}")
    assert message(previous_stage=tmp_path).startswith("previous_stage is for the second stage")

    raw = tmp_path / "raw"
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    (raw / "dataset.json").write_text("{}")
    assert message(output=raw / "labelsTr").startswith(f"{raw}/labelsTr belongs to the raw dataset raw, whose files")

    broken = tmp_path / "broken"
    broken.mkdir()
    for file in images.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    damaged = broken / "flipped_0000.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-2000])
    assert str(damaged) in message(input=broken)
    damaged.unlink()
    assert message(input=broken) == (
        f"case flipped in {broken} has flipped_0001.nii.gz; the model needs flipped_0000.nii.gz, flipped_0001.nii.gz"
    )
