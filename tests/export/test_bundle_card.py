"""What an exported bundle says of itself: metadata, card, results, versions; and the options that it is made with."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import shutil
import statistics
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunet_environment import set_nnunet
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, compute_metrics_on_folder, save_summary_json
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.preprocessing.normalization import default_normalization_schemes
from trained_models import DATASET, LABELS, make_model

from alhvr_trainer import cli
from alhvr_trainer.errors import InputError
from alhvr_trainer.evaluation.evaluate import evaluate
from alhvr_trainer.export.bundle import export_bundle, facts
from alhvr_trainer.export.bundle.details import next_changelog
from alhvr_trainer.export.bundle.metadata import release
from alhvr_trainer.export.bundle.results import eval_metrics, evaluation_results, validation_results
from alhvr_trainer.models import TrainedModel, find_model_in_folder
from alhvr_trainer.resources import bundle_folder

pytestmark = pytest.mark.any_nnunet
SAID = {
    "name": "Shells and cores",
    "version": "1.2.3",
    "author": "A. Doe; B. Roe",
    "license": "CC BY 4.0",
    "data_source": "a hospital",
    "changelog": "first release",
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """Trained models, label maps with references, and what nnU-Net and ``alhvr evaluate`` measure on them.

    The class "core" is in no map of case c: undefined there.
    """
    root = tmp_path_factory.mktemp("card")
    random = np.random.default_rng(0)
    for folder in ("predicted", "references"):
        (root / folder).mkdir()
        for case in "abc":
            voxels = random.integers(0, 2 if case == "c" else 3, (6, 7, 8)).astype(np.uint8)
            sitk.WriteImage(sitk.GetImageFromArray(voxels), str(root / folder / f"{case}.nii.gz"))
    maps = str(root / "references"), str(root / "predicted")
    compute_metrics_on_folder(*maps, str(root / "summary.json"), SimpleITKIO(), ".nii.gz", [1, 2], num_processes=1)
    evaluate(maps[1], maps[0], {"labels": LABELS, "file_ending": ".nii.gz"}, root / "scores")
    ours = make_model(root / "results", "2d", folds=(0, 1))
    with_regions = {"trainer": "nnUNetTrainer", "plans_name": "RegionPlans", "regions": True, "mirror_axes": None}
    make_model(root / "results", "3d_fullres", **with_regions)
    validate(ours, 0, root / "summary.json")
    shutil.copyfile(bundle_folder() / "LICENSE", ours / "fold_0" / "progress.png")  # no plot
    return root


def validate(model_folder: Path, fold: int | str, summary: Path) -> None:
    """As nnU-Net leaves the results of its validation."""
    folder = model_folder / f"fold_{fold}" / "validation"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(summary, folder / "summary.json")


@pytest.fixture
def model_folder(workspace, tmp_path) -> Path:
    """A copy of the ALHVR model, outside nnU-Net's folders."""
    source = next((workspace / "results").glob("*/ALHVRTrainer__*"))
    return Path(shutil.copytree(source, tmp_path / "anywhere" / source.name))


@pytest.fixture(scope="module")
def region_folder(workspace) -> Path:
    return next((workspace / "results").glob("*/nnUNetTrainer__*"))


@pytest.fixture(scope="module")
def bundle(workspace) -> Path:
    """Everything said that can be."""
    folder = next((workspace / "results").glob("*/ALHVRTrainer__*"))
    return export_bundle(model_folder=str(folder), output=str(workspace / "bundle"), **SAID)


def metadata_of(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))


def card_of(bundle: Path) -> str:
    return (bundle / "docs" / "README.md").read_text(encoding="utf-8")


# --- metadata -------------------------------------------------------------------------------------------------------


def test_what_was_said_is_in_metadata_and_card(bundle):
    metadata, card = metadata_of(bundle), card_of(bundle)
    assert (metadata["name"], metadata["version"]) == ("Shells and cores", "1.2.3")
    assert (metadata["authors"], metadata["copyright"]) == ("A. Doe, B. Roe", "CC BY 4.0")
    assert (metadata["data_source"], metadata["changelog"]) == ("a hospital", {"1.2.3": "first release"})
    for text in ("**Shells and cores** segments shell, core", "| 1.2.3 |", "A. Doe, B. Roe", "a hospital", "CC BY 4.0"):
        assert text in card
    terms = (bundle / "docs" / "data_license.txt").read_text(encoding="utf-8")
    assert terms == "Training data: a hospital\nLicense: CC BY 4.0\n"


