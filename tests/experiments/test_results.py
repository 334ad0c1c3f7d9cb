"""The committed results: the report says what the runs say, and the page says what the report says."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from alhvr_trainer.experiments.benchmark.jobs import digest, read_results
from alhvr_trainer.experiments.benchmark.report import COST_FILE, write_report
from alhvr_trainer.experiments.benchmark.suites import load_suite

pytestmark = pytest.mark.any_nnunet
REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = sorted((REPOSITORY / "benchmarks" / "results").glob("*/runs"))


@pytest.mark.parametrize("runs", RESULTS, ids=lambda runs: runs.parent.name)
def test_report_is_that_of_the_runs(runs: Path, tmp_path: Path):
    suite = load_suite(runs.parent.name)
    results = read_results(runs.parent, suite.name)
    for cost in runs.parent.glob(COST_FILE):
        shutil.copy(cost, tmp_path)
    write_report(suite, results, tmp_path)
    for file in ("report.md", *(f"tables/{file.name}" for file in (tmp_path / "tables").iterdir())):
        assert (runs.parent / file).read_text() == (tmp_path / file).read_text(), file


@pytest.mark.parametrize("runs", RESULTS, ids=lambda runs: runs.parent.name)
def test_runs_are_those_of_the_suite(runs: Path):
    """Same settings, plans and length for all: what is compared in one table was run alike."""
    suite = load_suite(runs.parent.name)
    methods = {method.name: method for method in suite.methods}
    plans = json.loads((REPOSITORY / "plans" / f"{suite.plans}.json").read_text())
    for result in read_results(runs.parent, suite.name):
        job = result["job"]
        assert job["settings"] == suite.settings_of(methods[job["method"]], job["seed"])
        assert job["plans_digest"] == digest(plans)
        length = {**plans["configurations"][job["configuration"]]["alhvr"], **job["settings"]}
        assert result["iterations"] == length["num_epochs"] * length["num_iterations_per_epoch"]
        assert not re.search(r"(?<![\w.])/\w", json.dumps(result))  # no path of the machine that ran it


def test_page_quotes_the_reports():
    """Every row of results in docs/results.md (method, three numbers, metrics) stands in a committed report."""
    lines = (REPOSITORY / "docs" / "results.md").read_text().splitlines()
    rows = [line for line in lines if re.match(r"\|.* \| \d+ \| \d+ \| \d+ \|", line)]
    reports = "".join((runs.parent / "report.md").read_text() for runs in RESULTS)
    assert rows
    for row in rows:
        assert row in reports, row
