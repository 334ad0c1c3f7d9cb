"""The zip of ``alhvr export_nnunet`` in the hands of an nnU-Net that does not know this package."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from nnunet_environment import set_nnunet
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.model_sharing.model_import import install_model_from_zip_file
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from trained_models import (
    DATASET,
    assert_same_files,
    both_weights,
    checkpoint_of,
    environment_without_package,
    file_size_limit,
    make_images,
    make_model,
    predict_with_nnunet,
    run_command,
    share_of_different_voxels,
)

from alhvr_trainer.errors import InputError
from alhvr_trainer.export.stock_model import export_nnunet
from alhvr_trainer.models import find_model, parse_folds
from alhvr_trainer.resources import ext_trainer_folder

STOCK = f"{DATASET}/nnUNetTrainer__ALHVRPlans__2d"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """nnU-Net's results folder with an ALHVR model (2d, folds 0 and 1) and a stock one, and images."""
    root = tmp_path_factory.mktemp("export_nnunet")
    with pytest.MonkeyPatch.context() as patch:
        set_nnunet(patch, nnUNet_results=root / "results")
        patch.setenv("nnUNet_extTrainer", str(ext_trainer_folder()))
        make_model(root / "results", "2d", folds=(0, 1))
        make_model(root / "results", "2d", trainer="nnUNetTrainer", plans_name="nnUNetPlans")
        make_images(root / "images")
        yield root


@pytest.fixture
def model(workspace) -> Path:
    return workspace / "results" / DATASET / "ALHVRTrainer__ALHVRPlans__2d"


def install(zip_file: Path, results: Path, monkeypatch) -> Path:
    set_nnunet(monkeypatch, nnUNet_results=results)
    monkeypatch.delenv("nnUNet_extTrainer")
    install_model_from_zip_file(str(zip_file))
    return results / STOCK


@pytest.mark.parametrize("network", ["a", "b"])
def test_installed_model_predicts_what_the_network_predicts(workspace, model, network, tmp_path, monkeypatch):
    weights = both_weights(model)[("a", "b").index(network)]
    expected = predict_with_nnunet(model, workspace / "images", tmp_path / "expected", weights=[weights])
    zip_file = export_nnunet(901, "2d", output=str(tmp_path / "model.zip"), network=network)
    installed = install(zip_file, tmp_path / "results", monkeypatch)
    found = predict_with_nnunet(installed, workspace / "images", tmp_path / "found")
    assert_same_files(found, expected)


@pytest.mark.slow
def test_stock_commands_without_this_package(workspace, model, tmp_path):
    """Install and predict through the real commands where ``import alhvr_trainer`` fails: both networks."""
    images, (a, b) = workspace / "images", both_weights(model)
    expected = predict_with_nnunet(model, images, tmp_path / "expected", weights=[a, b])
    only_a = predict_with_nnunet(model, images, tmp_path / "only_a")
    assert share_of_different_voxels(only_a, expected) > 0.05

    zip_file = export_nnunet(901, "2d", output=str(tmp_path / "model.zip"), network="both")
    results = tmp_path / "results"
    env = environment_without_package(tmp_path / "site", nnUNet_results=str(results))
    run_command("nnUNetv2_install_pretrained_model_from_zip", zip_file, env=env, cwd=tmp_path)
    command = "nnUNetv2_predict -d Dataset901_Tiny -c 2d -tr nnUNetTrainer -p ALHVRPlans -f 0 1 -device cpu"
    command += " -npp 0 -nps 0"
    run_command(*command.split(), "-i", images, "-o", tmp_path / "found", env=env, cwd=tmp_path)
    assert_same_files(tmp_path / "found", expected)


def test_several_folds_keep_their_numbers(workspace, model, tmp_path, monkeypatch):
    expected = predict_with_nnunet(model, workspace / "images", tmp_path / "expected", folds=(0, 1))
    zip_file = export_nnunet(901, "2d", fold="0,1", output=str(tmp_path / "model.zip"))
    installed = install(zip_file, tmp_path / "results", monkeypatch)
    assert sorted(path.name for path in installed.glob("fold_*")) == ["fold_0", "fold_1"]
    found = predict_with_nnunet(installed, workspace / "images", tmp_path / "found", folds=(0, 1))
    assert_same_files(found, expected)