def test_what_nobody_said_is_not_made_up(region_folder, tmp_path, capsys):
    bundle = export_bundle(model_folder=str(region_folder), output=str(tmp_path / "bundle"))
    metadata, card = metadata_of(bundle), card_of(bundle)
    assert (metadata["authors"], metadata["copyright"]) == ("not stated", "not stated")
    assert metadata["eval_metrics"] == {}
    assert "Fold 0 has no results of nnU-Net's validation" in card and "no performance can be stated" in card
    assert sorted(path.name for path in (bundle / "docs").iterdir()) == ["README.md", "deploy_app.py"]
    assert "ALHVR (adaptive" not in card and "[1] Isensee" in card
    printed = capsys.readouterr().out
    assert "no eval_metrics: Fold 0 has no results" in printed and "not stated: author, license" in printed


def test_terms_of_the_dataset_json_are_taken(model_folder, tmp_path):
    content = json.loads((model_folder / "dataset.json").read_text(encoding="utf-8"))
    content |= {"licence": "CC0\n1.0", "reference": "a | b <c>", "description": ["no text"]}
    (model_folder / "dataset.json").write_text(json.dumps(content))
    bundle = export_bundle(model_folder=str(model_folder), output=str(tmp_path / "bundle"))
    assert metadata_of(bundle)["copyright"] == "CC0 1.0"
    assert (bundle / "docs" / "data_license.txt").read_text(
        encoding="utf-8"
    ) == "Training data: a | b <c>\nLicense: CC0 1.0\n"
    assert "| source | a \\| b &lt;c> |" in card_of(bundle)


def test_network_data_format(bundle):
    sides = metadata_of(bundle)["network_data_format"]
    image, pred = sides["inputs"]["image"], sides["outputs"]["pred"]
    assert (image["num_channels"], image["spatial_shape"], image["modality"]) == (2, [16, 20], "T2, CT")
    assert image["format"] == "magnitude"  # one channel alone is CT
    assert image["value_range"] == []
    assert image["normalization"]["0"].startswith("z-score of each image")
    assert image["normalization"]["1"] == "clipped to [5, 200], minus 90, divided by 40 (CT)"
    assert (pred["num_channels"], pred["spatial_shape"], pred["format"]) == (3, [16, 20], "segmentation")
    assert pred["channel_def"] == pred["network_channels"] == {"0": "background", "1": "shell", "2": "core"}


def with_schemes(model: TrainedModel, schemes: list[str]) -> TrainedModel:
    plans = json.loads(json.dumps(model.plans))
    plans["configurations"]["2d"]["normalization_schemes"] = schemes
    return dataclasses.replace(model, plans=plans)


@pytest.mark.parametrize("scheme", ["CTNormalization", "RescaleTo01Normalization", "RGBTo01Normalization"])
def test_value_range_is_what_nnunet_makes_of_an_image(model_folder, scheme):
    model = with_schemes(find_model_in_folder(model_folder), [scheme, scheme])
    properties = model.plans["foreground_intensity_properties_per_channel"]["0"]
    image = np.linspace(0, 255, 300, dtype=np.float32).reshape(1, 20, 15)
    normalized = getattr(default_normalization_schemes, scheme)(False, properties).run(image)
    assert facts.value_range(model) == pytest.approx([normalized.min(), normalized.max()], abs=1e-3)
    assert facts.is_ct(model) is (scheme == "CTNormalization")


@pytest.mark.parametrize(
    "schemes",
    [["ZScoreNormalization"] * 2, ["NoNormalization"] * 2, ["CTNormalization", "RescaleTo01Normalization"]],
)
def test_no_value_range_where_there_is_none(model_folder, schemes):
    assert facts.value_range(with_schemes(find_model_in_folder(model_folder), schemes)) == []


