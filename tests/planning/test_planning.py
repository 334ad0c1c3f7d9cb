"""Planning and preprocessing through nnU-Net's own functions."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import data_builders
import numpy as np
import pytest
import SimpleITK as sitk
from data_builders import HIDDEN_BRIGHTNESS, NAME, SPLIT, read_json, write_json
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunet_environment import set_nnunet
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class, nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from alhvr_trainer.config.settings import settings_from_plans, split_batch
from alhvr_trainer.data.dataset import find_dataset, named_dataset
from alhvr_trainer.data.fingerprint import add_unlabeled_to_fingerprint
from alhvr_trainer.errors import InputError
from alhvr_trainer.planning.make_split import make_split
from alhvr_trainer.planning.memory import relative_cost
from alhvr_trainer.planning.plan_and_preprocess import plan_and_preprocess
from alhvr_trainer.planning.planner import PLANNERS, ALHVRPlanner
from alhvr_trainer.planning.replanning import AS_PLANNED, keep_changed_settings
from alhvr_trainer.resources import plans_folder
from alhvr_trainer.trainers.alhvr import ALHVRSettings

pytest_plugins = ["planned_dataset"]


@pytest.fixture
def stock_planner(planned: Path, monkeypatch: pytest.MonkeyPatch) -> ExperimentPlanner:
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")  # nnU-Net's own estimate of memory fails with 0
    return ExperimentPlanner(NAME)


# --- the whole command ---


def test_every_unlabeled_case_is_preprocessed_beside_the_labeled_ones(planned: Path) -> None:
    folder = planned / "preprocessed" / NAME
    hidden, scans = SPLIT["unlabeled"], ["scan_000", "scan_001", "scan_002"]
    unlabeled = nnUNetDatasetBlosc2(str(folder / "ALHVRPlans_2d_unlabeled"))
    labeled = nnUNetDatasetBlosc2(str(folder / "ALHVRPlans_2d"))
    assert unlabeled.identifiers == hidden + scans
    assert labeled.identifiers == [f"case_00{number}" for number in range(6)]
    assert infer_dataset_class(str(folder / "ALHVRPlans_2d")) is nnUNetDatasetBlosc2
    for case in hidden:
        with_label, without = labeled.load_case(case), unlabeled.load_case(case)
        np.testing.assert_array_equal(with_label[0][:], without[0][:])
        assert with_label[1][:].max() == 2
        assert without[1][:].max() == 0


def test_hidden_labels_stay_out_of_the_intensity_statistics(planned: Path) -> None:
    fingerprint = read_json(planned, "dataset_fingerprint.json")
    assert fingerprint["labeled_cases"] == ["case_000", "case_001", "case_002", "case_003"]
    assert len(fingerprint["spacings"]) == 4
    statistics = fingerprint["foreground_intensity_properties_per_channel"]["0"]
    assert 160 < statistics["mean"] < 220
    assert statistics["max"] < 300 < 100 * HIDDEN_BRIGHTNESS
    plans = read_json(planned, "ALHVRPlans.json")
    assert plans["foreground_intensity_properties_per_channel"]["0"] == statistics
    assert plans["configurations"]["2d"]["normalization_schemes"] == ["CTNormalization"]


def test_fingerprint_covers_folder_and_hidden_cases(planned: Path) -> None:
    unlabeled = read_json(planned, "dataset_fingerprint.json")["unlabeled"]
    assert unlabeled["cases"] == ["case_004", "case_005", "scan_000", "scan_001", "scan_002"]
    assert unlabeled["spacings"] == [[5.0, 1.0, 1.0]] * 5
    assert unlabeled["shapes_after_crop"] == [[8, 40, 36]] * 5


def test_plans_are_those_of_nnunet_and_the_alhvr_block(planned: Path, stock_planner: ExperimentPlanner) -> None:
    plans = read_json(planned, "ALHVRPlans.json")
    assert plans["plans_name"] == "ALHVRPlans"
    assert plans["experiment_planner_used"] == "ALHVRPlanner"
    stock = stock_planner.plan_experiment()
    for name, beta in (("2d", 0.8), ("3d_fullres", 0.7)):
        ours = PlansManager(plans).get_configuration(name)
        assert set(ours.configuration) == {*stock["configurations"][name], "alhvr"}
        assert ours.preprocessor_class.__name__ == "DefaultPreprocessor"
        _, unlabeled = split_batch(ours.batch_size)
        assert ours.configuration["alhvr"] == {
            "unlabeled_batch_size": unlabeled,
            "threshold_proportion": beta,
        }
        settings_from_plans(ours.configuration, ALHVRSettings)
    # nnU-Net's own copy of dataset.json must not show the number of cases that the planner counts with
    assert read_json(planned, "dataset.json")["numTraining"] == 6


def test_command_is_safe_to_repeat_and_does_only_what_is_new(
    planned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_json(planned, "dataset_fingerprint.json")
    image, _ = data_builders.ellipsoid(30, (8, 40, 30))
    images = planned / "raw" / NAME / "imagesTr_unlabeled"
    data_builders.write_image(images / "scan_009_0000.nii.gz", image, spacing=(1, 1, 4))
    plan_and_preprocess(901, plans_file="demo", num_processes=1, verify_dataset_integrity=False, no_pp=True)
    after = read_json(planned, "dataset_fingerprint.json")
    assert after["unlabeled"]["cases"] == [*before["unlabeled"]["cases"], "scan_009"]
    assert after["unlabeled"]["shapes_after_crop"][-1] == [8, 40, 30]
    assert after["unlabeled"]["files"][:-1] == before["unlabeled"]["files"]
    output = capsys.readouterr().out
    assert "nnUNetv2_plan_and_preprocess -d 901 -pl ALHVRPlanner -c 2d -npfp 1 -np 1" in output
    assert "6 unlabeled cases: 4 in folders, 2 in splits_final.json" in output
    ready = json.loads((plans_folder() / "demo.json").read_text())["configurations"]["2d"]
    assert read_json(planned, "ALHVRPlansDemo.json")["configurations"]["2d"]["patch_size"] == ready["patch_size"]


# --- planner ---


def plan(root: Path, **arguments: object) -> dict:
    ALHVRPlanner(NAME, **arguments).plan_experiment()
    return read_json(root, f"{arguments.get('plans_name', 'ALHVRPlans')}.json")


def test_spacings_of_unlabeled_cases_count(planned: Path) -> None:
    fingerprint = read_json(planned, "dataset_fingerprint.json")
    assert plan(planned)["configurations"]["2d"]["spacing"] == [1.0, 1.0]
    fingerprint["unlabeled"]["spacings"] = [[5.0, 1.5, 1.5]] * 5  # 5 of 9 cases
    write_json(planned, "dataset_fingerprint.json", fingerprint)
    plans = plan(planned)
    assert plans["configurations"]["2d"]["spacing"] == [1.5, 1.5]
    assert plans["original_median_spacing_after_transp"] == [5.0, 1.5, 1.5]


def stock_fingerprint(root: Path) -> dict:
    """As nnU-Net's own extractor leaves it: it covers all six cases of imagesTr, labels of hidden ones included."""
    fingerprint = read_json(root, "dataset_fingerprint.json")
    del fingerprint["labeled_cases"], fingerprint["unlabeled"]
    for key in ("spacings", "shapes_after_crop"):
        fingerprint[key] = fingerprint[key][:1] * 6
    fingerprint["foreground_intensity_properties_per_channel"]["0"]["max"] = 9999.0
    write_json(root, "dataset_fingerprint.json", fingerprint)
    return fingerprint


