"""The demo's report: one HTML file with its pictures inside, and the table as text."""

from __future__ import annotations

import base64
import html
import io
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from alhvr_trainer.bundle.scripts.metrics import METRICS, UNITS, cell
from alhvr_trainer.config.names import SETTINGS_KEY, TRAINER_NAME, UNLABELED_FOLDER
from alhvr_trainer.config.settings import split_batch
from alhvr_trainer.data.preprocessing import unlabeled_folder
from alhvr_trainer.experiments.demo import figures
from alhvr_trainer.experiments.demo.anatomy import LABELS
from alhvr_trainer.experiments.demo.comparison import TITLES, Scores, result_in_words, same_cases
from alhvr_trainer.experiments.demo.region_maps import middle_slices, regions_of
from alhvr_trainer.experiments.demo.steps import BASELINE_NAME, CONFIGURATION, METHODS, STAMPS, Layout
from alhvr_trainer.trainers.checkpoints import read_checkpoint

STRUCTURES = {name: value for name, value in LABELS.items() if value}

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>ALHVR for nnU-Net: demo</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2em auto; padding: 0 1em }}
h1 {{ font-size: 1.6em }} h2 {{ font-size: 1.2em; margin-top: 2em }}
table {{ border-collapse: collapse }}
td, th {{ padding: .2em .8em; text-align: left; border-bottom: 1px solid #ddd }}
img {{ max-width: 100% }} code {{ font-size: .85em; overflow-wrap: anywhere }} .note {{ color: #555 }}
</style></head><body>
{body}
</body></html>
"""


def write_report(layout: Layout) -> Path:
    """Write ``report.html`` and ``summary.txt`` from what the earlier steps left; the report's path."""
    scores = same_cases(
        {trainer: _read_json(layout.scores(name) / "metrics.json") for trainer, name in METHODS.items()}
    )
    final = read_checkpoint(layout.fold(TRAINER_NAME) / "checkpoint_final.pth")
    early = read_checkpoint(layout.early_checkpoint)
    bundle, result = _bundle_sentence(layout), result_in_words(scores, final[SETTINGS_KEY]["settings"])
    summary = "\n\n".join([text_table(scores), *result, bundle]) + "\n"
    (layout.output / "summary.txt").write_text(summary, encoding="utf-8")
    curves = figures.curves(final[SETTINGS_KEY]["history"], _pseudo_dice(layout), early["current_epoch"])
    body = [
        "<h1>ALHVR for nnU-Net: demo</h1>",
        _introduction(layout, final),
        "<h2>Scores on the test scans</h2>",
        html_table(scores),
        *(f"<p>{sentence}</p>" for sentence in (*result, bundle)),
        f'<p class="note">{_SCORES_NOTE}</p>',
        "<h2>Test scans</h2>",
        *_outlines_part(layout, scores),
        "<h2>Regions on unlabeled scans</h2>",
        *_regions_part(layout, early, final),
        "<h2>Training</h2>",
        picture(curves, "curves of training"),
        f'<p class="note">{_CURVES_NOTE}</p>',
        "<h2>What was run</h2>",
        _steps_part(layout),
    ]
    layout.report.write_text(_PAGE.format(body="\n".join(body)), encoding="utf-8")
    return layout.report


_SCORES_NOTE = (
    "Mean ± sample standard deviation over the test scans. Dice and Jaccard: more is better; distances: less is "
    "better. They compare the same scans and structures, those that both methods found. HD95 is the larger of both "
    "directions' 95th percentiles, HD95_pooled that of both together, ASD directed from prediction to reference. Both "
    "were trained once, with the same network, number of steps and number of labeled samples per step: a "
    "demonstration, not a benchmark."
)
_CURVES_NOTE = (
    "The dotted line marks the epoch of the early regions above. a and b are the two networks; a is the one "
    "that is validated and exported."
)


def _introduction(layout: Layout, checkpoint: dict[str, Any]) -> str:
    labeled, unlabeled = _batch(checkpoint)
    settings = checkpoint[SETTINGS_KEY]["settings"]
    split = _read_json(layout.preprocessed / "splits_final.json")[0]
    folders = UNLABELED_FOLDER, "imagesTs"
    unlabeled_scans, test_scans = (len(list((layout.raw / name).iterdir())) for name in folders)
    steps = settings["num_epochs"] * settings["num_iterations_per_epoch"]
    return (
        f"<p>Cardiac phantoms: {len(split['train'])} labeled scans to train on, {len(split['val'])} for "
        f"validation, {unlabeled_scans} unlabeled ones, {test_scans} test scans. "
        f"<b>{TITLES[BASELINE_NAME]}</b>: nnU-Net with {labeled} labeled samples per step. "
        f"<b>{TITLES[TRAINER_NAME]}</b>: {labeled} labeled and {unlabeled} unlabeled samples per step. "
        f"{steps} steps each.</p>"
    )


def _configuration(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return checkpoint["init_args"]["plans"]["configurations"][CONFIGURATION]


def _batch(checkpoint: dict[str, Any]) -> tuple[int, int]:
    """Labeled and unlabeled samples per step."""
    unlabeled = checkpoint[SETTINGS_KEY]["settings"]["unlabeled_batch_size"]
    return split_batch(_configuration(checkpoint)["batch_size"], unlabeled)


# --- tables ---


def _rows(scores: Scores) -> list[list[str]]:
    rows = [["structure", "trained with", *(metric + UNITS[metric] for metric in METRICS)]]
    first = next(iter(scores.values()))
    for name in [*first["classes"], "overall"]:
        for trainer, result in scores.items():
            values = result["overall"] if name == "overall" else result["classes"][name]
            rows.append([name, TITLES[trainer], *(cell(values[metric]) for metric in METRICS)])
    return rows


def text_table(scores: Scores) -> str:
    """Both methods' scores as aligned text."""
    rows = _rows(scores)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def html_table(scores: Scores) -> str:
    """The same as HTML."""
    return _html_rows(_rows(scores))


def _html_rows(rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(value)}</{tag}>" for value in cells) + "</tr>"

    return "<table>" + line(rows[0], "th") + "".join(line(row, "td") for row in rows[1:]) + "</table>"


# --- pictures ---


def picture(figure: figures.Figure, description: str) -> str:
    """A figure as an HTML image that needs no file of its own."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    figures.plt.close(figure)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{data}">'


def chosen_cases(scores: Scores, count: int = 4) -> list[str]:
    """Test cases at evenly spaced ranks of ALHVR's Dice, worst to best: a fixed rule instead of a choice."""
    dice = {
        case: np.mean([value["Dice"] or 0.0 for value in of_case.values()])
        for case, of_case in scores[TRAINER_NAME]["cases"].items()
    }
    ranked = sorted(dice, key=lambda case: dice[case])
    return [ranked[round(i)] for i in np.linspace(0, len(ranked) - 1, min(count, len(ranked)))]


def _outlines_part(layout: Layout, scores: Scores) -> list[str]:
    cases = chosen_cases(scores)
    references = {case: _read(layout.raw / "labelsTs" / f"{case}.nii.gz") for case in cases}
    # the slice in which the right ventricle is there, and neither base nor apex
    index = {case: volume.shape[0] // 3 for case, volume in references.items()}
    columns = {"reference": {case: references[case][index[case]] for case in cases}}
    notes: dict[str, dict[str, str]] = {}
    for trainer, name in METHODS.items():
        files = {case: layout.predictions(name) / f"{case}.nii.gz" for case in cases}
        columns[TITLES[trainer]] = {case: _read(file)[index[case]] for case, file in files.items()}
        notes[TITLES[trainer]] = {case: _dice_note(scores[trainer]["cases"][case]) for case in cases}
    scans = {case: _read(layout.raw / "imagesTs" / f"{case}_0000.nii.gz")[index[case]] for case in cases}
    figure = figures.outlines(scans, columns, STRUCTURES, notes)
    return [
        picture(figure, "test scans with outlines of reference and predictions"),
        '<p class="note">Test scans from the lowest to the highest Dice of ALHVR at evenly spaced ranks, one '
        "slice of each. Below the pictures: Dice on the whole scan.</p>",
    ]


def _dice_note(of_case: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value['Dice'] or 0.0:.2f}" for name, value in of_case.items())


def _regions_part(layout: Layout, early: dict[str, Any], final: dict[str, Any]) -> list[str]:
    folder = unlabeled_folder(str(layout.preprocessed / _configuration(final)["data_identifier"]))
    slices, names = middle_slices(Path(folder), _batch(final)[1])
    views = []
    for checkpoint in (early, final):
        maps, gamma = regions_of(checkpoint, slices)
        views.append(figures.RegionView(f"after epoch {checkpoint['current_epoch']}", gamma, maps))
    shown = min(4, len(names))
    figure = figures.regions(slices[:shown, 0], names[:shown], views)
    return [
        picture(figure, "regions on unlabeled scans, early and late in training"),
        '<p class="note">Computed from the checkpoints on the middle slices of the first '
        f"{len(names)} unlabeled scans as one batch, without augmentation; {shown} of them are shown. γ is "
        "the mean confidence of the least confident voxels: it rises as the networks grow sure.</p>",
    ]


def _pseudo_dice(layout: Layout) -> dict[str, Sequence[float]]:
    """Trainer -> nnU-Net's mean pseudo Dice per epoch."""
    files = {trainer: layout.fold(trainer) / "checkpoint_final.pth" for trainer in METHODS}
    return {TITLES[t]: read_checkpoint(file)["logging"]["mean_fg_dice"] for t, file in files.items()}


# --- bundle and commands ---


def _bundle_sentence(layout: Layout) -> str:
    equal, total = compare_folders(layout.predictions(METHODS[TRAINER_NAME]), layout.predictions("bundle"))
    if equal == total:
        return f"All {total} files of the MONAI bundle equal nnUNetv2_predict's, voxels and geometry."
    return f"ATTENTION: {total - equal} of {total} files of the MONAI bundle differ from nnUNetv2_predict's."


def compare_folders(expected: Path, found: Path) -> tuple[int, int]:
    """How many segmentations of ``expected`` are the same in ``found``, and how many there are."""
    files = sorted(expected.glob("*.nii.gz"))
    return sum(_same(file, found / file.name) for file in files), len(files)


def _same(first: Path, second: Path) -> bool:
    if not second.is_file():
        return False
    a, b = sitk.ReadImage(str(first)), sitk.ReadImage(str(second))
    for get in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        if getattr(a, get)() != getattr(b, get)():
            return False
    return np.array_equal(sitk.GetArrayViewFromImage(a), sitk.GetArrayViewFromImage(b))


def _steps_part(layout: Layout) -> str:
    rows = [["step", "seconds", "command"]]
    for file in sorted((layout.output / STAMPS).glob("*.json")):
        stamp = _read_json(file)
        name, *arguments = stamp["command"]
        command = shlex.join([Path(name).name, *arguments])
        rows.append([stamp["title"], f"{stamp['seconds']:.0f}", command])
    return _html_rows(rows)


def _read(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def _read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


if __name__ == "__main__":
    write_report(Layout(Path(sys.argv[1]), sys.argv[2]))