def test_meanings_of_written_values_of_regions(region_folder):
    """nnU-Net writes the value; its meaning names the regions that the voxel is in."""
    model = find_model_in_folder(region_folder)
    manager = model.plans_manager.get_label_manager(model.dataset_json)
    meanings = facts.written_labels(model)
    assert meanings == {"0": "background", "1": "whole without core", "2": "core"}
    expected = {(0, 0): "background", (1, 0): "whole without core", (1, 1): "core"}
    for inside, meaning in expected.items():
        probabilities = np.array(inside, np.float32).reshape(2, 1, 1, 1)
        value = manager.convert_probabilities_to_segmentation(probabilities)
        assert meanings[str(int(value.item()))] == meaning


def test_regions_in_metadata_and_card(region_folder, tmp_path):
    bundle = export_bundle(model_folder=str(region_folder), output=str(tmp_path / "bundle"))
    pred = metadata_of(bundle)["network_data_format"]["outputs"]["pred"]
    assert pred["num_channels"] == 2 and pred["network_channels"] == {"0": "whole", "1": "core"}
    assert pred["channel_def"] == {"0": "background", "1": "whole without core", "2": "core"}
    assert "| 1 | whole without core |" in card_of(bundle) and "| whole | 1, 2 |" in card_of(bundle)


@pytest.mark.parametrize(("reader", "required"), [("SimpleITKIO", False), ("NibabelIO", True)])
def test_packages(model_folder, reader, required, tmp_path):
    plans = json.loads((model_folder / "plans.json").read_text(encoding="utf-8"))
    (model_folder / "plans.json").write_text(json.dumps({**plans, "image_reader_writer": reader}))
    metadata = metadata_of(export_bundle(model_folder=str(model_folder), output=str(tmp_path / "bundle")))
    needed, native = metadata["required_packages_version"], metadata["native_packages_version"]
    assert {"nnunetv2", "SimpleITK", "pytorch-ignite"} <= set(needed)
    assert {"nibabel", "scipy", "pytorch-ignite", "itk"} <= set(native) and "nnunetv2" not in native
    assert ("nibabel" in needed) == required
    assert all(re.fullmatch(r"[\w.]+", release) for release in (needed | native).values())


def test_releases_are_without_their_build(tmp_path, monkeypatch):
    """PyTorch's CPU builds are 2.8.0+cpu; the zoo installs by number."""
    info = tmp_path / "some_package-2.8.0+cpu.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-package\nVersion: 2.8.0+cpu\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert (release("some-package"), release("no-such-package", "1.0")) == ("2.8.0", "1.0")


# --- measured results -----------------------------------------------------------------------------------------------


def test_validation_equals_nnunets_means(workspace, bundle):
    nnunet = json.loads((workspace / "summary.json").read_text(encoding="utf-8"))
    metrics = metadata_of(bundle)["eval_metrics"]
    assert list(metrics) == [
        "mean_dice",
        "mean_jaccard",
        "dice_shell",
        "dice_core",
        "jaccard_shell",
        "jaccard_core",
    ]
    expected = [
        *(nnunet["foreground_mean"][metric] for metric in ("Dice", "IoU")),
        *(nnunet["mean"][label][metric] for metric in ("Dice", "IoU") for label in ("1", "2")),
    ]
    assert list(metrics.values()) == pytest.approx(expected, abs=6e-5)
    assert len(set(metrics.values())) == len(metrics)


def test_card_says_what_was_measured_on_what(workspace, bundle):
    card = card_of(bundle)
    assert "network a, mirroring as the training allows" in card and "validation cases (fold 0: 3)" in card
    rows = {row.split(" | ")[0][2:]: row for row in card.splitlines() if row.endswith("|")}
    nnunet = json.loads((workspace / "summary.json").read_text(encoding="utf-8"))
    assert f"{nnunet['mean']['1']['Dice']:.3f} ± " in rows["shell"] and rows["shell"].endswith("| 3 |")
    assert rows["core"].endswith("| 2 |")  # undefined in case c
    assert f"| mean | {nnunet['foreground_mean']['Dice']:.3f} |" in card
    plot = bundle / "docs" / "validation_dice.png"
    assert plot.read_bytes().startswith(b"\x89PNG") and "(validation_dice.png)" in card
    assert not (bundle / "docs" / "training_fold_0.png").exists()


