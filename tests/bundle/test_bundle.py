"""The bundle of ``alhvr export_bundle``: run by MONAI alone, it writes what ``nnUNetv2_predict`` writes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import monai.bundle
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from nnunet_environment import set_nnunet
from skimage import io
from trained_models import (
    DATASET,
    assert_same_files,
    both_weights,
    environment_without_package,
    file_size_limit,
    make_images,
    make_model,
    predict_with_nnunet,
    run_command,
    share_of_different_voxels,
)

from alhvr_trainer import cli
from alhvr_trainer.errors import InputError
from alhvr_trainer.export.bundle import export_bundle
from alhvr_trainer.resources import bundle_folder, ext_trainer_folder

STOCK = {"trainer": "nnUNetTrainer", "plans_name": "nnUNetPlans"}
RESIDUAL = {"trainer": "ALHVRTrainer", "plans_name": "ResEncPlans", "residual": True}
REGIONS = {"trainer": "nnUNetTrainer", "plans_name": "RegionPlans", "regions": True, "mirror_axes": None}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """nnU-Net's results folder with an ALHVR model (2d, folds 0 and 1), and images."""
    root = tmp_path_factory.mktemp("bundle")
    with pytest.MonkeyPatch.context() as patch:
        set_nnunet(patch, nnUNet_results=root / "results")
        patch.setenv("nnUNet_extTrainer", str(ext_trainer_folder()))
        make_model(root / "results", "2d", folds=(0, 1))
        make_images(root / "images")
        yield root


@pytest.fixture
def model(workspace) -> Path:
    return workspace / "results" / DATASET / "ALHVRTrainer__ALHVRPlans__2d"


@pytest.fixture(scope="module")
def bundle(workspace) -> Path:
    return export_bundle(901, "2d", output=str(workspace / "bundle"))


def run_bundle(bundle: Path, images: Path, output: Path, run_id: str = "inference", **override) -> Path:
    monai.bundle.run(run_id, **config_of(bundle), dataset_dir=str(images), output_dir=str(output), **override)
    return output


def config_of(bundle: Path) -> dict[str, str]:
    return {"config_file": str(bundle / "configs" / "inference.json"), "bundle_root": str(bundle)}


@pytest.mark.parametrize(
    ("configuration", "kind"),
    [("2d", STOCK), ("3d_fullres", {}), ("3d_fullres", RESIDUAL), ("2d", REGIONS)],
    ids=["2d-stock-trainer", "3d-anisotropic", "3d-residual-encoder", "2d-regions-no-mirroring"],
)
def test_equals_nnunet(workspace, configuration, kind, tmp_path):
    model = make_model(workspace / "results", configuration, **kind)
    expected = predict_with_nnunet(model, workspace / "images", tmp_path / "expected")
    trainer, plans, _ = model.name.split("__")
    bundle = export_bundle(901, configuration, plans=plans, trainer=trainer, output=str(tmp_path / "bundle"))
    assert_same_files(run_bundle(bundle, workspace / "images", tmp_path / "found"), expected)


def test_color_pictures_equal_nnunets(workspace, tmp_path):
    """nnU-Net reads the three channels of an RGB picture out of one file, and the slice has no neighbors."""
    model = color_model(workspace / "results", tmp_path / "model" / "nnUNetTrainer__Colors__2d")
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0)
    for number in range(2):
        io.imsave(tmp_path / "images" / f"p{number}_0000.png", pixels.integers(0, 256, (33, 27, 3), np.uint8))
    expected = predict_with_nnunet(model, tmp_path / "images", tmp_path / "expected")
    bundle = export_bundle(model_folder=str(model), output=str(tmp_path / "bundle"))
    found = run_bundle(bundle, tmp_path / "images", tmp_path / "found")
    assert sorted(path.name for path in found.iterdir()) == ["p0.png", "p1.png"]
    for path in found.iterdir():
        labels = io.imread(path)
        assert labels.shape == (33, 27) and len(np.unique(labels)) >= 2
        np.testing.assert_array_equal(labels, io.imread(expected / path.name))
    assert not (bundle / "configs" / "inference_native.json").exists()
    assert "the images are read by NaturalImage2DIO" in (bundle / "docs" / "README.md").read_text(encoding="utf-8")


def color_model(results: Path, folder: Path) -> Path:
    """A model of RGB pictures, from one of images of two channels."""
    source = make_model(results, "2d", trainer="nnUNetTrainer", plans_name="Colors")
    plans, dataset_json = (json.loads((source / name).read_text()) for name in ("plans.json", "dataset.json"))
    plans |= {
        "image_reader_writer": "NaturalImage2DIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
    }
    statistics = plans["foreground_intensity_properties_per_channel"]
    statistics["2"] = statistics["0"]
    channels = {"normalization_schemes": ["ZScoreNormalization"] * 3, "use_mask_for_norm": [False] * 3}
    plans["configurations"]["2d"] |= {**channels, "spacing": [1.0, 1.0]}
    dataset_json |= {"channel_names": {"0": "R", "1": "G", "2": "B"}, "file_ending": ".png"}
    checkpoint = torch.load(source / "fold_0" / "checkpoint_final.pth", weights_only=False)
    for name, tensor in checkpoint["network_weights"].items():
        if tensor.ndim == 4 and tensor.shape[1] == 2:  # the first convolution
            checkpoint["network_weights"][name] = torch.cat((tensor, tensor[:, :1]), 1)
    checkpoint["init_args"] |= {"plans": plans, "dataset_json": dataset_json}
    folder.parent.mkdir(parents=True)
    source.rename(folder)
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    return folder


