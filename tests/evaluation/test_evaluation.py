"""alhvr evaluate against values worked out by hand."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from alhvr_trainer.bundle.scripts.metrics import case_metrics, summarize, table
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter

from alhvr_trainer.errors import InputError
from alhvr_trainer.evaluation.evaluate import evaluate
from alhvr_trainer.experiments.demo.phantom import write_volume

pytestmark = pytest.mark.any_nnunet

ORGAN = {"organ": 1}
DATASET_JSON = {"labels": {"background": 0, "A": 1, "B": 2}, "file_ending": ".nii.gz"}


def _cube(start: int, value: int = 1, size: int = 12) -> np.ndarray:
    """A 4-voxel cube that begins at slice ``start``, row 2, column 2."""
    volume = np.zeros((size, size, size), np.uint8)
    volume[start : start + 4, 2:6, 2:6] = value
    return volume


@pytest.mark.parametrize(("spacing", "hd95", "asd"), [((1, 1, 1), 1.0, 20 / 56), ((3, 1, 1), 3.0, 52 / 56)])
def test_shifted_cube(spacing, hd95, asd):
    """A cube of 4³ shifted by one slice: 48 voxels in common, 80 in the union; 56 surface voxels.

    16 of the prediction's surface voxels stick out by one slice. Four (the inner ones of its other face) lie
    inside the reference, one in-plane step from its side. The 36 others lie on the reference's surface.
    """
    scores = case_metrics(_cube(3), _cube(2), ORGAN, spacing)["organ"]
    assert scores["Dice"] == pytest.approx(2 * 48 / 128)
    assert scores["Jaccard"] == pytest.approx(48 / 80)
    assert scores["HD95"] == pytest.approx(hd95)
    assert scores["ASD"] == pytest.approx(asd)


def test_asd_is_directed_and_hd95_is_not():
    reference = np.zeros((3, 3, 11), np.uint8)
    reference[1, 1] = 1
    prediction = np.zeros_like(reference)
    prediction[1, 1, 0] = 1
    scores = case_metrics(prediction, reference, ORGAN, (5, 5, 2))["organ"]
    assert scores["ASD"] == 0.0  # every voxel of the prediction lies on the reference
    # the reference's 11 voxels are 0, 2, …, 20 mm away: 95th percentile 19
    assert scores["HD95"] == pytest.approx(19.0)
    assert scores["HD95_pooled"] == pytest.approx(18.9)  # the prediction's one distance of 0 among them
    backward = case_metrics(reference, prediction, ORGAN, (5, 5, 2))["organ"]
    assert backward["ASD"] == pytest.approx(10.0)
    assert backward["HD95"] == pytest.approx(19.0)


def _by_scipy(prediction: np.ndarray, reference: np.ndarray, spacing) -> tuple[np.ndarray, np.ndarray]:
    """Surface distances as medpy computes them, in both directions."""
    surfaces = [mask & ~binary_erosion(mask) for mask in (prediction, reference)]
    maps = [distance_transform_edt(~surface, sampling=spacing) for surface in surfaces]
    return maps[1][surfaces[0]], maps[0][surfaces[1]]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (4.0, 0.7, 1.3)])
def test_distances_are_those_of_scipy_and_monai(spacing):
    noise = gaussian_filter(np.random.default_rng(1).normal(size=(2, 14, 18, 16)), (0, 2, 2, 2))
    prediction, reference = noise > np.quantile(noise, 0.7)
    scores = case_metrics(prediction.astype(int), reference.astype(int), ORGAN, spacing)["organ"]
    there, back = _by_scipy(prediction, reference, spacing)
    assert scores["HD95"] == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
    assert scores["HD95_pooled"] == pytest.approx(np.percentile(np.hstack([there, back]), 95))
    assert scores["ASD"] == pytest.approx(there.mean())
    masks = [torch.from_numpy(mask[None, None]).float() for mask in (prediction, reference)]
    options = {"include_background": True, "spacing": spacing}
    assert scores["HD95"] == pytest.approx(compute_hausdorff_distance(*masks, percentile=95, **options).item())
    assert scores["ASD"] == pytest.approx(compute_average_surface_distance(*masks, **options).item())


def test_false_blob_that_only_the_larger_percentile_sees():
    """7 % of the prediction's surface is a blob far from the ball: under 5 % of both surfaces together."""
    grid = np.indices((40, 40, 80))
    ball = sum((axis - 19) ** 2 for axis in grid) <= 15**2
    blob = sum((axis - center) ** 2 for axis, center in zip(grid, (19, 19, 60), strict=True)) <= 4.5**2
    surfaces = [int((mask & ~binary_erosion(mask)).sum()) for mask in (blob, ball)]
    assert 0.06 < surfaces[0] / sum(surfaces) < 0.08
    scores = case_metrics((ball | blob).astype(int), ball.astype(int), ORGAN, (1, 1, 1))["organ"]
    assert scores["HD95_pooled"] == 0.0
    assert scores["HD95"] > 20