def test_training_plots_are_taken(model_folder, bundle, tmp_path):
    for name in ("progress.png", "progress_alhvr.png"):
        shutil.copyfile(bundle / "docs" / "validation_dice.png", model_folder / "fold_0" / name)
    found = export_bundle(model_folder=str(model_folder), output=str(tmp_path / "bundle"))
    for name in ("training_fold_0.png", "training_alhvr_fold_0.png"):
        assert (found / "docs" / name).is_file() and f"![Training curves]({name})" in card_of(found)


def test_a_fold_counts_as_its_cases(workspace, model_folder, tmp_path):
    """Case a alone is the validation of fold 1."""
    content = json.loads((workspace / "summary.json").read_text(encoding="utf-8"))
    of_case = {"metric_per_case": content["metric_per_case"][:1]}
    (tmp_path / "one.json").write_text(json.dumps(of_case))
    validate(model_folder, 1, tmp_path / "one.json")
    results = validation_results(find_model_in_folder(model_folder, "0,1"), "a")
    dice = [case["metrics"]["1"]["Dice"] for case in content["metric_per_case"]]
    assert results.classes["shell"]["Dice"].mean == pytest.approx(statistics.fmean([*dice, dice[0]]))
    assert results.classes["shell"]["Dice"].n == 4 and results.classes["core"]["Dice"].n == 3
    assert (
        "(fold 0: 3, fold 1: 1)" in results.summary
        and "ensemble of them in this bundle was not measured" in results.summary
    )


def test_regions_as_nnunet_names_them(workspace, region_folder, tmp_path):
    folder = Path(shutil.copytree(region_folder, tmp_path / region_folder.name))
    files = [str(workspace / where / "a.nii.gz") for where in ("references", "predicted")]
    case = compute_metrics(*files, SimpleITKIO(), [(1, 2), 2])
    case["metrics"] = {
        region: {key: float(value) for key, value in scores.items()} for region, scores in case["metrics"].items()
    }
    means = {key: dict(scores) for key, scores in case["metrics"].items()}
    summary = {"metric_per_case": [case], "mean": means, "foreground_mean": means[2]}
    save_summary_json(summary, str(tmp_path / "summary.json"))
    validate(folder, 0, tmp_path / "summary.json")
    metrics = eval_metrics(validation_results(find_model_in_folder(folder), "a"))
    assert metrics["dice_whole"] == pytest.approx(case["metrics"][(1, 2)]["Dice"], abs=6e-5)
    assert metrics["dice_core"] == pytest.approx(case["metrics"][2]["Dice"], abs=6e-5)


@pytest.mark.parametrize("network", ["b", "both"])
def test_nothing_is_said_of_networks_that_were_not_measured(model_folder, network, tmp_path):
    bundle = export_bundle(model_folder=str(model_folder), output=str(tmp_path / "bundle"), network=network)
    assert metadata_of(bundle)["eval_metrics"] == {}
    assert "validation measures network a alone" in card_of(bundle)
    assert not (bundle / "docs" / "validation_dice.png").exists()


def test_validation_on_training_cases_is_not_reported(workspace, model_folder):
    (model_folder / "fold_0").rename(model_folder / "fold_all")
    assert "cases that it trains on" in validation_results(find_model_in_folder(model_folder, "all"), "a")


def test_validation_of_other_weights_is_not_reported(model_folder):
    shutil.copyfile(model_folder / "fold_0" / "checkpoint_final.pth", model_folder / "fold_0" / "checkpoint_best.pth")
    model = find_model_in_folder(model_folder, 0, "checkpoint_best.pth")
    assert "made from checkpoint_best.pth" in validation_results(model, "a")


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "{}",
        '{"metric_per_case": []}',
        '{"metric_per_case": 3}',
        '{"metric_per_case": [{"metrics": {"1": {"Dice": 0.5, "IoU": 0.4}}}]}',
        '{"metric_per_case": [{"metrics": {"1": {"Dice": 2, "IoU": 0.4}, "2": {"Dice": 0.5, "IoU": 0.4}}}]}',
        '{"metric_per_case": [{"metrics": {"1": {"Dice": null, "IoU": 0.4}, "2": {"Dice": 0.5, "IoU": 0.4}}}]}',
        '{"metric_per_case": [{"metrics": {"1": {"Dice": 0.5, "IoU": 0.4}, "7": {"Dice": 0.5, "IoU": 0.4}}}]}',
    ],
)
def test_damaged_validation_is_said_to_be(model_folder, content):
    (model_folder / "fold_0" / "validation" / "summary.json").write_text(content)
    assert "are damaged" in validation_results(find_model_in_folder(model_folder), "a")


