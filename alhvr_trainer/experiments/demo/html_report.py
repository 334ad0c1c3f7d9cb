"""The demo's report: one HTML file with embedded pictures, and its table as text."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from alhvr_trainer.bundle.scripts.metrics import METRICS, UNITS, cell
from alhvr_trainer.config.files import read_json
from alhvr_trainer.config.names import SETTINGS_KEY, TRAINER_NAME, UNLABELED_FOLDER
from alhvr_trainer.config.settings import split_batch
from alhvr_trainer.data.preprocessing import unlabeled_folder
from alhvr_trainer.experiments.demo import figures
from alhvr_trainer.experiments.demo.anatomy import LABELS
from alhvr_trainer.experiments.demo.comparison import TITLES, Scores, result_in_words, same_cases
from alhvr_trainer.experiments.demo.region_maps import middle_slices, regions_of
from alhvr_trainer.experiments.demo.steps import BASELINE_NAME, CONFIGURATION, METHODS, STAMPS, Layout
from alhvr_trainer.reports.page import encoded, render
from alhvr_trainer.trainers.checkpoints import read_checkpoint

STRUCTURES = {name: value for name, value in LABELS.items() if value}


def write_report(layout: Layout) -> Path:
    """Write ``report.html`` and ``summary.txt`` from what the earlier steps left; the report's path."""
    scores = same_cases({trainer: read_json(layout.scores(name) / "metrics.json") for trainer, name in METHODS.items()})
    final = read_checkpoint(layout.fold(TRAINER_NAME) / "checkpoint_final.pth")
    early = read_checkpoint(layout.early_checkpoint)
    settings = final[SETTINGS_KEY]["settings"]
    result = [*result_in_words(scores, settings), _bundle_sentence(layout)]
    summary = "\n\n".join([text_table(scores), *result]) + "\n"
    (layout.output / "summary.txt").write_text(summary, encoding="utf-8")
    split = read_json(layout.preprocessed / "splits_final.json")[0]
    numbers = {name: len(list((layout.raw / name).iterdir())) for name in (UNLABELED_FOLDER, "imagesTs")}
    labeled, unlabeled = _batch(final)
    region_figure, region_scans = _regions(layout, early, final)
    page = render(
        "demo.html.j2",
        Path(__file__).parent,
        cases={
            "train": len(split["train"]),
            "val": len(split["val"]),
            "unlabeled": numbers[UNLABELED_FOLDER],
            "test": numbers["imagesTs"],
        },
        titles={"baseline": TITLES[BASELINE_NAME], "ours": TITLES[TRAINER_NAME]},
        batch={"labeled": labeled, "unlabeled": unlabeled},
        steps=settings["num_epochs"] * settings["num_iterations_per_epoch"],
        scores=_rows(scores),
        result=result,
        outlines=encoded(_outlines(layout, scores)),
        regions=encoded(region_figure),
        region_scans=region_scans,
        curves=encoded(figures.curves(final[SETTINGS_KEY]["history"], _pseudo_dice(layout), early["current_epoch"])),
        commands=_commands(layout),
    )
    layout.report.write_text(page, encoding="utf-8")
    return layout.report


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


# --- pictures ---


def chosen_cases(scores: Scores, count: int = 4) -> list[str]:
    """Test cases at evenly spaced ranks of ALHVR's Dice, worst to best: a fixed rule instead of a choice."""
    dice = {
        case: np.mean([value["Dice"] or 0.0 for value in of_case.values()])
        for case, of_case in scores[TRAINER_NAME]["cases"].items()
    }
    ranked = sorted(dice, key=lambda case: dice[case])
    return [ranked[round(i)] for i in np.linspace(0, len(ranked) - 1, min(count, len(ranked)))]


def _outlines(layout: Layout, scores: Scores) -> figures.Figure:
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
    return figures.outlines(scans, columns, STRUCTURES, notes)


def _dice_note(of_case: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value['Dice'] or 0.0:.2f}" for name, value in of_case.items())


def _regions(layout: Layout, early: dict[str, Any], final: dict[str, Any]) -> tuple[figures.Figure, int]:
    """The picture, and how many scans were computed together, more than are shown."""
    folder = unlabeled_folder(str(layout.preprocessed / _configuration(final)["data_identifier"]))
    slices, names = middle_slices(Path(folder), _batch(final)[1])
    views = []
    for checkpoint in (early, final):
        maps, gamma = regions_of(checkpoint, slices)
        views.append(figures.RegionView(f"after epoch {checkpoint['current_epoch']}", gamma, maps))
    shown = min(4, len(names))
    return figures.regions(slices[:shown, 0], names[:shown], views), len(names)


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


def _commands(layout: Layout) -> list[list[str]]:
    rows = [["step", "seconds", "command"]]
    for file in sorted((layout.output / STAMPS).glob("*.json")):
        stamp = read_json(file)
        name, *arguments = stamp["command"]
        command = shlex.join([Path(name).name, *arguments])
        rows.append([stamp["title"], f"{stamp['seconds']:.0f}", command])
    return rows


def _read(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


if __name__ == "__main__":
    write_report(Layout(Path(sys.argv[1]), sys.argv[2]))