def test_classes_are_measured_apart_and_two_dimensions_work():
    reference = np.zeros((6, 6), np.uint8)
    reference[1:3, 1:3], reference[4, 1:5] = 1, 2
    prediction = reference.copy()
    prediction[4, 1:3] = 1
    scores = case_metrics(prediction, reference, {"A": 1, "B": 2}, (1, 1))
    assert scores["A"]["Dice"] == pytest.approx(2 * 4 / (6 + 4))
    assert scores["B"]["Dice"] == pytest.approx(2 * 2 / (2 + 4))


@pytest.mark.parametrize(("predicted", "present", "side", "overlap"), [
    (True, False, "reference", 0.0), (False, True, "prediction", 0.0), (False, False, "both", math.nan),
])  # fmt: skip
def test_empty(predicted, present, side, overlap):
    scores = case_metrics(_cube(2) * predicted, _cube(2) * present, ORGAN, (1, 1, 1))["organ"]
    assert scores["empty"] == side
    assert [scores["Dice"], scores["Jaccard"]] == pytest.approx([overlap, overlap], nan_ok=True)
    assert all(math.isnan(scores[distance]) for distance in ("HD95", "HD95_pooled", "ASD"))


def _scores(dice: float, distance: float = 1.0, empty: str = "") -> dict:
    return {"Dice": dice, "Jaccard": dice, "HD95": distance, "HD95_pooled": distance, "ASD": distance, "empty": empty}


def test_means_leave_out_what_is_undefined_and_say_so():
    cases = {
        "one": {"A": _scores(0.8, 2.0), "B": _scores(0.6, 4.0)},
        "two": {"A": _scores(0.0, math.nan, "prediction"), "B": _scores(0.9, 6.0)},
        "three": {"A": _scores(math.nan, math.nan, "both"), "B": _scores(0.3, math.nan, "reference")},
    }
    result = summarize(cases)
    assert result["classes"]["A"]["Dice"] == pytest.approx(
        {"mean": 0.4, "sd": 0.8 / math.sqrt(2), "sd_population": 0.4, "n": 2}
    )
    assert result["classes"]["A"]["HD95"] == {"mean": 2.0, "sd": None, "sd_population": 0.0, "n": 1}
    # per case first (0.7, 0.45, 0.3), then over the cases
    assert result["overall"]["Dice"]["mean"] == pytest.approx((0.7 + 0.45 + 0.3) / 3)
    assert result["empty"]["A"] == {"prediction": 1, "reference": 0, "both": 1}
    assert result["cases"]["three"]["A"]["Dice"] is None
    text = table(result)
    assert "A is empty in the prediction of 1 case(s): Dice and Jaccard 0, distances left out" in text
    assert "A is empty in both prediction and reference of 1 case(s): left out" in text
    assert "B is predicted in 1 case(s) without it: Dice and Jaccard 0, distances left out" in text
    assert "HD95 mm" in text and "HD95_pooled mm" in text and "ASD mm" in text
    assert "ASD: from the prediction's surface to the reference's" in text


def test_results_from_before_a_metric_was_measured():
    old = {"A": {key: value for key, value in _scores(0.8).items() if key != "HD95_pooled"}}
    result = summarize({"old": old, "new": {"A": _scores(0.6, 3.0)}})
    assert result["classes"]["A"]["HD95_pooled"] == {"mean": 3.0, "sd": None, "sd_population": 0.0, "n": 1}
    assert result["overall"]["HD95"]["mean"] == 2.0
    assert summarize({"old": old})["overall"]["HD95_pooled"]["mean"] is None