def test_evaluation_gives_the_metrics(workspace, model_folder, tmp_path):
    scores = workspace / "scores" / "metrics.json"
    bundle = export_bundle(model_folder=str(model_folder), output=str(tmp_path / "bundle"), evaluation=str(scores))
    measured, metrics = json.loads(scores.read_text(encoding="utf-8")), metadata_of(bundle)["eval_metrics"]
    means = {f"mean_{key}" for key in ("dice", "jaccard", "hd95_mm", "hd95_pooled_mm", "asd_mm")}
    assert set(metrics) == means | {f"{key}_{name}" for key in ("dice", "jaccard") for name in ("shell", "core")}
    assert metrics["mean_hd95_mm"] == pytest.approx(measured["overall"]["HD95"]["mean"], abs=6e-5)
    assert metrics["dice_core"] == pytest.approx(measured["classes"]["core"]["Dice"]["mean"], abs=6e-5)
    card = card_of(bundle)
    assert "predictions of 3 cases" in card and "HD95 (mm)" in card
    assert card.index("#### Evaluation") < card.index("#### nnU-Net's validation")
    assert (bundle / "docs" / "evaluation_dice.png").is_file() and "(evaluation_dice.png)" in card


def test_both_measure_the_same_dice(workspace, model_folder):
    """nnU-Net's evaluation and ours, on the same label maps."""
    model = find_model_in_folder(model_folder)
    nnunet = validation_results(model, "a")
    ours = evaluation_results(workspace / "scores" / "metrics.json", model)
    for name, metric in itertools.product(("shell", "core"), ("Dice", "Jaccard")):
        one, other = ours.classes[name][metric], nnunet.classes[name][metric]
        assert (one.mean, one.n) == (pytest.approx(other.mean, rel=1e-5), other.n)  # MONAI's are in single precision
        assert one.sd == pytest.approx(other.sd, rel=1e-3)
    assert ours.dice["core"] == pytest.approx(nnunet.dice["core"], rel=1e-5) and len(ours.dice["core"]) == 2


def test_other_evaluations_are_refused(workspace, model_folder, region_folder, tmp_path):
    scores = workspace / "scores" / "metrics.json"
    with pytest.raises(InputError, match=r"measures shell, core, but the model's classes are whole, core"):
        evaluation_results(scores, find_model_in_folder(region_folder))
    with pytest.raises(InputError, match=r"nowhere\.json does not exist; name the metrics\.json"):
        evaluation_results(tmp_path / "nowhere.json", find_model_in_folder(model_folder))
    content = json.loads(scores.read_text(encoding="utf-8"))
    for wrong in (2.0, math.nan, "good", [], True):
        content["classes"]["shell"]["Dice"]["mean"] = wrong
        (tmp_path / "metrics.json").write_text(json.dumps({**content, "cases": []} if wrong is True else content))
        with pytest.raises(InputError, match=r"metrics\.json is not a metrics\.json of alhvr evaluate$"):
            evaluation_results(tmp_path / "metrics.json", find_model_in_folder(model_folder))


# --- card -----------------------------------------------------------------------------------------------------------


def test_card_of_an_alhvr_model(bundle):
    card = card_of(bundle)
    assert "{{" not in card and "{%" not in card
    assert "ALHVR (adaptive learning of high-value regions) [1]" in card and "[1] Lei T." in card
    for fact in ("| patch (voxels) | 16 × 20 |", "| batch | 2 samples |", "2.5 × 1.1", "| epochs | fold 0: 3 |"):
        assert fact in card
    assert "`PlainConvUNet` with 4, 8, 8 features" in card
    assert "not a medical device" in card


