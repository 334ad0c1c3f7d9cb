"""Tables of a benchmark as Markdown and HTML, in the layout of the paper, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from markupsafe import Markup

from alhvr_trainer.bundle.scripts.metrics import METRICS, Spread
from alhvr_trainer.experiments.benchmark.aggregate import Row, ranked

HEADINGS = {
    "Dice": "Dice (%) ↑",
    "Jaccard": "Jaccard (%) ↑",
    "HD95": "HD95, larger direction (mm) ↓",
    "HD95_pooled": "95HD, pooled (mm) ↓",
    "ASD": "ASD, to reference (mm) ↓",
}
"""95HD is what the papers call medpy's number; MONAI's is another one."""
_PERCENT = ("Dice", "Jaccard")
NOT_MEASURED = "not measured"
Column = tuple[str, Callable[[Row], str]]
Cells = list[list[str]]
"""Of a table, the headings first; a short row ends in empty cells."""


class Marks(NamedTuple):
    """How a document marks its text."""

    text: Callable[[str], str]
    """Of a constant with fields to fill in."""
    strong: Callable[[str], str]
    underlined: Callable[[str], str]
    code: Callable[[str], str]


MARKDOWN = Marks(str, "**{}**".format, "<u>{}</u>".format, "`{}`".format)
HTML = Marks(Markup, Markup("<strong>{}</strong>").format, Markup("<u>{}</u>").format, Markup("<code>{}</code>").format)
"""Escapes what it marks."""


def _tick(key: str, region: str | None = None) -> Callable[[Row], str]:
    """A column that says whether a list of regions in the settings has any entry, or this one."""

    def cell(row: Row) -> str:
        regions = row.settings.get(key) or []
        return "✓" if (region in regions if region else regions) else ""

    return cell


_CASES: tuple[Column, ...] = (
    ("Labeled", lambda row: str(row.labeled)),
    ("Unlabeled", lambda row: str(row.unlabeled)),
)
_METHOD: Column = ("Method", lambda row: row.method)
COLUMNS: dict[str, tuple[Column, ...]] = {
    "comparison": (_METHOD, *_CASES),
    "classes": (("Class", lambda row: row.class_name), _METHOD, *_CASES),
    "ablation": (("CG-CPCL", _tick("cgcpcl_regions")), ("DTCT", _tick("dtct_regions")), _METHOD, *_CASES),
    "regions": (
        *((f"Ω{number}", _tick("cps_regions", f"omega{number}")) for number in (1, 2, 3)),
        _METHOD,
        *_CASES,
    ),
}
"""Table -> the columns before the metrics. Comparison: the paper's Tables 1 to 3; ablation: its Table 5; regions: the
slides' Table 1, cross pseudo-supervision on a union of regions."""


def table_cells(
    table: str, rows: Sequence[Row], costs: Mapping[str, str] | None = None, marks: Marks = MARKDOWN
) -> Cells:
    """A table: per fraction (and class) the best mean of each metric strong, the second underlined.

    Args:
        table: key of :data:`COLUMNS`.
        rows: see :func:`alhvr_trainer.experiments.benchmark.aggregate.rows_of`.
        costs: what a training step of each method costs, for one more column.
        marks: of the document.
    """
    columns = COLUMNS[table]
    metrics = [metric for metric in METRICS if any(metric in row.statistics for row in rows)]
    headings = [*(heading for heading, _ in columns), "Seeds", *(HEADINGS[metric] for metric in metrics), "p"]
    lines = [[*headings, *(["Training step"] if costs else [])]]
    for _, group in groupby(rows, key=_block):
        block = list(group)
        for row in block:
            cells = [_emphasized(metric, row, block, marks) for metric in metrics]
            cost = [costs.get(row.method, NOT_MEASURED)] if costs else []
            lines.append([*(cell(row) for _, cell in columns), str(len(row.seeds)), *cells, p_cell(row), *cost])
    return lines


