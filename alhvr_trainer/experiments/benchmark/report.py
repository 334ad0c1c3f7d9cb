"""The files that a benchmark ends with: tables, box plots, and reports that hold them all, in Markdown and HTML."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from alhvr_trainer.config.files import read_object, write_text
from alhvr_trainer.experiments.benchmark.aggregate import Result, Row, class_names, rows_of
from alhvr_trainer.experiments.benchmark.plots import METRICS, box_plots, boxes_in_words, values_by_fold
from alhvr_trainer.experiments.benchmark.suites import Suite
from alhvr_trainer.experiments.benchmark.tables import (
    HTML,
    MARKDOWN,
    Cells,
    Marks,
    comma_separated,
    markdown,
    markdown_table,
    notes,
    table_cells,
)
from alhvr_trainer.reports.page import encoded, render

CHECKPOINTS = {
    "final": "last checkpoint",
    "postprocessed": "last checkpoint, postprocessed",
    "best": "best checkpoint",
}
_NOTES = {
    "postprocessed": "For each run, nnU-Net chose on the validation cases whether to keep the largest component "
    "alone, of the foreground or of single classes."
}
_TITLES = {
    "comparison": "Comparison",
    "classes": "Comparison, class by class",
    "ablation": "Parts of ALHVR",
    "regions": "Cross pseudo-supervision on a union of regions",
}
_LEGEND = (
    """\
Mean ± sample SD over the seeds. Of one run: each case's mean over its classes, then the mean over the cases. Distances
of a class that is empty in the prediction or the reference are undefined and left out; where that happened, a line
below the table counts it. {bold}: best mean, {underlined}: second, among methods with the same labeled cases.""",
    """\