def test_card_of_a_rivals_model(region_folder, tmp_path):
    """nnU-Net's folders carry the trainer's name."""
    folder = tmp_path / region_folder.name.replace("nnUNetTrainer", "UAMTTrainer_5epochs")
    shutil.copytree(region_folder, folder)
    bundle = export_bundle(model_folder=str(folder), output=str(tmp_path / "bundle"))
    metadata, card = metadata_of(bundle), card_of(bundle)
    assert "trained with UA-MT (uncertainty-aware mean teacher) [1]" in card and "[1] Yu L." in card
    assert "also learned from unlabeled images" in card
    assert "trained with UA-MT on labeled and unlabeled images" in metadata["description"]


def test_card_of_a_labeled_only_model(region_folder, tmp_path):
    """The package's own baseline sees no unlabeled image, and its card claims none."""
    folder = tmp_path / region_folder.name.replace("nnUNetTrainer", "SupervisedTrainer_5epochs")
    shutil.copytree(region_folder, folder)
    bundle = export_bundle(model_folder=str(folder), output=str(tmp_path / "bundle"))
    assert "unlabel" not in card_of(bundle).lower()
    assert "unlabel" not in metadata_of(bundle)["description"]


def test_sections_stand_in_the_zoos_order(bundle):
    titles = re.findall(r"^##? (.+)$", card_of(bundle), re.MULTILINE)
    wanted = ["Model Overview", "Data", "Method", "Training configuration", "Performance", "Commands", "References"]
    assert [title for title in titles if title in wanted] == wanted


def test_pictures_and_links_of_the_card_exist(bundle):
    links = re.findall(r"\]\(([^)]+)\)", card_of(bundle))
    assert links and [link for link in links if not (bundle / "docs" / link).is_file()] == []


def test_commands_of_the_card_exist(bundle):
    blocks = "".join(re.findall(r"```bash\n(.*?)```", card_of(bundle), re.DOTALL)).replace("\\\n", " ")
    installed = {script.name for script in entry_points(group="console_scripts")}
    nnunets = set(re.findall(r"\bnnUNetv2_\w+", blocks))
    assert nnunets and nnunets <= installed
    assert len(re.findall(r"^(?:python|torchrun) ", blocks, re.MULTILINE)) == 8


def test_files_that_the_card_names_exist(bundle):
    named = set(re.findall(r"(?<![\w/…])((?:configs|models|scripts)/[\w.]*|\w+\.(?:json|sha256))", card_of(bundle)))
    made_by_users = {"models/model.ts"}
    assert len(named) > 8
    assert [name for name in sorted(named - made_by_users) if not (bundle / name).exists()] == []


# --- options --------------------------------------------------------------------------------------------------------


def test_model_folder_needs_no_nnunet_folders(model_folder, bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", "set")  # so that it can be unset
    set_nnunet(monkeypatch, nnUNet_results=None)
    found = export_bundle(model_folder=f"{model_folder}/", output=str(tmp_path / "bundle"))
    one, other = (torch.load(each / "models" / "model.pt", weights_only=True) for each in (found, bundle))
    assert list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)
    assert metadata_of(found)["nnunet"] == metadata_of(bundle)["nnunet"]
    assert metadata_of(found)["nnunet"]["dataset"] == DATASET  # as the plans name it, wherever the folder lies