def test_stock_fingerprint_is_completed(planned: Path) -> None:
    """nnUNetv2_plan_and_preprocess -pl ALHVRPlanner, unlabeled cases in their folder only."""
    stock = stock_fingerprint(planned)
    for folder in ("raw", "preprocessed"):
        data_builders.write_splits(planned / folder / NAME, {**SPLIT, "unlabeled": []})
    planner = ALHVRPlanner(NAME)
    completed = read_json(planned, "dataset_fingerprint.json")
    assert completed["unlabeled"]["cases"] == ["scan_000", "scan_001", "scan_002"]
    assert {key: completed[key] for key in stock} == stock
    assert planner.dataset_json["numTraining"] == len(planner.dataset_fingerprint["spacings"]) == 9


def test_hidden_labels_are_taken_out_of_a_stock_fingerprint(planned: Path) -> None:
    stock_fingerprint(planned)
    planner = ALHVRPlanner(NAME)
    fingerprint = read_json(planned, "dataset_fingerprint.json")
    assert fingerprint["labeled_cases"] == [*SPLIT["train"], *SPLIT["val"]]
    assert fingerprint["foreground_intensity_properties_per_channel"]["0"]["max"] < 300
    assert planner.dataset_json["numTraining"] == len(planner.dataset_fingerprint["spacings"]) == 9


def test_the_estimate_is_nnunets_times_what_the_method_takes_more() -> None:
    network = PlainConvUNet(**architecture(), input_channels=1, num_classes=3)
    names = {**architecture(), "conv_op": "torch.nn.Conv2d"}
    path = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
    found = ALHVRPlanner.static_estimate_VRAM_usage((32, 32), 1, 3, path, names, ("conv_op",))
    assert found / network.compute_conv_feature_map_size((32, 32)) == pytest.approx(relative_cost(2, False, 3))
    assert 2 < relative_cost(2, False, 3) < 2.6


