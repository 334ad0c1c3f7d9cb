"""Aggregation and tables of a benchmark, against numbers computed by hand."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import re
from math import isnan

import numpy as np
import pytest
from alhvr_trainer.bundle.scripts.metrics import Spread
from benchmark_results import result, scores
from html_page import Page
from scipy.stats import wilcoxon

from alhvr_trainer.errors import InputError
from alhvr_trainer.experiments.benchmark.aggregate import (
    case_values,
    class_names,
    measured_cases,
    paired_test,
    rows_of,
)
from alhvr_trainer.experiments.benchmark.plots import box_plots, boxes_in_words, values_by_fold
from alhvr_trainer.experiments.benchmark.report import write_report
from alhvr_trainer.experiments.benchmark.suites import load_suite, parse_suite
from alhvr_trainer.experiments.benchmark.tables import comma_separated, markdown, mean_and_sd
from alhvr_trainer.reports.page import encoded

pytestmark = pytest.mark.any_nnunet

METHODS = ["A", "B", "C"]
SUITE = {
    "name": "made-up",
    "dataset": "Dataset001_X",
    "configuration": "2d",
    "plans": "demo",
    "splits": "phantom.json",
    "folds": {"5 labeled": 0},
    "seeds": [0, 1],
    "methods": [{"name": name, "trainer": "SupervisedTrainer"} for name in METHODS],
}


def cases(*dice: float) -> dict:
    """Case k with the class "organ"."""
    return {f"case{number}": {"organ": scores(value)} for number, value in enumerate(dice)}


@pytest.fixture
def three_methods() -> list[dict]:
    """Mean Dice: A 0.8 (seeds 0.7, 0.9), B 0.6 (0.6, 0.6), C 0.5 (seed 0 alone)."""
    return [
        result("A", cases(0.6, 0.7, 0.8), seed=0),
        result("A", cases(0.8, 0.9, 1.0), seed=1),
        result("B", cases(0.5, 0.6, 0.7), seed=0),
        result("B", cases(0.7, 0.6, 0.5), seed=1),
        result("C", cases(0.4, 0.5, 0.6), seed=0),
    ]


def test_mean_over_classes_then_cases_then_seeds():
    first = {"x": {"a": scores(0.2), "b": scores(0.4)}, "y": {"a": scores(None, None, "both"), "b": scores(0.9)}}
    second = {"x": {"a": scores(0.6), "b": scores(0.8)}, "y": {"a": scores(0.5), "b": scores(0.5)}}
    (row,) = rows_of([result("A", first, 0), result("A", second, 1)], "final", ["A"])
    # seed 0: x (0.2 + 0.4) / 2 = 0.3, y 0.9 -> 0.6; seed 1: x 0.7, y 0.5 -> 0.6
    assert row.statistics["Dice"] == Spread(pytest.approx(0.6), pytest.approx(0.0, abs=1e-12), 2)
    assert row.without_distance == 1 and row.seeds == (0, 1) and row.test is None and row.runner_up == ""


def test_sample_standard_deviation_over_seeds(three_methods):
    row = rows_of(three_methods, "final", METHODS)[0]
    assert row.statistics["Dice"].mean == pytest.approx(0.8)
    assert row.statistics["Dice"].sd == pytest.approx(0.02**0.5)  # of 0.7 and 0.9, n - 1
    assert Spread.of([None, None]) == Spread(None, None, 0)
    assert Spread.of([0.5, None]) == Spread(0.5, None, 1)


def test_undefined_distances_are_left_out_and_counted():
    runs = [result("A", {"x": {"a": scores(0.0, None, "prediction")}, "y": {"a": scores(0.8, 3.0)}})]
    (row,) = rows_of(runs, "final", ["A"])
    assert (row.statistics["Dice"].mean, row.statistics["HD95"].mean) == (pytest.approx(0.4), 3.0)
    assert row.without_distance == 1
    assert "as prediction or reference is empty (all seeds together): A (5 labeled): 1." in markdown(
        "comparison", [row]
    )
    everywhere = [result("A", {"x": {"a": scores(0.0, None, "prediction")}})]
    assert rows_of(everywhere, "final", ["A"])[0].statistics["ASD"] == Spread(None, None, 0)
    assert isnan(measured_cases(everywhere[0], "final")["x"]["a"]["ASD"])


def test_runner_up_and_paired_test(three_methods):
    rows = {row.method: row for row in rows_of(three_methods, "final", METHODS)}
    assert {row.runner_up for row in rows.values()} == {"B"}
    assert rows["B"].test is None
    # A: 0.7, 0.8, 0.9; B: 0.6, 0.6, 0.6 -> all three positive: two-sided exact p = 2 / 2^3
    assert (rows["A"].test.p, rows["A"].test.n, rows["A"].test.seeds, rows["A"].test.better) == (0.25, 3, 2, 3)
    # C has seed 0 alone, so B's seed 0 alone stands against it: 0.1 less in each case
    assert (rows["C"].test.seeds, rows["C"].test.better, rows["C"].test.p) == (1, 0, 0.25)


def test_paired_test_is_wilcoxons():
    ours = {str(k): 0.5 + 0.01 * k for k in range(12)}
    theirs = {str(k): 0.55 + 0.003 * k * (-1) ** k for k in range(11)}
    test = paired_test(ours, theirs)
    assert test.n == 11
    assert test.p == wilcoxon([ours[c] for c in theirs], list(theirs.values())).pvalue
    assert paired_test(ours, ours).p == 1.0
    assert paired_test(ours, {"other": 1.0}) is None


def test_cases_of_a_patient_count_as_one():
    ours = {"p1_ed": 0.9, "p1_es": 0.8, "p2_ed": 0.7, "p2_es": 0.5, "p3_ed": 0.6}
    theirs = dict.fromkeys(ours, 0.6)
    alone, grouped = paired_test(ours, theirs), paired_test(ours, theirs, group=r"p\d+")
    # differences 0.3, 0.2, 0.1, -0.1, 0.0; of the patients 0.25, 0.0, 0.0
    assert (alone.n, alone.better, alone.difference) == (5, 3, pytest.approx(0.1))
    assert (grouped.n, grouped.difference) == (3, pytest.approx(0.25 / 3))
    assert alone.p != grouped.p
    with pytest.raises(InputError, match=r'"group" .* finds nothing in the case name "p1_ed"'):
        paired_test(ours, theirs, group="patient")


def test_frames_of_a_patient_as_independent_cases_find_differences_that_are_none():
    """Twenty patients, two frames that are as good or bad as their patient: the false alarms of p < 0.05."""
    random = np.random.default_rng(0)
    alarms = {None: 0, "^p[0-9]+": 0}
    for _ in range(400):
        of_patients = np.repeat(random.normal(size=20), 2)
        values = of_patients + random.normal(scale=0.3, size=40)
        ours = {f"p{number // 2}_frame{number % 2}": value for number, value in enumerate(values)}
        for group in alarms:
            alarms[group] += paired_test(ours, dict.fromkeys(ours, 0.0), group=group).p < 0.05
    assert alarms[None] / 400 > 0.1 and alarms["^p[0-9]+"] / 400 < 0.075


def test_what_earlier_versions_did_not_measure_is_said():
    def row(method, old):
        of_case = {key: value for key, value in scores(0.5).items() if not (old and key == "HD95_pooled")}
        return result(method, {"x": {"a": of_case}})

    both = rows_of([row("A", True), row("B", False)], "final", ["A", "B"])
    text = markdown("comparison", both)
    assert "95HD, pooled (mm) ↓" in text and text.splitlines()[2].count(" not measured ") == 1
    assert next(csv.DictReader(io.StringIO(comma_separated(both))))["HD95_pooled_mean"] == ""
    text = markdown("comparison", both[:1])
    assert "95HD, pooled (mm) ↓" not in text and "Not measured: 95HD, pooled." in text


def test_case_values_average_the_seeds(three_methods):
    assert case_values(three_methods[:2], "final") == pytest.approx({"case0": 0.7, "case1": 0.8, "case2": 0.9})


def test_one_class_alone():
    both = {"x": {"a": scores(0.2), "b": scores(0.4)}, "y": {"a": scores(0.4), "b": scores(0.9)}}
    runs = [result("A", both), result("B", {case: dict(classes) for case, classes in both.items()})]
    assert class_names(runs) == ["a", "b"]
    row = rows_of(runs, "final", ["A", "B"], "a")[0]
    assert row.statistics["Dice"].mean == pytest.approx(0.3) and row.class_name == "a"
    assert row.test is None or row.test.p == 1.0


def test_checkpoints_and_test_cases_are_apart():
    run = result("A", cases(0.5), best=cases(0.7), test=True)
    run["metrics"]["final"]["validation"] = cases(0.1)
    means = [rows_of([run], checkpoint, ["A"])[0].statistics["Dice"].mean for checkpoint in ("final", "best")]
    assert means == [0.5, 0.7]


def test_fractions_are_compared_apart(three_methods):
    twenty = [result("B", cases(0.9, 0.9, 0.9), fold=("20 labeled", 1)), *three_methods]
    rows = rows_of(twenty, "final", METHODS)
    assert [(row.fold, row.method) for row in rows] == [
        ("5 labeled", "A"),
        ("5 labeled", "B"),
        ("5 labeled", "C"),
        ("20 labeled", "B"),
    ]
    assert rows[3].runner_up == "" and rows[0].runner_up == "B"


def test_markdown_marks_best_and_second(three_methods):
    lines = markdown("comparison", rows_of(three_methods, "final", METHODS)).splitlines()
    assert lines[0].startswith("| Method | Labeled | Unlabeled | Seeds | Dice (%) ↑ |")
    assert lines[2].startswith("| A | 5 | 155 | 2 | **80.00 ± 14.14** |") and lines[2].endswith("| 0.250 |")
    assert lines[3].startswith("| B | 5 | 155 | 2 | <u>60.00 ± 0.00</u> |") and lines[3].endswith("| runner-up |")
    assert lines[4].startswith("| C | 5 | 155 | 1 | 50.00 |")


def test_smaller_distances_are_better():
    near, far = ({"x": {"a": scores(0.5, distance)}} for distance in (1.0, 4.0))
    text = markdown("comparison", rows_of([result("A", far), result("B", near)], "final", ["A", "B"]))
    assert "<u>4.00</u> | <u>4.00</u> | <u>2.00</u>" in text and "**1.00** | **1.00** | **0.50**" in text
    assert text.count("**50.00**") == 2  # equals share the first place


def test_ticks_of_ablation_and_regions():
    both = result("both", cases(0.5), settings={"dtct_regions": ["omega3"], "cgcpcl_regions": ["omega2"]})
    one = result("one", cases(0.4), settings={"dtct_regions": [], "cgcpcl_regions": ["omega2"]})
    lines = markdown("ablation", rows_of([both, one], "final", ["one", "both"])).splitlines()
    assert lines[0].startswith("| CG-CPCL | DTCT | Method |")
    assert lines[2].startswith("| ✓ |  | one |") and lines[3].startswith("| ✓ | ✓ | both |")
    cps = result("CPS", cases(0.5), settings={"cps_regions": ["omega1", "omega3"]})
    lines = markdown("regions", rows_of([cps], "final", ["CPS"])).splitlines()
    assert lines[0].startswith("| Ω1 | Ω2 | Ω3 |") and lines[2].startswith("| ✓ |  | ✓ | CPS |")


def test_csv_has_the_numbers_unrounded(three_methods):
    rows = list(csv.DictReader(io.StringIO(comma_separated(rows_of(three_methods, "final", METHODS)))))
    assert (rows[0]["method"], rows[0]["seeds"], rows[0]["class"], rows[0]["p"]) == ("A", "0 1", "mean", "0.25")
    assert float(rows[0]["Dice_sd"]) == pytest.approx(0.02**0.5, abs=1e-15)
    assert (rows[1]["p"], rows[2]["Dice_sd"]) == ("", "")


def test_numbers_as_in_papers():
    assert mean_and_sd("Dice", Spread(0.89123, 0.00345, 3)) == "89.12 ± 0.34"
    assert mean_and_sd("HD95", Spread(1.5, None, 1)) == "1.50"
    assert mean_and_sd("ASD", Spread(None, None, 0)) == "–"


@pytest.mark.parametrize("dark", [False, True])
def test_box_plots_show_cases(three_methods, dark):
    values = values_by_fold(three_methods, "final", METHODS, "Dice")
    assert values["5 labeled"]["A"] == pytest.approx([70, 80, 90])
    figure = box_plots({"Dice": values}, dark)
    assert np.mean(figure.get_facecolor()[:3]) == (0 if dark else 1)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == METHODS
    assert axes.get_title() == "Dice (%), 5 labeled"
    words = "Box plots of the cases, medians. Dice (%), 5 labeled: A 80.00, B 60.00, C 50.00."
    assert boxes_in_words({"Dice": values}) == words


def test_report_holds_tables_plots_and_what_is_missing(three_methods, tmp_path):
    text = write_report(parse_suite(SUITE, "suite"), three_methods, tmp_path).read_text()
    assert "### Comparison, last checkpoint" in text and "### Comparison, class by class, best checkpoint" in text
    assert "### Parts of ALHVR" not in text  # the suite has no such table
    assert "| A | 5 labeled | 0, 1 | 100 | 1.0 | cpu, 1 threads |" in text
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert files == [
        "plots/cases_best.png",
        "plots/cases_final.png",
        "report.html",
        "report.md",
        *(
            f"tables/{table}_{point}.{kind}"
            for table in ("classes", "comparison")
            for point in ("best", "final")
            for kind in ("csv", "md")
        ),
    ]
    assert all(name in text for name in files[:2])
    assert (tmp_path / files[0]).read_bytes()[:4] == b"\x89PNG"
    without_c = write_report(parse_suite(SUITE, "suite"), three_methods[:4], tmp_path).read_text()
    assert "| C | 5 labeled | none | | | |" in without_c


def test_page_is_the_report_in_one_file(three_methods, tmp_path):
    """The same cells as in Markdown, the same pictures, and text of the suite is no HTML."""
    suite = parse_suite({**SUITE, "description": "5 < 20 & <b>", "group": "case[0-9]"}, "suite")
    report = write_report(suite, three_methods[:4], tmp_path)
    page = Page(report.with_suffix(".html"))
    page.check_accessible()
    assert page.links_elsewhere() == []
    assert "<p>5 &lt; 20 &amp; &lt;b&gt;</p>" in page.text and "names <code>case[0-9]</code> finds" in page.text
    assert "<td><strong>80.00 ± 14.14</strong></td>" in page.text and "<td><u>60.00 ± 0.00</u></td>" in page.text
    assert "<strong>Bold</strong>: best mean, <u>underlined</u>: second" in page.text and "**" not in page.text
    assert "<tr><td>C</td><td>5 labeled</td><td>none</td><td></td><td></td><td></td></tr>" in page.text

    tables = re.findall(r"<table>.*?</table>", page.text, re.DOTALL)
    assert len(tables) == 5 and all("<caption>" in table for table in tables)
    found = re.findall("<t[hd](?: [^>]*)?>(.*?)</t[hd]>", page.text)
    cells = [html.unescape(re.sub("</?(strong|u)>", "", cell)) for cell in found]
    lines = [line for line in report.read_text().splitlines() if line.startswith("|") and "---" not in line]
    assert cells == [re.sub(r"\*\*|</?u>", "", cell).strip() for line in lines for cell in line[1:-1].split("|")]

    assert len(page.all("source")) == len(page.all("img")) == 2
    picture = base64.b64decode(str(page.all("img")[0]["src"]).partition(",")[2])
    assert picture == (tmp_path / "plots" / "cases_final.png").read_bytes()
    assert "Dice (%), 5 labeled: A 80.00, B 60.00; HD95" in str(page.all("img")[0]["alt"])


def test_what_a_step_costs_is_one_more_column_of_the_comparison(three_methods, tmp_path):
    cost = {"command": "method_cost.py", "device": "CPU", "relative_to": "A"}
    cost["methods"] = {"A": {"relative": 1.0, "peak_mib": 20}, "B": {"relative": 2.96, "peak_mib": 64}}
    (tmp_path / "cost.json").write_text(json.dumps(cost))
    text = write_report(parse_suite(SUITE, "suite"), three_methods, tmp_path).read_text()
    assert "Training step: time relative to A's and peak memory" in text and "(`method_cost.py`; CPU)" in text
    heading, _, *rows = (tmp_path / "tables" / "comparison_final.md").read_text().splitlines()
    assert heading.endswith("| p | Training step |")
    found = {row.split(" | ")[0].removeprefix("| "): row.split(" | ")[-1] for row in rows[:3]}
    assert found == {"A": "1.0 ×, 20 MiB |", "B": "3.0 ×, 64 MiB |", "C": "not measured |"}
    assert "Training step" not in (tmp_path / "tables" / "classes_final.md").read_text()


def test_table_of_distances_that_no_method_has(tmp_path):
    nothing = {"x": {"a": scores(0.0, None, "prediction")}}
    results = [result("A", nothing), result("B", nothing)]
    text = write_report(parse_suite(SUITE, "suite"), results, tmp_path).read_text()
    assert "| **0.00** | **0.00** | – | – | – |" in text


def test_shipped_tables_name_methods():
    tables = load_suite("acdc").tables
    assert len(tables["regions"]) == 7 and tables["ablation"][-1] == "ALHVR"


def test_names_in_plots_are_no_formulas():
    assert encoded(box_plots({"Dice": {"5 labeled": {"A$_$B": [70.0, 80.0]}}}))
