"""Ready plans: those that ship, those that users write, and those that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import data_builders
import pytest
from data_builders import NAME, read_json

from alhvr_trainer.config.settings import settings_from_plans
from alhvr_trainer.errors import InputError
from alhvr_trainer.planning.plan_and_preprocess import plan_and_preprocess
from alhvr_trainer.planning.templates import apply_template, load_template, shipped_templates
from alhvr_trainer.trainers.alhvr import ALHVRSettings

pytest_plugins = ["planned_dataset"]


@pytest.mark.parametrize("name", shipped_templates())
def test_ready_plans_fit_a_dataset(planned: Path, name: str) -> None:
    template = load_template(name)
    plans = read_json(planned, "ALHVRPlans.json")
    result = apply_template(template, plans, data_builders.read_dataset_json(planned / "raw" / NAME))
    (configuration,) = template.configurations
    ours, planned_ones = result["configurations"][configuration], plans["configurations"][configuration]
    for key, value in template.configurations[configuration].items():
        assert ours[key] == value
    for key in (
        "data_identifier",
        "spacing",
        "normalization_schemes",
        "resampling_fn_data",
        "preprocessor_name",
    ):
        assert ours[key] == template.configurations[configuration].get(key, planned_ones[key])
    assert {**result, "configurations": None} == {**plans, "configurations": None}


def test_there_are_ready_plans_for_the_papers_settings() -> None:
    names = "abdomenct1k_3d acdc_2d acdc_cpu acdc_quick brats2019_3d demo hippocampus_2d"
    assert shipped_templates() == names.split()
    acdc = load_template("acdc_2d").configurations["2d"]
    assert (acdc["batch_size"], acdc["patch_size"]) == (16, [256, 256])
    assert acdc["architecture"]["arch_kwargs"]["features_per_stage"] == [16, 32, 64, 128, 256]
    assert acdc["architecture"]["arch_kwargs"]["norm_op"].endswith("BatchNorm2d")
    brats = load_template("brats2019_3d").configurations["3d_fullres"]
    assert (brats["batch_size"], brats["patch_size"]) == (4, [96, 96, 96])
    for configuration, beta, iterations in ((acdc, 0.8, 30_000), (brats, 0.7, 15_000)):
        settings = settings_from_plans(configuration, ALHVRSettings)
        assert settings.unlabeled_batch_size == configuration["batch_size"] // 2
        assert settings.threshold_proportion == beta
        assert settings.num_epochs * settings.num_iterations_per_epoch == iterations


def write_template(folder: Path, content: object) -> str:
    file = folder / "mine.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(file)


def overlay(root: Path, configuration: dict, name: str = "2d", **top: object) -> dict:
    template = load_template(write_template(root, {**top, "configurations": {name: configuration}}))
    dataset_json = data_builders.read_dataset_json(root / "raw" / NAME)
    return apply_template(template, read_json(root, "ALHVRPlans.json"), dataset_json)["configurations"][name]


def test_missing_keys_of_the_alhvr_block_follow_the_new_batch(planned: Path) -> None:
    assert overlay(planned, {"batch_size": 7})["alhvr"] == {
        "unlabeled_batch_size": 3,
        "threshold_proportion": 0.8,
    }
    merged = overlay(planned, {"batch_size": 7, "alhvr": {"unlabeled_batch_size": 5, "num_epochs": 2}})["alhvr"]
    assert merged == {"unlabeled_batch_size": 5, "threshold_proportion": 0.8, "num_epochs": 2}


def test_a_new_spacing_changes_the_median_shape(planned: Path) -> None:
    assert overlay(planned, {"spacing": [2.0, 0.5]})["median_image_size_in_voxels"] == [20.0, 72.0]


def test_complete_plans_of_another_dataset(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = read_json(planned, "ALHVRPlans.json")
    other.update(dataset_name="Dataset777_Other", plans_name="nnUNetPlans", transpose_forward=[2, 0, 1])
    other["configurations"]["2d"].update(batch_size=6, spacing=[9.0, 9.0], data_identifier="nnUNetPlans_2d")
    other["configurations"]["2d"]["normalization_schemes"] = ["ZScoreNormalization"] * 4
    other["configurations"]["2d"]["use_mask_for_norm"] = [False] * 4
    del other["configurations"]["2d"]["alhvr"]
    other["configurations"]["3d_lowres"] = other["configurations"]["3d_fullres"]
    other["configurations"]["3d_cascade_fullres"] = {
        "inherits_from": "3d_fullres",
        "previous_stage": "3d_lowres",
    }
    template = load_template(write_template(planned, other))
    assert template.plans_name == "ALHVRPlans", "the dataset's own nnUNetPlans must not be overwritten"
    plans = read_json(planned, "ALHVRPlans.json")
    result = apply_template(template, plans, data_builders.read_dataset_json(planned / "raw" / NAME))
    assert '3d_lowres" is left out: the dataset has no such configuration' in capsys.readouterr().out
    expected = plans["configurations"]["2d"]
    expected.update(batch_size=6, alhvr={"unlabeled_batch_size": 3, "threshold_proportion": 0.8})
    assert result == plans


def test_network_of_the_ready_plans_replaces_the_planned_one(planned: Path) -> None:
    network = load_template("demo").configurations["2d"]["architecture"]
    assert overlay(planned, {"architecture": network, "patch_size": [40, 24]})["architecture"] == network


def changed_network(**arguments: object) -> dict:
    network = load_template("demo").configurations["2d"]["architecture"]
    return {
        "architecture": {**network, "arch_kwargs": {**network["arch_kwargs"], **arguments}},
        "patch_size": [64, 64],
    }


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        ({"batchsize": 4}, 'unknown key "batchsize"; valid keys: batch_size, patch_size'),
        ({"data_identifier": "x"}, 'unknown key "data_identifier"'),
        ({"alhvr": {"beta": 0.8}}, 'unknown key beta in "alhvr"'),
        ({"alhvr": {"threshold_proportion": 1.5}}, '"alhvr.threshold_proportion" in the plans is 1.5'),
        ({"batch_size": 4, "alhvr": {"unlabeled_batch_size": 4}}, "one labeled sample must be left"),
        ({"batch_size": "4"}, "\"batch_size\" is '4'; it must be a whole number of at least 1"),
        ({"patch_size": [32, 32, 32]}, '"patch_size" is .*; it must be 2 positive numbers'),
        ({"patch_size": [32, -32]}, '"patch_size" is .*; it must be 2 positive numbers'),
        ({"patch_size": 32}, '"patch_size" is .*; it must be 2 positive numbers'),
        ({"spacing": [1.0]}, '"spacing" is .*; it must be 2 positive numbers'),
        ({**changed_network(), "patch_size": [64, 60]}, r"\[64, 60\] must be divisible .*\[8, 8\]"),
        ({"normalization_schemes": []}, r'"normalization_schemes" must have one entry .*\(CT\), found \[\]'),
        ({"normalization_schemes": ["NoSuchScheme"]}, 'no normalization scheme "NoSuchScheme"'),
        (changed_network(norm_op="torch.nn.NoNorm"), r'"norm_op": there is no layer torch.nn.NoNorm'),
        (
            changed_network(nonlin="subprocess.Popen", nonlin_kwargs={"args": ["true"]}),
            r'"nonlin": there is no layer subprocess.Popen',
        ),
        (changed_network(conv_op="torch.nn.Conv3d"), '"architecture" gives no working network'),
        (changed_network(features_per_stage=[8, 16]), '"architecture" gives no working network'),
        (changed_network(no_such_argument=1), '"architecture" gives no working network: .*no_such_argument'),
        ({"architecture": {"network_class_name": "x"}}, '"architecture" gives no working network'),
    ],
)  # fmt: skip
def test_ready_plans_that_do_not_fit(planned: Path, configuration: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        overlay(planned, configuration)
    assert f'{planned / "mine.json"}, configuration "2d"' in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "mine.json is not valid JSON"),
        ([1], "mine.json is not a plans file"),
        ({"configurations": {}}, "mine.json is not a plans file"),
        ({"configurations": {"2d": 3}}, 'configuration "2d" must be an object'),
        ({"configurations": {"2d": {}}, "patch_size": [1]}, 'mine.json: unknown key "patch_size"'),
    ],
)
def test_files_that_are_no_ready_plans(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_template(write_template(tmp_path, content))


def test_unknown_ready_plans_list_the_known_ones() -> None:
    with pytest.raises(
        InputError,
        match="no plans file acdc; ready plans: abdomenct1k_3d, acdc_2d, acdc_cpu, acdc_quick, brats2019_3d, demo, ",
    ):
        load_template("acdc")


def test_configuration_that_the_dataset_lacks(planned: Path) -> None:
    with pytest.raises(InputError, match='configuration "3d_lowres": the dataset has only 2d, 3d_fullres'):
        overlay(planned, {"batch_size": 2}, name="3d_lowres")


def test_bad_ready_plans_leave_the_old_plans_file(planned: Path) -> None:
    before = read_json(planned, "ALHVRPlans.json")
    file = write_template(planned, {"plans_name": "ALHVRPlans", "configurations": {"2d": {"patch_size": [33, 33]}}})
    with pytest.raises(InputError, match="must be divisible"):
        plan_and_preprocess(901, plans_file=file, num_processes=1, verify_dataset_integrity=False, no_pp=True)
    assert read_json(planned, "ALHVRPlans.json") == before


def test_plans_name_may_be_chosen(planned: Path) -> None:
    arguments = {"num_processes": 1, "verify_dataset_integrity": False, "no_pp": True}
    file = plan_and_preprocess(NAME, "2d", "demo", overwrite_plans_name="Mine", **arguments)
    assert Path(file) == planned / "preprocessed" / NAME / "Mine.json"
    plans = json.loads(Path(file).read_text())
    assert plans["plans_name"] == "Mine"
    assert plans["configurations"]["2d"]["data_identifier"] == "Mine_2d"


@pytest.mark.real_data
@pytest.mark.any_nnunet
def test_ready_plans_fit_acdc(real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_builders.set_environment(monkeypatch, tmp_path)
    source, raw = real_data / "acdc" / "Dataset027_ACDC", tmp_path / "raw" / "Dataset027_ACDC"
    cases = sorted(file.name.removesuffix(".nii.gz") for file in (source / "labelsTr").iterdir())[:6]
    for number, case in enumerate(cases):
        link(source / "imagesTr", raw / ("imagesTr" if number < 4 else "imagesTr_unlabeled"), f"{case}_0000.nii.gz")
        if number < 4:
            link(source / "labelsTr", raw / "labelsTr", f"{case}.nii.gz")
    (raw / "dataset.json").write_text((source / "dataset.json").read_text())
    data_builders.change_dataset_json(raw, numTraining=4)
    for name in shipped_templates():
        arguments = {"num_processes": 1, "verify_dataset_integrity": False, "no_pp": True}
        plans = json.loads(Path(plan_and_preprocess(27, plans_file=name, **arguments)).read_text())
        template = load_template(name)
        (configuration,) = template.configurations
        assert plans["plans_name"] == template.plans_name
        planned_one = plans["configurations"][configuration]
        ours = template.configurations[configuration]
        assert planned_one["patch_size"] == ours["patch_size"]
        assert planned_one["spacing"] == ours.get("spacing", [10.0, 1.0, 1.0][-len(ours["patch_size"]) :])
        assert planned_one["data_identifier"] == f"{template.plans_name}_{configuration}"


def link(source: Path, target: Path, file: str) -> None:
    target.mkdir(parents=True, exist_ok=True)
    (target / file).symlink_to(source / file)
