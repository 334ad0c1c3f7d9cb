"""What a report is made from: the training's curves and warnings, which cases are shown, and their colors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from finished_training import WARNING

from alhvr_trainer.data.stream import evenly
from alhvr_trainer.errors import InputError
from alhvr_trainer.reports.cases import least_sure, prepared, read_validation, worst
from alhvr_trainer.reports.figures import plt
from alhvr_trainer.reports.page import render
from alhvr_trainer.reports.slices import fullest_slice, slice_figure
from alhvr_trainer.reports.training import Training, curve_figure, curves_in_words, curves_of, warnings_in
from alhvr_trainer.reports.viewer import legend, look
from alhvr_trainer.reports.volumes import as_volume

pytestmark = pytest.mark.any_nnunet

CLASSES = {"shell": (1,), "core": (2,)}
UNIT = {"spacing": (1.0, 1.0, 1.0)}


def test_plots_without_values_are_left_out():
    panels = {"loss": {"a": "loss_a", "b": "loss_b"}, "gone": {"c": "loss_c"}}
    assert curves_of(panels, {"loss_a": [1.0, 0.5], "loss_b": []}) == {"loss": {"a": [1.0, 0.5]}}


def test_curves_in_words():
    training = Training(2, {"loss": {"a": [1.0, 0.25], "b": [2.0, 0.5]}}, {}, {}, [])
    assert curves_in_words(training) == "Training curves. loss: a from 1 to 0.25, b from 2 to 0.5."


@pytest.mark.parametrize("dark", [False, True])
def test_figure_has_a_plot_for_each_panel_and_one_for_the_shares(dark: bool):
    shares = {f"{kind}_1": [0.1, 0.2] for kind in ("label", "pseudo_label")}
    figure = curve_figure(Training(2, {"loss": {"a": [1.0, 0.5]}}, {1: "organ"}, shares, []), dark)
    titles = [ax.get_title() for ax in figure.axes if ax.get_visible()]
    assert titles == ["loss", "share of voxels, pseudo-labels (labels: dashed)"]
    assert np.mean(figure.get_facecolor()[:3]) == (0 if dark else 1)


def test_warnings_are_told_apart_and_counted(tmp_path: Path):
    other = "the two networks have become identical: in epochs {} to {} they differ on 0.0000% of the voxels"
    lines = [f"2026-01-01 10:00:0{n}: ALHVR WARNING: {WARNING.format(n, n + 4)}" for n in range(3)]
    (tmp_path / "training_log_1.txt").write_text("\n".join([*lines, "epoch 4"]), encoding="utf-8")
    (tmp_path / "training_log_2.txt").write_text(f"x: ALHVR WARNING: {other.format(5, 9)}\n", encoding="utf-8")
    assert warnings_in(tmp_path) == [(WARNING.format(2, 6), 3), (other.format(5, 9), 1)]
    assert warnings_in(tmp_path / "nothing") == []


def test_worst_cases_come_first():
    dice = {"good": {"a": 0.9}, "bad": {"a": 0.1, "b": 0.3}, "nothing": {}, "also bad": {"a": 0.2}}
    assert worst(dice, 2) == ["also bad", "bad"]
    assert worst(dice, 0) == []


def test_cases_are_spread_evenly():
    names = [f"{number}" for number in range(10)]
    assert evenly(names, 4) == ["0", "3", "6", "9"]
    assert evenly(names, 1) == ["0"]
    assert evenly(names, 0) == []
    assert evenly(names, 99) == names


def test_least_sure_cases_come_first(tmp_path: Path):
    for case, value in {"sure": 0.9, "unsure": 0.3, "empty": None}.items():
        (tmp_path / f"{case}.json").write_text(json.dumps({"expected_dice": value}), encoding="utf-8")
    assert least_sure(tmp_path, ["sure", "unsure", "empty"], 2) == ["empty", "unsure"]


def write_summary(folder: Path, metrics: object) -> Path:
    entry = {"prediction_file": "/elsewhere/case.one.nii.gz", "metrics": metrics}
    (folder / "summary.json").write_text(json.dumps({"metric_per_case": [entry]}), encoding="utf-8")
    return folder


def test_validation_is_read_by_class(tmp_path: Path):
    folder = write_summary(tmp_path, {"1": {"Dice": 0.5}, "2": {"Dice": float("nan")}})
    assert read_validation(folder, CLASSES, ".nii.gz") == {"case.one": {"shell": 0.5}}


def test_validation_of_regions(tmp_path: Path):
    folder = write_summary(tmp_path, {"(1, 2)": {"Dice": 0.5}, "2": {"Dice": 0.25}})
    found = read_validation(folder, {"whole": (1, 2), "core": (2,)}, ".nii.gz")
    assert found == {"case.one": {"whole": 0.5, "core": 0.25}}


def test_a_training_need_not_be_validated(tmp_path: Path):
    assert read_validation(tmp_path, CLASSES, ".nii.gz") is None


@pytest.mark.parametrize("metrics", [{}, {"1": 0.5}, {"1": {"Dice": "high"}}, None])
def test_a_damaged_summary_is_named(metrics: object, tmp_path: Path):
    folder = write_summary(tmp_path, metrics)
    with pytest.raises(InputError, match=r"summary\.json is not what nnU-Net writes .*; validate again: alhvr train"):
        read_validation(folder, CLASSES, ".nii.gz")


def test_volumes_of_a_case_lie_on_one_grid():
    volumes = {"image": as_volume(np.zeros((4, 5, 6)), UNIT), "reference": as_volume(np.zeros((4, 5, 5)), UNIT, True)}
    with pytest.raises(InputError, match=r"the files of case a have different sizes: image \(6, 5, 4\), reference \(5"):
        prepared(volumes, "a")


def test_fullest_slice():
    masks = [np.zeros((5, 2, 2)), np.zeros((5, 2, 2))]
    assert fullest_slice(masks) == 2
    masks[0][1], masks[1][3, 0] = 1, 2
    assert fullest_slice(masks) == 1


@pytest.mark.parametrize("count", [1, 40])
def test_picture_of_a_case_has_a_plot_for_each_volume(count: int):
    """With very many classes, without a legend."""
    volume, label = as_volume(np.eye(8)[None], UNIT), as_volume(np.eye(8)[None], UNIT, True)
    volumes = {"image": volume, "reference": label, "entropy": volume}
    figure = slice_figure(volumes, {f"class {number}": (number,) for number in range(1, count + 1)})
    assert [ax.get_title() for ax in figure.axes] == list(volumes)
    assert [len(legend.get_texts()) for legend in figure.legends] == [count % 40]
    plt.close(figure)


def test_colors_of_the_overlays_are_those_of_the_legend():
    volume = as_volume(np.zeros((2, 2, 2)), UNIT)
    for name in ("reference", "prediction"):
        table = np.reshape(look(name, volume, {"shell": (1, 3), "core": (3,)})["lut"], (-1, 4))
        colors = ["#" + "".join(f"{part:02x}" for part in table[value][:3]) for value in (1, 3)]
        assert colors == [color for color, _ in legend(name, {"shell": (1, 3), "core": (3,)})]
        assert table[:, 3].tolist() == [0, 255, 0, 255]
    regions = np.reshape(look("regions", volume, CLASSES)["lut"], (-1, 4))
    assert regions[:, 3].tolist() == [0, 0, 255, 255]
    assert look("image", volume, CLASSES)["colormap"] == "gray"


def test_text_in_a_page_is_escaped(tmp_path: Path):
    (tmp_path / "sample.html.j2").write_text(
        '{% extends "page.html.j2" %}{% from "parts.html.j2" import table, picture %}'
        "{% block content %}{{ table(rows) }}{{ picture('AA', rows[0][0]) }}{% endblock %}"
    )
    page = render("sample.html.j2", tmp_path, rows=[["<b>"], ['"&']])
    assert "<b>" not in page and 'alt="&lt;b&gt;"' in page and "<td>&#34;&amp;</td>" in page