def test_both_networks_of_several_folds_are_counted_up(workspace, model, tmp_path, monkeypatch):
    zip_file = export_nnunet(901, "2d", fold=(0, 1), output=str(tmp_path / "model.zip"), network="both")
    installed = install(zip_file, tmp_path / "results", monkeypatch)
    expected = [*both_weights(model, 0), *both_weights(model, 1)]
    for fold, weights in enumerate(expected):
        found = checkpoint_of(installed, fold)["network_weights"]
        assert list(found) == list(weights)
        assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert len(list(installed.glob("fold_*"))) == 4


def test_zip_holds_what_stock_needs_and_nothing_of_the_training(workspace, tmp_path, monkeypatch):
    zip_file = export_nnunet("Dataset901_Tiny", "2d", output=str(tmp_path / "new" / "model.zip"))
    with zipfile.ZipFile(zip_file) as archive:
        assert sorted(archive.namelist()) == [
            f"{STOCK}/dataset.json",
            f"{STOCK}/dataset_fingerprint.json",
            f"{STOCK}/fold_0/checkpoint_final.pth",
            f"{STOCK}/plans.json",
        ]
        texts = [archive.read(name).decode() for name in archive.namelist() if name.endswith(".json")]
    assert not any("secret_name" in text or "/elsewhere" in text for text in texts)
    installed = install(zip_file, tmp_path / "results", monkeypatch)
    checkpoint = torch.load(installed / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert set(checkpoint) == {
        "network_weights",
        "init_args",
        "trainer_name",
        "inference_allowed_mirroring_axes",
    }
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    assert checkpoint["inference_allowed_mirroring_axes"] == (0, 1)
    assert "unlabeled" not in checkpoint["init_args"]["dataset_json"]


def test_fine_tuning_starts_from_the_weights(workspace, model, tmp_path, monkeypatch):
    zip_file = export_nnunet(901, "2d", output=str(tmp_path / "model.zip"))
    installed = install(zip_file, tmp_path / "results", monkeypatch)
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(str(installed), (0,))
    for parameter in predictor.network.parameters():
        parameter.data.zero_()
    load_pretrained_weights(predictor.network, str(installed / "fold_0" / "checkpoint_final.pth"))
    name = "encoder.stages.0.0.convs.0.conv.weight"
    expected = checkpoint_of(model)["network_weights"][name]
    assert expected.abs().sum() > 0
    assert torch.equal(predictor.network.state_dict()[name], expected)


def test_a_model_of_the_stock_trainer_has_no_network_b(workspace, tmp_path):
    arguments = {"plans": "nnUNetPlans", "trainer": "nnUNetTrainer", "output": str(tmp_path / "model.zip")}
    with pytest.raises(InputError, match=r'holds one network: there is no network b, use network "a"$'):
        export_nnunet(901, "2d", network="both", **arguments)
    assert not list(tmp_path.iterdir())
    assert export_nnunet(901, "2d", **arguments).is_file()


def test_the_previous_zip_survives_a_full_disk(workspace, tmp_path):
    target = tmp_path / "model.zip"
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("Dataset901_Tiny/nnUNetTrainer__ALHVRPlans__2d/plans.json", "{}")
    content = target.read_bytes()
    with file_size_limit(10_000), pytest.raises(InputError, match=r"^cannot write .*model\.zip \(.+\)$"):
        export_nnunet(901, "2d", output=str(target))
    assert target.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]