@pytest.fixture
def folders(tmp_path):
    """Two cases; the prediction of the second is shifted by one slice of 3 mm."""
    for role, starts in (("predictions", (2, 3)), ("references", (2, 2))):
        (tmp_path / role).mkdir()
        for case, start in zip(("first", "second"), starts, strict=True):
            volume = _cube(start) + np.roll(_cube(start, value=2), 6, axis=2)
            write_volume(volume, tmp_path / role / f"{case}.nii.gz", spacing=(3.0, 1.0, 1.0))
    return tmp_path


def test_folders(folders, capsys):
    result = evaluate(folders / "predictions", folders / "references", DATASET_JSON, folders / "out")
    assert result["cases"]["first"]["A"] == {
        "Dice": 1.0,
        "Jaccard": 1.0,
        "HD95": 0.0,
        "HD95_pooled": 0.0,
        "ASD": 0.0,
        "empty": "",
    }
    # the spacing comes from the files, in array order: 3 mm across slices
    assert result["cases"]["second"]["B"]["HD95"] == pytest.approx(3.0)
    assert result["overall"]["Dice"]["mean"] == pytest.approx(0.875)
    assert json.loads((folders / "out" / "metrics.json").read_text()) == result
    with open(folders / "out" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["class"]) for row in rows] == [(c, k) for c in ("first", "second") for k in "AB"]
    assert float(rows[2]["ASD"]) == pytest.approx(52 / 56)
    assert "0.875 ± 0.177" in capsys.readouterr().out


def test_dataset_json_from_file_and_whole_numbers_stored_as_floats(folders):
    (folders / "dataset.json").write_text(json.dumps(DATASET_JSON))
    file = folders / "predictions" / "first.nii.gz"
    volume = (_cube(2) + np.roll(_cube(2, value=2), 6, axis=2)).astype(np.float32)
    write_volume(volume, file, spacing=(3.0, 1.0, 1.0))
    result = evaluate(folders / "predictions", folders / "references", folders / "dataset.json")
    assert result["cases"]["first"]["A"]["Dice"] == 1.0


def _remove_prediction(folders):
    (folders / "predictions" / "second.nii.gz").unlink()


def _rename_predictions(folders):
    for number, file in enumerate(list((folders / "predictions").iterdir())):
        file.rename(file.with_name(f"other{number}.nii.gz"))


def _clear_predictions(folders):
    for file in list((folders / "predictions").iterdir()):
        file.unlink()


def _truncate(folders):
    file = folders / "predictions" / "second.nii.gz"
    file.write_bytes(file.read_bytes()[:100])


def _not_an_image(folders):
    (folders / "predictions" / "second.nii.gz").write_text("no image")


def _write(folders, volume, **geometry):
    geometry = {"spacing": (3.0, 1.0, 1.0), **geometry}
    write_volume(volume, folders / "predictions" / "second.nii.gz", **geometry)


@pytest.mark.parametrize(("spoil", "message"), [
    (_remove_prediction, r"1 of 2 references have no prediction in .*predictions: second; predict them"),
    (_rename_predictions, r"no file in .*predictions has the name of a file in .*references"),
    (_clear_predictions, r'no file in the folder of predictions .*predictions ends in "\.nii\.gz", as'),
    (_truncate, r"cannot read .*second\.nii\.gz \(damaged or not an image\): \S+"),
    (_not_an_image, r"cannot read .*second\.nii\.gz \(damaged or not an image\): \S+"),
    (lambda f: _write(f, _cube(2, size=11)), r"size \(11, 11, 11\) of .*predictions.second.* differs from"),
    (lambda f: _write(f, _cube(2), spacing=(1, 1, 1)), r"spacing .*predictions.second.* from \(1.0, 1.0, 3"),
    (lambda f: _write(f, _cube(2), origin=(5, 0, 0)), r"origin \(5.0, 0.0, 0.0\) of .*predictions.second"),
    (lambda f: _write(f, _cube(2, value=7)), r"second\.nii\.gz has values that .*: 7; labels are 0, 1, 2$"),
    (lambda f: _write(f, _cube(2) * np.float32(0.5)), r"second\.nii\.gz: 64 voxels are no whole number; a label"),
])  # fmt: skip
def test_bad_files(folders, spoil, message):
    spoil(folders)
    with pytest.raises(InputError, match=message):
        evaluate(folders / "predictions", folders / "references", DATASET_JSON)