@pytest.mark.parametrize(("network", "taken"), [("b", (1,)), ("both", (0, 1))])
def test_the_other_network_and_both(workspace, model, bundle, network, taken, tmp_path):
    weights = both_weights(model)
    images = workspace / "images"
    expected = predict_with_nnunet(model, images, tmp_path / "expected", weights=[weights[number] for number in taken])
    other = export_bundle(901, "2d", output=str(tmp_path / "bundle"), network=network)
    found = run_bundle(other, images, tmp_path / "found")
    assert_same_files(found, expected)
    assert share_of_different_voxels(run_bundle(bundle, images, tmp_path / "a"), found) > 0.05


def test_ensemble_of_folds(workspace, model, tmp_path):
    images = workspace / "images"
    expected = predict_with_nnunet(model, images, tmp_path / "expected", folds=(0, 1))
    bundle = export_bundle(901, "2d", fold=(0, 1), output=str(tmp_path / "bundle"))
    assert_same_files(run_bundle(bundle, images, tmp_path / "found"), expected)


@pytest.mark.slow
def test_command_lines(workspace, bundle, tmp_path):
    """Both commands as users type them; MONAI's where neither this package nor nnU-Net's folders exist."""
    images = workspace / "images"
    env = environment_without_package(tmp_path / "site")
    with_package = {**os.environ, "nnUNet_results": str(workspace / "results")}
    command = "nnUNetv2_predict -d 901 -c 2d -f 0 -tr ALHVRTrainer -p ALHVRPlans -device cpu -npp 1 -nps 1"
    run_command(*command.split(), "-i", images, "-o", tmp_path / "expected", env=with_package, cwd=tmp_path)

    # a module of the same name where the user happens to work must not be taken for the bundle's
    work = tmp_path / "work"
    work.mkdir()
    (work / "scripts.py").write_text("raise RuntimeError('not the bundle')")
    relative = Path("..") / "bundle_copy"
    (tmp_path / "bundle_copy").symlink_to(bundle)
    command = f"-m monai.bundle run inference --config_file {relative}/configs/inference.json"
    command += f" --bundle_root {relative} --device cpu"
    places = ("--dataset_dir", images, "--output_dir", tmp_path / "found")
    printed = run_command(sys.executable, *command.split(), *places, env=env, cwd=work)
    assert_same_files(tmp_path / "found", tmp_path / "expected")
    assert "3/3" in printed


def test_run_ids_and_options_take_effect(workspace, bundle, tmp_path):
    images = workspace / "images"
    run = run_bundle(bundle, images, tmp_path / "run", "run")
    inference = run_bundle(bundle, images, tmp_path / "inference", device="cpu", num_workers=1)
    assert_same_files(run, inference)
    plain = run_bundle(bundle, images, tmp_path / "plain", use_mirroring=False)
    assert share_of_different_voxels(plain, run) > 0.01
    fine = run_bundle(bundle, images, tmp_path / "fine", overlap=0.75)
    assert share_of_different_voxels(fine, run) > 0.001