def test_mirroring(model_folder, region_folder, bundle, tmp_path):
    off = export_bundle(model_folder=str(model_folder), output=str(tmp_path / "off"), mirroring=False)
    config = json.loads((off / "configs" / "inference.json").read_text(encoding="utf-8"))
    assert (config["use_mirroring"], config["mirror_axes"]) == (False, [0, 1])
    assert "| off; `--use_mirroring True` mirrors axes 0, 1" in card_of(off)
    assert "no mirroring, was not measured" in card_of(off)
    assert json.loads((bundle / "configs" / "inference.json").read_text(encoding="utf-8"))["use_mirroring"] is True
    assert "| axes 0, 1, as in the training |" in card_of(bundle) and "was not measured by it" not in card_of(bundle)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": "1.0"}, r"version is '1\.0'; it must be MAJOR\.MINOR\.PATCH"),
        ({"version": "1.0.0-rc1"}, r"version is '1\.0\.0-rc1'; it must be"),
        ({"version": 1.0}, r"version is 1\.0; it must be"),
        ({"mirroring": "maybe"}, r"mirroring is 'maybe'; it must be True or False"),
        ({"author": " ; "}, r"author is ' ; '; it must name at least one"),
        ({"license": " "}, r"license is ' '; it must not be blank"),
        ({"changelog": "two\nlines"}, r"changelog is 'two\\nlines'; it must be one line"),
        ({"name": "n" * 3000}, r"name has 3000 characters"),
        ({"data_source": 5}, r"data_source is 5; it must be text"),
        ({"dataset": 901, "trainer": "X"}, r"model_folder names the model already; leave out dataset, trainer"),
        ({"model_folder": None}, r"name the model: dataset and configuration \(-d 27 -c 2d\), or model_folder"),
        ({"model_folder": None, "dataset": 901}, r"name the model: dataset and configuration"),
        ({"model_folder": "/nowhere/T__P__2d"}, r"model_folder /nowhere/T__P__2d is missing"),
        ({"weights_file": "/etc/passwd"}, r"weights_file '/etc/passwd' is not the name of a checkpoint"),
        ({"fold": 3}, r"no fold 3 in .*: it holds fold_0, fold_1$"),
    ],
)
def test_bad_options_are_one_line(model_folder, options, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        export_bundle(**{"model_folder": str(model_folder), "output": str(tmp_path / "bundle"), **options})
    assert "\n" not in str(caught.value) and not (tmp_path / "bundle").exists()


def test_other_folders_are_no_model(model_folder, tmp_path):
    with pytest.raises(InputError, match=r"is not named TRAINER__.*in it: ALHVRTrainer__ALHVRPlans__2d"):
        find_model_in_folder(model_folder.parent)
    with pytest.raises(InputError, match=r"fold_0 is not named TRAINER__PLANS__CONFIGURATION"):
        find_model_in_folder(model_folder / "fold_0")
    empty = tmp_path / "T__P__2d"
    empty.mkdir()
    with pytest.raises(InputError, match=r"dataset\.json does not exist"):
        find_model_in_folder(empty)


def test_command_line(model_folder, tmp_path):
    words = ["export_bundle", "-m", str(model_folder), "-o", str(tmp_path / "bundle"), "--nomirroring", "-v", "2.0.0"]
    assert cli.main([*words, "--author", "Doe, A.; Roe, B.", "--name", "2024"]) == 0
    metadata = metadata_of(tmp_path / "bundle")
    assert (metadata["authors"], metadata["name"], metadata["version"]) == ("Doe, A., Roe, B.", "2024", "2.0.0")


# --- versions -------------------------------------------------------------------------------------------------------


def test_versions_of_a_bundle(model_folder, tmp_path):
    def exported(**options: str) -> dict[str, Any]:
        return metadata_of(export_bundle(model_folder=str(model_folder), output=str(tmp_path / "bundle"), **options))

    first = exported(changelog="first")
    assert first["changelog"] == {"0.1.0": "first"}
    assert exported()["changelog"] == {"0.1.0": "first"}
    assert exported(changelog="corrected")["changelog"] == {"0.1.0": "corrected"}
    later = exported(version="0.10.0")
    assert list(later["changelog"]) == ["0.10.0", "0.1.0"] and later["changelog"]["0.1.0"] == "corrected"
    assert later["changelog"]["0.10.0"].startswith("export of network a of fold 0")
    with pytest.raises(InputError, match=r"^version 0\.9\.0 is lower than 0\.10\.0.*\(--version 0\.10\.1\)$"):
        exported(version="0.9.0")
    assert metadata_of(tmp_path / "bundle") == later


@pytest.mark.parametrize(
    "previous",
    [
        {},
        {"version": 3, "changelog": ["0.9.0"]},
        {"version": "new", "changelog": {"latest": "x", "0.0.1": 5, "0.0.2": ""}},
        {"version": "9" * 5000 + ".0.0", "changelog": None},
    ],
)
def test_damaged_history_is_left_out(previous):
    assert next_changelog(previous, "0.1.0", "", "new") == {"0.1.0": "new"}