def test_the_same_folder_twice_and_a_file_as_output(folders, tmp_path):
    with pytest.raises(InputError, match="are the same folder: predictions would be their own references"):
        evaluate(folders / "predictions", folders / ".." / folders.name / "predictions", DATASET_JSON)
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(InputError, match=r"output .*notes is a file; name a folder"):
        evaluate(folders / "predictions", folders / "references", DATASET_JSON, output=tmp_path / "notes")


def test_only_predicted_leaves_references_out_and_says_so(folders, capsys):
    _remove_prediction(folders)
    result = evaluate(folders / "predictions", folders / "references", DATASET_JSON, only_predicted=True)
    assert list(result["cases"]) == ["first"]
    assert "left out, references without prediction: second" in capsys.readouterr().out


@pytest.mark.parametrize(("labels", "message"), [
    ({"background": 0, "whole": [1, "2"]}, '"labels" is .*whole.*; it must be'),
    ({"background": 0, "whole": []}, '"labels" is .*whole.*; it must be'),
    ({"background": 0}, "no label besides the background"),
])  # fmt: skip
def test_bad_labels(folders, labels, message):
    with pytest.raises(InputError, match=message):
        evaluate(folders / "predictions", folders / "references", {**DATASET_JSON, "labels": labels})


def test_regions_overlap(folders):
    labels = {"background": 0, "whole": [1, 2], "A": 1, "B": 2}
    result = evaluate(folders / "predictions", folders / "references", {**DATASET_JSON, "labels": labels})
    for case in ("first", "second"):
        prediction, reference = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(folders / kind / f"{case}.nii.gz"))) > 0
            for kind in ("predictions", "references")
        )
        expected = 2 * (prediction & reference).sum() / (prediction.sum() + reference.sum())
        assert result["cases"][case]["whole"]["Dice"] == pytest.approx(expected)
    assert set(result["classes"]) == {"whole", "A", "B"}


def test_ignored_voxels_change_nothing():
    reference, prediction = _cube(2).astype(int), _cube(3).astype(int)
    expected = case_metrics(prediction, reference, ORGAN, (1, 1, 1), ignore=9)["organ"]
    assert expected == case_metrics(prediction, reference, ORGAN, (1, 1, 1))["organ"]
    far = np.zeros(reference.shape, bool)
    far[-1] = True  # nobody annotated this slice
    assert not (reference.astype(bool) & far).any()
    wrong = np.where(far, 1, prediction)
    ignored = case_metrics(wrong, np.where(far, 9, reference), ORGAN, (1, 1, 1), ignore=9)["organ"]
    assert ignored == case_metrics(np.where(far, 0, prediction), reference, ORGAN, (1, 1, 1))["organ"]
    assert ignored != case_metrics(wrong, reference, ORGAN, (1, 1, 1))["organ"]


def test_bad_dataset_json(folders):
    file = folders / "dataset.json"
    file.write_text(json.dumps({"labels": DATASET_JSON["labels"]}))
    with pytest.raises(InputError, match=r'dataset\.json: "file_ending" is missing; it must be an ending like'):
        evaluate(folders / "predictions", folders / "references", file)
    file.write_text("{")
    with pytest.raises(InputError, match=r"dataset\.json is not valid JSON"):
        evaluate(folders / "predictions", folders / "references", file)


def test_metrics_do_not_go_into_a_raw_dataset(folders, tmp_path):
    raw = tmp_path / "nnUNet_raw" / "Dataset001_Raw"
    for name in ("imagesTr", "labelsTr"):
        (raw / name).mkdir(parents=True)
    (raw / "dataset.json").write_text("{}")
    with pytest.raises(InputError, match="labelsTr belongs to the raw dataset Dataset001_Raw"):
        evaluate(folders / "predictions", folders / "references", DATASET_JSON, raw / "labelsTr")


def test_missing_paths(folders):
    with pytest.raises(InputError, match=r"nowhere\.json does not exist"):
        evaluate(folders / "predictions", folders / "references", folders / "nowhere.json")
    with pytest.raises(InputError, match=r"references .*nowhere is missing; name a folder"):
        evaluate(folders / "predictions", folders / "nowhere", DATASET_JSON)
    (folders / "afile").touch()
    with pytest.raises(InputError, match=r"predictions .*afile is a file; name a folder"):
        evaluate(folders / "afile", folders / "references", DATASET_JSON)