def markdown(table: str, rows: Sequence[Row], costs: Mapping[str, str] | None = None) -> str:
    """A table as Markdown, and below it what to know; see :func:`table_cells`."""
    text, below = markdown_table(table_cells(table, rows, costs)), notes(rows)
    return f"{text}\n\n{below}\n" if below else f"{text}\n"


def markdown_table(cells: Cells, rule: str = " --- ") -> str:
    """Cells as Markdown.

    Args:
        cells: of a table.
        rule: of a column, below its heading.

    Example:
        >>> print(markdown_table([["Method", "Seeds"], ["A", "0"], ["B"]]))
        | Method | Seeds |
        | --- | --- |
        | A | 0 |
        | B | |
    """
    width = len(cells[0])
    first, *others = (f"| {' | '.join(row)} |{' |' * (width - len(row))}" for row in cells)
    return "\n".join([first, f"|{'|'.join([rule] * width)}|", *others])


def _block(row: Row) -> tuple[str, str]:
    return row.fold, row.class_name


def _emphasized(metric: str, row: Row, block: Sequence[Row], marks: Marks) -> str:
    if metric not in row.statistics:
        return NOT_MEASURED
    text, mean = mean_and_sd(metric, row.statistics[metric]), row.statistics[metric].mean
    order = ranked(block, metric)
    if len(block) < 2 or mean is None:
        return text
    if mean == order[0]:
        return marks.strong(text)
    return marks.underlined(text) if mean == order[1] else text


def mean_and_sd(metric: str, spread: Spread) -> str:
    """Two decimals, overlaps in per cent.

    Example:
        >>> mean_and_sd("Dice", Spread(0.8912, 0.0034, 3))
        '89.12 ± 0.34'
    """
    return spread.text(2, 100 if metric in _PERCENT else 1)


def p_cell(row: Row) -> str:
    """p of the test against the runner-up; for the runner-up itself, the word."""
    if row.runner_up == row.method:
        return "runner-up"
    if row.test is None:
        return "–"
    return "< 0.001" if row.test.p < 0.001 else f"{row.test.p:.3f}"


def notes(rows: Sequence[Row]) -> str:
    """What a reader of the rows must know: n of the tests, what no run measured, which distances are left out."""
    found = []
    if numbers := sorted({row.test.n for row in rows if row.test}):
        found.append(f"p: n = {' or '.join(map(str, numbers))}.")
    unknown = [HEADINGS[metric].split(" (")[0] for metric in METRICS if not any(metric in r.statistics for r in rows)]
    if rows and unknown:
        found.append(f"{NOT_MEASURED.capitalize()}: {'; '.join(unknown)}.")
    missing = [
        f"{row.method} ({row.fold}{f', {row.class_name}' if row.class_name else ''}): {row.without_distance}"
        for row in rows
        if row.without_distance
    ]
    if missing:
        said = "Without distances, as prediction or reference is empty (all seeds together)"
        found.append(f"{said}: {'; '.join(missing)}.")
    return " ".join(found)


def comma_separated(rows: Sequence[Row]) -> str:
    """The same numbers unrounded, overlaps as shares from 0 to 1, distances in mm; empty where not measured."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    statistics = [f"{metric}_{part}" for metric in METRICS for part in ("mean", "sd")]
    heads = ["fold", "class", "method", "labeled", "unlabeled", "seeds", *statistics, "without_distance"]
    writer.writerow([*heads, "runner_up", "p", "n", "common_seeds", "n_better", "mean_difference"])
    for row in rows:
        known = [row.statistics.get(metric, Spread(None, None, 0)) for metric in METRICS]
        numbers: list[Any] = [x for statistic in known for x in (statistic.mean, statistic.sd)]
        t = row.test
        test = [""] * 5 if t is None else [t.p, t.n, t.seeds, t.better, t.difference]
        cases = [row.labeled, row.unlabeled, " ".join(map(str, row.seeds))]
        start, end = [row.fold, row.class_name or "mean", row.method], [row.without_distance, row.runner_up]
        writer.writerow([*start, *cases, *numbers, *end, *test])
    return text.getvalue()
