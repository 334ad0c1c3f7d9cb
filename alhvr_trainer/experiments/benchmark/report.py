"""The files that a benchmark ends with: tables, box plots, and a report that holds them all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from alhvr_trainer.config.files import read_object, write_text
from alhvr_trainer.experiments.benchmark.aggregate import Result, Row, class_names, rows_of
from alhvr_trainer.experiments.benchmark.plots import box_plots
from alhvr_trainer.experiments.benchmark.suites import Suite
from alhvr_trainer.experiments.benchmark.tables import comma_separated, markdown

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
_LEGEND = """\
Mean ± sample SD over the seeds. Of one run: each case's mean over its classes, then the mean over the cases. Distances
of a class that is empty in the prediction or the reference are undefined and left out; where that happened, a line
below the table counts it. **Bold**: best mean, <u>underlined</u>: second, among methods with the same labeled cases.

Distances are in mm of the files' spacing. "95HD, pooled" is the papers' (medpy's): the 95th percentile of the surface
distances of both directions together. "HD95, larger direction" is MONAI's: the larger of the two directions' 95th
percentiles. ASD is directed: from the prediction's surface to the reference's, so it does not see what was missed.

p: Wilcoxon's signed-rank test, two-sided, on Dice, each method against the runner-up (second best mean Dice). A case's
value is its mean over classes, then over the seeds that both methods have, so p speaks of the trainings that were run,
not of other seeds. {independent} p is not corrected for the number of methods, nor for the choice of the runner-up,
which was made on these same cases.
"""
_COST_LEGEND = """\
Training step: time relative to {relative_to}'s and peak memory, on the same batches in turns (`{command}`; {device}).
"""
COST_FILE = "cost.json"
"""In the output folder, of ``benchmarks/method_cost.py``."""


def write_report(suite: Suite, results: Sequence[Result], output: Path) -> Path:
    """Write ``tables/*.md``, ``tables/*.csv``, ``plots/*.png`` and ``report.md``; the latter's path."""
    methods = suite.tables.get("comparison", [method.name for method in suite.methods])
    parts = [f"# {suite.name}", suite.description, _measured(suite), _LEGEND.format(independent=_independent(suite))]
    cost = read_object(output / COST_FILE) if (output / COST_FILE).is_file() else {}
    costs = {name: f"{row['relative']:.1f} ×, {row['peak_mib']} MiB" for name, row in cost.get("methods", {}).items()}
    parts += [_COST_LEGEND.format(**cost)] if cost else []
    for checkpoint, title in CHECKPOINTS.items():
        if not all(checkpoint in result["metrics"] for result in results):
            continue  # older runs were not postprocessed
        parts += [f"## {title.capitalize()}", _NOTES.get(checkpoint, "")]
        for table, rows in _tables(suite, results, checkpoint, methods).items():
            if rows:
                text = markdown(table, rows, costs if table == "comparison" else None)
                write_text(output / "tables" / f"{table}_{checkpoint}.md", text)
                write_text(output / "tables" / f"{table}_{checkpoint}.csv", comma_separated(rows))
                parts += [f"### {_TITLES[table]}, {title}", text]
        picture = Path("plots") / f"cases_{checkpoint}.png"
        box_plots(results, checkpoint, methods, output / picture)
        parts.append(f"![Cases, {title}]({picture.as_posix()})")
    parts += ["## Runs", run_table(suite, results)]
    report = output / "report.md"
    write_text(report, "\n\n".join(part.strip() for part in parts if part) + "\n")
    return report


def _independent(suite: Suite) -> str:
    if suite.group is None:
        return "Cases count as independent."
    return (
        f"Cases in whose names `{suite.group}` finds the same text are averaged first; these groups are the n values."
    )


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


def run_table(suite: Suite, results: Sequence[Result]) -> str:
    """How long the trainings were, where they ran, and which runs of the suite are missing."""
    lines = ["| Method | Fraction | Seeds | Iterations | Minutes of training | Device |", "|---|---|---|---|---|---|"]
    for method in suite.methods:
        for fold in suite.all_folds:
            if fold in suite.fully_labeled and not method.supervised:
                continue
            runs = [r for r in results if (r["job"]["method"], r["job"]["fold_name"]) == (method.name, fold)]
            if not runs:
                lines.append(f"| {method.name} | {fold} | none | | | |")
                continue
            seeds = ", ".join(str(seed) for seed in sorted(run["job"]["seed"] for run in runs))
            iterations = ", ".join(map(str, sorted({run["iterations"] for run in runs})))
            minutes = fmean(run["seconds_of_training"] for run in runs) / 60
            devices = "; ".join(sorted({run["device"] for run in runs}))
            lines.append(f"| {method.name} | {fold} | {seeds} | {iterations} | {minutes:.1f} | {devices} |")
    versions = sorted({", ".join(f"{k} {v}" for k, v in result["versions"].items()) for result in results})
    return "\n".join([*lines, "", *(f"Versions: {each}." for each in versions)])