def architecture() -> dict:
    from torch import nn

    stages = {"n_stages": 3, "features_per_stage": [4, 8, 16], "strides": [1, 2, 2], "kernel_sizes": 3}
    return {"conv_op": nn.Conv2d, **stages, "n_conv_per_stage": 2, "n_conv_per_stage_decoder": 2}


@pytest.mark.parametrize("size", [(64, 64), (16, 64, 64)])
def test_batch_is_smaller_than_stock_nnunets(stock_planner: ExperimentPlanner, size: tuple[int, ...]) -> None:
    arguments = ([1.0] * len(size), size, "x", 1e12)
    ours = ALHVRPlanner(NAME).get_plans_for_configuration(*arguments, {})
    stock = stock_planner.get_plans_for_configuration(*arguments, {})
    assert list(ours["patch_size"]) == list(stock["patch_size"])
    # less than half for two networks; the second passes of the decoder cost at most another 30 %
    assert stock["batch_size"] / 2 * 0.7 < ours["batch_size"] < stock["batch_size"] / 2


def test_a_batch_that_would_not_fit_becomes_smaller(planned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ([1.0, 1.0, 1.0], (96, 96, 96), "x", 1e12)
    planner = ALHVRPlanner(NAME, 11)
    plan = planner.get_plans_for_configuration(*arguments, {})
    before, batch = dict(plan), plan["batch_size"]
    planner.fit_batch(plan)
    assert plan == before  # it fits
    planner.UNet_vram_target_GB = 0.6 * planner._predicted_gib(plan)
    planner.fit_batch(plan)
    assert planner.UNet_min_batch_size <= plan["batch_size"] < batch
    assert plan["alhvr"]["unlabeled_batch_size"] == plan["batch_size"] // 2
    fits = planner._predicted_gib(plan) <= 0.95 * planner.UNet_vram_target_GB
    assert fits or plan["batch_size"] == planner.UNet_min_batch_size


def test_memory_target_is_kept(planned: Path) -> None:
    arguments = ([1.0, 1.0], (512, 512), "x", 1e12)
    plans = [ALHVRPlanner(NAME, memory).get_plans_for_configuration(*arguments, {}) for memory in (8, 16)]
    assert plans[1]["batch_size"] == pytest.approx(2 * plans[0]["batch_size"], abs=1)


def test_planning_needs_unlabeled_cases(planned: Path) -> None:
    stock_fingerprint(planned)
    shutil.rmtree(planned / "raw" / NAME / "imagesTr_unlabeled")
    for folder in ("raw", "preprocessed"):
        data_builders.write_splits(planned / folder / NAME, {**SPLIT, "unlabeled": []})
    with pytest.raises(InputError, match=r"no unlabeled case for the dataset: put images into .*imagesTr_unlabeled"):
        ALHVRPlanner(NAME)


def test_bad_image_is_found_while_planning(planned: Path) -> None:
    image, _ = data_builders.ellipsoid(3, (8, 40, 36))
    image[0, 0, 0] = np.nan
    data_builders.write_image(planned / "raw" / NAME / "imagesTr_unlabeled" / "scan_001_0000.nii.gz", image)
    with pytest.raises(InputError, match=r"scan_001_0000.nii.gz has 1 NaN"):
        add_unlabeled_to_fingerprint(named_dataset(NAME), 0)


# --- input of the commands ---


@pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed"])
def test_missing_environment_variable(planned: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    set_nnunet(monkeypatch, **{variable: None})
    with pytest.raises(InputError, match=f"environment variable {variable} is not set"):
        plan_and_preprocess(901)


def test_residual_encoder_preset(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """nnU-Net's preset, planned for two networks and on data of its own."""
    arguments = {"num_processes": 1, "verify_dataset_integrity": False, "no_pp": True}
    file = plan_and_preprocess(901, "2d", planner="ALHVRPlannerResEncM", **arguments)
    assert "-pl ALHVRPlannerResEncM -c 2d" in capsys.readouterr().out
    assert Path(file).name == "ALHVRResEncUNetMPlans.json"
    plans = read_json(planned, "ALHVRResEncUNetMPlans.json")
    assert plans["experiment_planner_used"] == "ALHVRPlannerResEncM"
    for name in ("2d", "3d_fullres"):
        configuration = plans["configurations"][name]
        assert configuration["architecture"]["network_class_name"].endswith("ResidualEncoderUNet")
        assert configuration["data_identifier"] == f"ALHVRResEncUNetMPlans_{name}"
        assert configuration["alhvr"]["unlabeled_batch_size"] == configuration["batch_size"] // 2


@pytest.mark.parametrize(("name", "gigabytes"), [("M", 8), ("L", 24), ("XL", 40)])
def test_presets_have_nnunets_memory_targets(planned: Path, name: str, gigabytes: int) -> None:
    planner = PLANNERS[f"ALHVRPlannerResEnc{name}"](NAME)
    assert planner.UNet_vram_target_GB == gigabytes
    assert planner.plans_identifier == f"ALHVRResEncUNet{name}Plans"
    assert planner.dataset_json["numTraining"] == 9  # labeled and unlabeled


def test_unknown_planner(planned: Path) -> None:
    with pytest.raises(InputError, match="there is no planner ResEncM; planners: ALHVRPlanner, ALHVRPlannerResEncM"):
        plan_and_preprocess(901, planner="ResEncM")


@pytest.mark.parametrize("dataset", [901, "901", NAME])
def test_dataset_by_number_or_name(planned: Path, dataset: int | str) -> None:
    assert find_dataset(dataset).name == NAME


def test_dataset_that_is_not_there_or_not_unique(planned: Path) -> None:
    with pytest.raises(InputError, match=f"dataset 902 not found; datasets in nnUNet_raw .*: {NAME}"):
        find_dataset(902)
    (planned / "preprocessed" / "Dataset901_Other").mkdir()
    with pytest.raises(InputError, match=f"number 901: Dataset901_Other, {NAME}"):
        find_dataset(901)


def test_unknown_configuration(planned: Path) -> None:
    arguments = {"num_processes": 1, "verify_dataset_integrity": False}
    before = (planned / "preprocessed" / NAME / "ALHVRPlans.json").read_bytes()
    with pytest.raises(InputError, match=r"no configuration 2D; did you mean 2d\?; there can be: 2d, 3d_fullres"):
        plan_and_preprocess(901, "2D", **arguments)
    with pytest.raises(InputError, match=rf"{NAME} gets no configuration 3d_lowres; there are: 2d, 3d_fullres"):
        plan_and_preprocess(901, "3d_lowres", **arguments)
    assert (planned / "preprocessed" / NAME / "ALHVRPlans.json").read_bytes() == before


@pytest.mark.parametrize("through", ["ours", "nnU-Net", "ready plans"])
def test_what_was_changed_by_hand_survives_planning_again(
    planned: Path, through: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Settings of the "alhvr" blocks and own configurations; what planning chose itself is chosen anew."""
    if through == "ready plans":
        plan_and_preprocess(901, plans_file="demo", no_pp=True, overwrite_plans_name="ALHVRPlans")
    plans = read_json(planned, "ALHVRPlans.json")
    first = json.loads(json.dumps(plans))
    plans["configurations"]["2d"]["alhvr"].update(consistency_weight=0.25, threshold_proportion=0.95)
    plans["configurations"]["3d_fullres"]["batch_size"] = 4  # of nnU-Net's own entries: planned anew
    plans["configurations"]["2d_mine"] = {"inherits_from": "2d", "alhvr": {"seed": 3}}
    write_json(planned, "ALHVRPlans.json", plans)
    again = {
        "ours": lambda: plan_and_preprocess(901, "2d", no_pp=True, num_processes=1, verify_dataset_integrity=False),
        "nnU-Net": lambda: ALHVRPlanner(NAME).plan_experiment(),
        "ready plans": lambda: plan_and_preprocess(
            901, plans_file="demo", no_pp=True, overwrite_plans_name="ALHVRPlans", verify_dataset_integrity=False
        ),
    }[through]
    capsys.readouterr()
    again()
    expected = first
    expected["configurations"]["2d"]["alhvr"] |= {"consistency_weight": 0.25, "threshold_proportion": 0.95}
    expected["configurations"]["2d_mine"] = {"inherits_from": "2d", "alhvr": {"seed": 3}}
    assert read_json(planned, "ALHVRPlans.json") == expected
    said = capsys.readouterr().out
    assert '2d keeps "alhvr"' in said and "consistency_weight 0.25" in said


def test_what_nobody_changed_is_planned_anew() -> None:
    """With another batch its planned share follows; without a note of what was planned, all that is there stays."""
    before = {"configurations": {"2d": {"alhvr": {"unlabeled_batch_size": 8, "seed": 1}}}}
    noted = {**before, AS_PLANNED: {"2d": {"unlabeled_batch_size": 8}}}
    for old, expected in ((noted, 4), (before, 8)):
        plans = {"configurations": {"2d": {"alhvr": {"unlabeled_batch_size": 4}}}}
        keep_changed_settings(plans, old)
        assert plans["configurations"]["2d"]["alhvr"] == {"unlabeled_batch_size": expected, "seed": 1}
        assert plans[AS_PLANNED] == {"2d": {"unlabeled_batch_size": 4}}


def test_a_damaged_plans_file_is_named_before_it_is_replaced(planned: Path) -> None:
    for content in ('{"plans_name": "ALHVRPlans"}', "{"):
        (planned / "preprocessed" / NAME / "ALHVRPlans.json").write_text(content)
        with pytest.raises(InputError, match=r"ALHVRPlans\.json .*; remove it and plan again"):
            plan_and_preprocess(901, "2d", num_processes=1, verify_dataset_integrity=False)
        assert (planned / "preprocessed" / NAME / "ALHVRPlans.json").read_text() == content


def test_number_of_processes(planned: Path) -> None:
    with pytest.raises(InputError, match=r'"num_processes" must be a whole number of at least 1, found 0'):
        plan_and_preprocess(901, num_processes=0)


def test_labeled_data_are_checked_by_nnunet(planned: Path) -> None:
    os.remove(planned / "raw" / NAME / "labelsTr" / "case_000.nii.gz")
    with pytest.raises(InputError, match=r"fails nnU-Net's integrity check: .*Missing: .*case_000"):
        plan_and_preprocess(901)


# --- splits ---


def test_split_is_written_once(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = planned / "preprocessed" / NAME / "splits_final.json"
    with pytest.raises(InputError, match=r"splits_final.json exists: use --overwrite"):
        make_split(901, 2)
    with pytest.raises(InputError, match=r"raw.*splits_final.json exists, and nnU-Net refuses a different split"):
        make_split(901, 2, overwrite=True)
    (planned / "raw" / NAME / "splits_final.json").unlink()
    assert make_split(901, 2, overwrite=True) == str(file)
    assert "fold 0: 2 labeled, 3 unlabeled, 1 validation cases" in capsys.readouterr().out
    assert [len(cases) for cases in json.loads(file.read_text())[0].values()] == [2, 3, 1]
    other = planned / "elsewhere" / "split.json"
    assert make_split(901, 5, output=str(other)) == str(other)
    assert json.loads(other.read_text())[0]["unlabeled"] == [], "unlabeled scans lie in their folder"
    shutil.rmtree(planned / "raw" / NAME / "imagesTr_unlabeled")
    with pytest.raises(InputError, match=r'"labeled" is 5: no case of .* is left to be unlabeled'):
        make_split(901, 5, overwrite=True)


@pytest.mark.parametrize("target", [0, -3, float("nan")])
def test_gpu_memory_must_be_positive(planned: Path, target: float) -> None:
    with pytest.raises(InputError, match=r'"gpu_memory_target" is .* it must be a positive number of GB'):
        plan_and_preprocess(901, "2d", gpu_memory_target=target)


@pytest.mark.parametrize("name", ["splits_final", "dataset", "a/b"])
def test_plans_do_not_take_the_place_of_another_file(planned: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"plans cannot be called '{name}'"):
        plan_and_preprocess(901, "2d", overwrite_plans_name=name)


@pytest.mark.parametrize(
    ("change", "warned"),
    [
        (lambda image: image.SetOrigin((10.0, 0.0, 0.0)), True),
        (lambda image: image.SetDirection((-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)), True),
        (lambda image: None, False),
    ],
    ids=["origin", "direction", "same"],
)
def test_label_maps_elsewhere_in_space_are_pointed_out(planned: Path, change, warned: bool, capsys) -> None:
    file = str(planned / "raw" / NAME / "labelsTr" / "case_000.nii.gz")
    image = sitk.ReadImage(file)
    change(image)
    sitk.WriteImage(image, file)
    plan_and_preprocess(901, "2d", num_processes=1, no_pp=True)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("WARNING: 1 label maps have another origin or direction") == warned
    assert ("case_000" in last) == warned


def test_only_a_split_is_replaced(planned: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text('{"mine": 1}')
    (tmp_path / "folder").mkdir()
    for name, message in (("notes.json", "exists and does not hold a split"), ("folder", "is a folder; name a file")):
        with pytest.raises(InputError, match=f"output .*{name} {message}"):
            make_split(901, labeled=1, output=str(tmp_path / name), overwrite=True)
    assert (tmp_path / "notes.json").read_text() == '{"mine": 1}'
    assert sorted(file.name for file in tmp_path.iterdir() if "part" in file.name) == []