Distances are in mm of the files' spacing. "95HD, pooled" is the papers' (medpy's): the 95th percentile of the surface
distances of both directions together. "HD95, larger direction" is MONAI's: the larger of the two directions' 95th
percentiles. ASD is directed: from the prediction's surface to the reference's, so it does not see what was missed.""",
    """\
p: Wilcoxon's signed-rank test, two-sided, on Dice, each method against the runner-up (second best mean Dice). A case's
value is its mean over classes, then over the seeds that both methods have, so p speaks of the trainings that were run,
not of other seeds. {independent} p is not corrected for the number of methods, nor for the choice of the runner-up,
which was made on these same cases.""",
)
"""A paragraph each."""
_GROUPED = "Cases in whose names {} finds the same text are averaged first; these groups are the n values."
_COST_LEGEND = """\
Training step: time relative to {relative_to}'s and peak memory, on the same batches in turns ({command}; {device}).\
"""
COST_FILE = "cost.json"
"""In the output folder, of ``benchmarks/method_cost.py``."""
PICTURE_DPI = 120


@dataclass(frozen=True)
class _Table:
    """A table of one checkpoint."""

    kind: str
    checkpoint: str
    rows: list[Row]
    costs: dict[str, str] | None

    @property
    def file(self) -> str:
        return f"{self.kind}_{self.checkpoint}"

    @property
    def title(self) -> str:
        return f"{_TITLES[self.kind]}, {CHECKPOINTS[self.checkpoint]}"

    @property
    def markdown(self) -> str:
        return markdown(self.kind, self.rows, self.costs)

    @property
    def cells(self) -> Cells:
        """Of the page."""
        return table_cells(self.kind, self.rows, self.costs, HTML)

    @property
    def notes(self) -> str:
        return notes(self.rows)


@dataclass(frozen=True)
class _Part:
    """What is reported of one checkpoint."""

    checkpoint: str
    tables: list[_Table]
    picture: dict[str, str]
    """"light" and "dark": PNG as base64 text; "words": what it shows."""

    @property
    def title(self) -> str:
        return CHECKPOINTS[self.checkpoint]

    @property
    def note(self) -> str:
        return _NOTES.get(self.checkpoint, "")

    @property
    def file(self) -> str:
        return f"plots/cases_{self.checkpoint}.png"


def write_report(suite: Suite, results: Sequence[Result], output: Path) -> Path:
    """Write ``tables/*.md`` and ``*.csv``, ``plots/*.png``, ``report.md`` and ``report.html``; ``report.md``'s path."""
    cost = read_object(output / COST_FILE) if (output / COST_FILE).is_file() else {}
    parts = _parts(suite, results, cost)
    for part in parts:
        for table in part.tables:
            write_text(output / "tables" / f"{table.file}.md", table.markdown)
            write_text(output / "tables" / f"{table.file}.csv", comma_separated(table.rows))
        (output / part.file).parent.mkdir(parents=True, exist_ok=True)
        (output / part.file).write_bytes(base64.b64decode(part.picture["light"]))
    runs, versions = run_cells(suite, results), _versions(results)
    page = {"introduction": _introduction(suite, cost, HTML), "parts": parts, "runs": runs, "versions": versions}
    write_text(output / "report.html", render("benchmark.html.j2", Path(__file__).parent, name=suite.name, **page))
    lines = [
        f"# {suite.name}",
        *_introduction(suite, cost, MARKDOWN),
        *(line for part in parts for line in _lines(part)),
    ]
    lines += ["## Runs", markdown_table(runs, rule="---"), "\n".join(versions)]
    report = output / "report.md"
    write_text(report, "\n\n".join(line.strip() for line in lines if line) + "\n")
    return report


def _lines(part: _Part) -> list[str]:
    """A part in Markdown."""
    tables = [line for table in part.tables for line in (f"### {table.title}", table.markdown)]
    return [f"## {part.title.capitalize()}", part.note, *tables, f"![Cases, {part.title}]({part.file})"]


def _introduction(suite: Suite, cost: Mapping[str, Any], marks: Marks) -> list[str]:
    """What was measured and what the numbers mean, paragraph by paragraph."""
    fields = {"bold": marks.strong("Bold"), "underlined": marks.underlined("underlined")}
    independent = marks.text(_GROUPED).format(marks.code(suite.group)) if suite.group else "Cases count as independent."
    legend = [marks.text(paragraph).format(**fields, independent=independent) for paragraph in _LEGEND]
    costs = [marks.text(_COST_LEGEND).format(**{**cost, "command": marks.code(cost["command"])})] if cost else []
    return [suite.description, _measured(suite), *legend, *costs]


def _parts(suite: Suite, results: Sequence[Result], cost: Mapping[str, Any]) -> list[_Part]:
    methods = suite.tables.get("comparison", [method.name for method in suite.methods])
    costs = {name: f"{row['relative']:.1f} ×, {row['peak_mib']} MiB" for name, row in cost.get("methods", {}).items()}
    parts = []
    for checkpoint in CHECKPOINTS:
        if not all(checkpoint in result["metrics"] for result in results):
            continue  # older runs were not postprocessed
        tables = [
            _Table(kind, checkpoint, rows, costs if kind == "comparison" else None)
            for kind, rows in _tables(suite, results, checkpoint, methods).items()
            if rows
        ]
        values = {metric: values_by_fold(results, checkpoint, methods, metric) for metric in METRICS}
        picture = {name: encoded(box_plots(values, dark=name == "dark"), PICTURE_DPI) for name in ("light", "dark")}
        parts.append(_Part(checkpoint, tables, {**picture, "words": boxes_in_words(values)}))
    return parts


def _measured(suite: Suite) -> str:
    if suite.test:
        return "Measured on the test cases (imagesTs), which no training saw."
    return (
        "Measured on the fold's validation cases. The best checkpoint was chosen on them as well (nnU-Net's smoothed "
        "validation Dice), so its table is optimistic; the last checkpoint's is not."
    )


def _tables(suite: Suite, results: Sequence[Result], checkpoint: str, methods: Sequence[str]) -> dict[str, list[Row]]:
    classes = [row for name in class_names(results) for row in rows_of(results, checkpoint, methods, name, suite.group)]
    tables = {"comparison": rows_of(results, checkpoint, methods, group=suite.group), "classes": classes}
    for table in ("ablation", "regions"):
        tables[table] = rows_of(results, checkpoint, suite.tables.get(table, []), group=suite.group)
    return tables


def run_cells(suite: Suite, results: Sequence[Result]) -> Cells:
    """How long the trainings were, where they ran, and which runs of the suite are missing."""
    lines = [["Method", "Fraction", "Seeds", "Iterations", "Minutes of training", "Device"]]
    for method in suite.methods:
        for fold in suite.all_folds:
            if fold in suite.fully_labeled and not method.supervised:
                continue
            runs = [r for r in results if (r["job"]["method"], r["job"]["fold_name"]) == (method.name, fold)]
            if not runs:
                lines.append([method.name, fold, "none"])
                continue
            seeds = ", ".join(str(seed) for seed in sorted(run["job"]["seed"] for run in runs))
            iterations = ", ".join(map(str, sorted({run["iterations"] for run in runs})))
            minutes = fmean(run["seconds_of_training"] for run in runs) / 60
            devices = "; ".join(sorted({run["device"] for run in runs}))
            lines.append([method.name, fold, seeds, iterations, f"{minutes:.1f}", devices])
    return lines


def _versions(results: Sequence[Result]) -> list[str]:
    versions = sorted({", ".join(f"{k} {v}" for k, v in result["versions"].items()) for result in results})
    return [f"Versions: {each}." for each in versions]