def test_monai_finds_all_that_it_asks_of_an_inference_bundle(workspace, bundle, tmp_path):
    workflow = ConfigWorkflow(
        **config_of(bundle),
        workflow_type="inference",
        dataset_dir=str(workspace / "images"),
        output_dir=str(tmp_path / "found"),
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    assert isinstance(workflow.network_def, torch.nn.Module)
    assert [case["case"] for case in workflow.dataset_data] == ["coronal", "flipped", "oblique"]
    assert workflow.dataset[0]["image"].shape[0] == 2
    assert workflow.version == "0.1.0"
    assert workflow.channel_def == {"0": "background", "1": "shell", "2": "core"}
    workflow.run()
    assert len(list((tmp_path / "found").iterdir())) == 3


@pytest.mark.parametrize("network", ["a", "both"])
def test_network_and_weights(workspace, model, network, tmp_path):
    """MONAI's own check of the network against the metadata; weights are tensors only and fit strictly."""
    bundle = export_bundle(901, "2d", output=str(tmp_path / "bundle"), network=network)
    meta_file = str(bundle / "configs" / "metadata.json")
    monai.bundle.verify_net_in_out("network_def", meta_file=meta_file, device="cpu", **config_of(bundle))
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    workflow = ConfigWorkflow(**config_of(bundle), workflow_type="inference")
    network_def = workflow.parser.get_parsed_content("network_def")
    network_def.load_state_dict(weights, strict=True)
    image = torch.rand(1, 2, 16, 20)
    if network == "both":
        with torch.no_grad():
            mean = (network_def.members[0](image) + network_def.members[1](image)) / 2
            torch.testing.assert_close(network_def(image), mean)
    else:
        trained = both_weights(model)[0]
        assert all(torch.equal(tensor, trained[name]) for name, tensor in weights.items())


def test_input_errors_are_one_line(workspace, bundle, tmp_path):
    one_channel, wrong_ending = tmp_path / "one", tmp_path / "ending"
    for folder in (one_channel, wrong_ending):
        folder.mkdir()
    source = workspace / "images" / "oblique_0000.nii.gz"
    (one_channel / source.name).write_bytes(source.read_bytes())
    (wrong_ending / "oblique_0000.txt").write_bytes(b"")
    messages = {
        tmp_path / "nowhere": f"bundle: dataset_dir {tmp_path / 'nowhere'} does not exist; "
        "name a folder of images, or one image",
        wrong_ending: f"bundle: no image in dataset_dir {wrong_ending}: it holds .txt; supported are .nii.gz, .nii, "
        ".nrrd, .nhdr, .mha, .mhd, .gipl and DICOM series",
        one_channel: f"bundle: case oblique in {one_channel} has 1 channel (oblique_0000.nii.gz), the model needs 2: "
        "oblique_0000, oblique_0001",
    }
    for folder, message in messages.items():
        with pytest.raises(SystemExit) as caught:
            run_bundle(bundle, folder, tmp_path / "found")
        assert str(caught.value) == message
    assert not (tmp_path / "found").exists()


def test_what_the_bundle_says_about_the_model(bundle):
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    assert metadata["name"] == "Dataset901_Tiny 2d"
    assert metadata["task"] == "Segmentation of shell, core"
    assert "not a medical device" in metadata["intended_use"]
    assert metadata["nnunet"] == {
        "dataset": "Dataset901_Tiny",
        "configuration": "2d",
        "trainer": "ALHVRTrainer",
        "plans": "ALHVRPlans",
        "networks": ["network a of fold 0"],
    }
    image = metadata["network_data_format"]["inputs"]["image"]
    assert (image["num_channels"], image["spatial_shape"]) == (2, [16, 20])
    assert image["channel_def"] == {"0": "T2", "1": "CT"}
    # the keys of the shipped template are a model-zoo bundle's; none may get lost
    template = json.loads((bundle_folder() / "configs" / "metadata.json").read_text(encoding="utf-8"))
    assert set(template) < set(metadata)
    readme = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    assert "| channels | `_0000` T2; `_0001` CT |" in readme and "{%" not in readme
    assert "unlabeled" not in json.loads((bundle / "dataset.json").read_text(encoding="utf-8"))


def test_prints_the_run_command(workspace, tmp_path, capsys):
    root = tmp_path / "new" / "bundle"
    assert cli.main(["export_bundle", "-d", "901", "-c", "2d", "-o", str(root)]) == 0
    assert (
        f"next: python -m monai.bundle run inference --config_file {root}/configs/inference.json "
        f"--dataset_dir IN --output_dir OUT"
    ) in capsys.readouterr().out


def test_a_bundle_is_replaced_and_what_the_user_added_stays(workspace, tmp_path):
    target = tmp_path / "bundle"
    export_bundle(901, "2d", output=str(target))
    before = (target / "models" / "model.pt").read_bytes()
    (target / "predictions").mkdir()
    (target / "predictions" / "case.nii.gz").write_bytes(b"mine")
    export_bundle(901, "2d", output=str(target), network="b")
    assert (target / "models" / "model.pt").read_bytes() != before
    assert (target / "predictions" / "case.nii.gz").read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_full_disk_leaves_the_previous_bundle(workspace, tmp_path):
    target = tmp_path / "bundle"
    export_bundle(901, "2d", output=str(target))
    before = (target / "models" / "model.pt").read_bytes()
    with file_size_limit(20_000), pytest.raises(InputError, match=r"^cannot write .*bundle \(.+\)$"):
        export_bundle(901, "2d", output=str(target), network="b")
    assert (target / "models" / "model.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_other_folders_are_not_touched(workspace, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"output .* is not empty and no bundle of alhvr export_bundle"):
        export_bundle(901, "2d", output=str(tmp_path))
    with pytest.raises(InputError, match=r"output .*thesis\.txt is a file; name a folder"):
        export_bundle(901, "2d", output=str(tmp_path / "thesis.txt"))
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "mine"


def test_cascade_is_refused(workspace, tmp_path, monkeypatch):
    set_nnunet(monkeypatch, nnUNet_results=tmp_path / "results")
    folder = make_model(tmp_path / "results", "3d_fullres")
    folder.rename(folder.with_name(folder.name.replace("3d_fullres", "3d_cascade_fullres")))
    with pytest.raises(
        InputError,
        match=r"3d_cascade_fullres is the second stage of a cascade: it needs the predictions of 3d_lowres",
    ):
        export_bundle(901, "3d_cascade_fullres", output=str(tmp_path / "bundle"))
    assert not (tmp_path / "bundle").exists()