@pytest.mark.parametrize("kind", ["scan", "zip of scans"])
def test_a_file_that_is_no_exported_model_is_not_replaced(kind, workspace, tmp_path):
    file = tmp_path / "scans.zip"
    file.write_bytes(b"a scan")
    if kind == "zip of scans":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("scan.nii.gz", b"a scan")
    content = file.read_bytes()
    with pytest.raises(InputError, match=r"scans\.zip already exists and is not an exported model; choose"):
        export_nnunet(901, "2d", output=str(file))
    assert file.read_bytes() == content


def test_output_folder_is_refused(workspace, tmp_path):
    with pytest.raises(InputError, match=r"output .* is a folder; name a zip file"):
        export_nnunet(901, "2d", output=str(tmp_path))


def test_prints_the_commands_of_the_other_side(workspace, tmp_path, capsys):
    export_nnunet(901, "2d", output=str(tmp_path / "model.zip"), network="both")
    printed = capsys.readouterr().out
    assert f"nnUNetv2_install_pretrained_model_from_zip {tmp_path / 'model.zip'}" in printed
    assert "-d Dataset901_Tiny -c 2d -tr nnUNetTrainer -p ALHVRPlans -f 0 1" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"configuration": "3d_fullres"},
            r"no trained model .*ALHVRTrainer__ALHVRPlans__3d_fullres; models of this dataset: "
            r"ALHVRTrainer__ALHVRPlans__2d, nnUNetTrainer__nnUNetPlans__2d; "
            r"did you mean ALHVRTrainer__ALHVRPlans__2d\?; "
            r"train it with: alhvr train -d 901 -c 3d_fullres -f 0 -t ALHVRTrainer -p ALHVRPlans$",
        ),
        ({"fold": 3}, r"no fold 3 in .*__2d: it holds fold_0, fold_1$"),
        (
            {"weights_file": "checkpoint_best.pth"},
            r"no checkpoint_best\.pth in .*fold_0: it holds checkpoint_final\.pth; finish .* --continue_training$",
        ),
        ({"dataset": 902}, r"dataset 902 not found; datasets in nnUNet_results \(.*\): Dataset901_Tiny$"),
        ({"dataset": "Tiny"}, r"dataset 'Tiny' not found"),
        ({"fold": "0,x"}, r'fold is \'0,x\'; it must be a number \(0\), several \("0,1"\) or "all"$'),
    ],
)
def test_what_is_missing_is_named(workspace, arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        find_model(**{"dataset": 901, "configuration": "2d", **arguments})
    assert "\n" not in str(caught.value)


def test_results_folder_must_be_set(workspace, monkeypatch):
    set_nnunet(monkeypatch, nnUNet_results=None)
    with pytest.raises(InputError, match=r"^environment variable nnUNet_results is not set; .*export nnUNet_results="):
        find_model(901, "2d")


def test_unknown_network(workspace, tmp_path):
    with pytest.raises(InputError, match=r'network is \'c\'; it must be "a", "b" or "both"'):
        export_nnunet(901, "2d", network="c", output=str(tmp_path / "model.zip"))


def test_weights_that_do_not_fit_the_plans(tmp_path, monkeypatch):
    set_nnunet(monkeypatch, nnUNet_results=tmp_path)
    folder = make_model(tmp_path, "2d")
    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 8, 9]
    (folder / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(InputError, match=r"network a of fold 0 .* does not fit the network in its plans"):
        export_nnunet(901, "2d", output=str(tmp_path / "model.zip"))


def test_damaged_checkpoint(tmp_path, monkeypatch):
    set_nnunet(monkeypatch, nnUNet_results=tmp_path)
    file = make_model(tmp_path, "2d") / "fold_0" / "checkpoint_final.pth"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"checkpoint_final\.pth is missing or not a readable checkpoint"):
        export_nnunet(901, "2d", output=str(tmp_path / "model.zip"))


def test_folds():
    assert parse_folds(0) == (0,)
    assert parse_folds((1, "2")) == (1, 2)
    assert parse_folds(" 0, 1") == (0, 1)
    assert parse_folds("all") == ("all",)
    for wrong in (-1, "", (), "0,0", 1.5, None):
        with pytest.raises(InputError, match="fold is"):
            parse_folds(wrong)
