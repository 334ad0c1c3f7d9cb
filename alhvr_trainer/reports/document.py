"""The report's page, from what was found out about a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alhvr_trainer import __version__
from alhvr_trainer.models import TrainedModel
from alhvr_trainer.reports.cases import Dice, ShownCase, class_values, mean
from alhvr_trainer.reports.page import encoded, render
from alhvr_trainer.reports.slices import slice_figure
from alhvr_trainer.reports.training import Training, curve_figure, curves_in_words
from alhvr_trainer.reports.viewer import EXTRA, OVERLAYS, SHOWN_AT_FIRST, legend, look, niivue_module
from alhvr_trainer.reports.volumes import embedded
from alhvr_trainer.trainers.history import label_key, pseudo_label_key
from alhvr_trainer.trainers.region_maps import MOMENTS

Classes = Mapping[str, Sequence[int]]
"""Name -> label values."""
LARGEST_PAGE = 25_000_000
"""Bytes: what mail takes."""
RESERVE = 200_000
"""For the page's text."""


@dataclass(frozen=True)
class Document:
    """What the page tells."""

    model: TrainedModel
    fold: int | str
    training: Training
    dice: Dice | None
    worst: Sequence[ShownCase]
    """Validation cases."""
    unsure: Sequence[ShownCase]
    """Unlabeled cases."""
    mapped: Sequence[ShownCase]
    """Unlabeled cases with ALHVR's regions at several moments of the training."""
    predicted: int
    """Unlabeled cases of which the least sure were taken."""
    unlabeled: int
    """All that the fold has."""
    notes: Sequence[str]


def document(found: Document, most_bytes: int = LARGEST_PAGE) -> str:
    """The page as text.

    Args:
        found: what it tells.
        most_bytes: of the page; the volumes are shrunk until they fit.
    """
    classes = class_values(found.model)
    cases = (*found.worst, *found.unsure, *found.mapped)
    shown = [_entry(number, case, classes) for number, case in enumerate(cases)]
    training = found.training
    curves = None
    if training.curves or training.shares:
        pictures = {name: encoded(curve_figure(training, dark=name == "dark"), 80) for name in ("light", "dark")}
        curves = {**pictures, "words": curves_in_words(training)}
    module = niivue_module() if shown else None
    texts: dict[str, str] = {}
    if module:
        used = [*(case["picture"] for case in shown), *((curves["light"], curves["dark"]) if curves else ())]
        left = most_bytes - RESERVE - len(module) - sum(map(len, used))
        for entry, case in zip(shown, cases, strict=True):
            packed = embedded(case.volumes, left / len(shown))
            texts |= {entry["volumes"][name]: text for name, text in packed.items()}
    overlays = [name for name in OVERLAYS if any(name in case["volumes"] for case in shown)]
    title = f"Training report: {found.model.dataset}, {found.model.configuration}, fold {found.fold}"
    return render(
        "report.html.j2",
        title=title,
        facts=_facts(found),
        warnings=training.warnings,
        curves=curves,
        classes=_class_rows(found, classes),
        notes=found.notes,
        cases=shown,
        groups=_groups(found, shown, list(classes)),
        overlays=overlays,
        legends={name.partition(",")[0]: legend(name, classes) for name in overlays},
        has_viewer=module is not None,
        extra=EXTRA,
        module=module,
        volumes=texts,
        viewed={
            "cases": [{key: case[key] for key in ("name", "score", "volumes", "looks")} for case in shown],
            "shown": SHOWN_AT_FIRST,
        },
        version=__version__,
    )


def _entry(number: int, case: ShownCase, classes: Classes) -> dict[str, Any]:
    """What the page has of a case beside its volumes."""
    return {
        "number": number,
        "name": case.name,
        "score": case.score,
        "picture": encoded(slice_figure(case.volumes, classes), 80),
        "words": f"{case.name}: one slice, as {', '.join(case.volumes)}. {_in_words(case)}",
        "volumes": {name: f"volume-{number}-{of_case}" for of_case, name in enumerate(case.volumes)},
        "looks": {name: look(name, volume, classes) for name, volume in case.volumes.items()},
    }


def _in_words(case: ShownCase) -> str:
    listed = ", ".join(f"{name} {value:.3f}" for name, value in case.details.items())
    return f"{case.score[:1].upper()}{case.score[1:]}{f'; {listed}' if listed else ''}."


def _facts(found: Document) -> list[list[str]]:
    model, training = found.model, found.training
    patch = " × ".join(map(str, model.configuration_manager.patch_size))
    return [
        ["dataset", "trainer", "plans", "configuration", "fold", "epochs", "batch", "patch"],
        [
            *(model.dataset, model.trainer, model.plans_name, model.configuration, str(found.fold)),
            *(str(training.epochs), str(model.configuration_manager.batch_size), patch),
        ],
    ]


def _class_rows(found: Document, classes: Classes) -> list[list[str]]:
    shares, dice = found.training.shares, found.dice or {}
    numbers = {name: number for number, name in found.training.classes.items()}
    rows = [["class", "mean Dice", "lowest", "share in the labels", "share in the pseudo-labels"]]
    for name in classes:
        values = [of_case[name] for of_case in dice.values() if name in of_case]
        keys = [key(numbers[name]) for key in (label_key, pseudo_label_key)] if name in numbers else []
        known = [f"{shares[key][-1]:.3%}" for key in keys if key in shares] or ["–", "–"]
        rows.append([name, *([f"{mean(values):.3f}", f"{min(values):.3f}"] if values else ["–", "–"]), *known])
    return rows


def _groups(found: Document, shown: list[dict[str, Any]], classes: list[str]) -> list[dict[str, Any]]:
    """The parts of the page with cases."""
    count = len(found.worst)
    unlabeled, mapped = shown[count:][: len(found.unsure)], shown[count + len(found.unsure) :]
    dice = found.dice or {}
    overall = [mean(list(values.values())) for values in dice.values() if values]
    groups = []
    if found.dice is not None:
        text = f"Mean Dice of {len(overall)} validation cases: {mean(overall):.3f}. " if overall else ""
        text += f"Shown, lowest Dice first: {count}."
        groups.append(
            {
                "key": "validation",
                "heading": "Worst validation cases",
                "title": "Validation cases, lowest Dice first",
                "text": text,
                "rows": _rows(found.worst, classes),
                "cases": shown[:count],
            }
        )
    if found.predicted:
        groups.append(
            {
                "key": "unlabeled",
                "heading": "Least sure unlabeled cases",
                "title": "Unlabeled cases, least sure first",
                "text": f"Of {found.unlabeled} unlabeled cases, {found.predicted} were predicted. Shown, least sure "
                f"first: {len(found.unsure)}. The expected Dice is that between the opinions of the "
                "networks, or of mirrored copies: see alhvr predict --uncertainty.",
                "rows": _rows(found.unsure, classes),
                "cases": unlabeled,
            }
        )
    if mapped:
        when = ", ".join(f"{moment}: after {share:.0%}" for moment, share in MOMENTS.items())
        groups.append(
            {
                "key": "regions",
                "heading": "ALHVR's regions during the training",
                "title": "The same unlabeled cases at several moments: shares of the voxels",
                "text": f"{when[:1].upper()}{when[1:]} of the training. In Ω2 one network is sure and "
                "teaches the other, in Ω3 neither is sure. Sure means more confident than gamma, the mean over the "
                "least confident voxels, so the regions need not shrink.",
                "rows": _rows(found.mapped, list(dict.fromkeys(key for case in found.mapped for key in case.details))),
                "cases": mapped,
            }
        )
    return groups


def _rows(cases: Sequence[ShownCase], details: list[str]) -> list[list[str]]:
    columns = [*sorted({case.measure for case in cases} - {*details}), *details]
    rows = [["case", *columns]]
    for case in cases:
        values = {**case.details, case.measure: case.value}
        known = (values.get(name) for name in columns)
        rows.append([case.name, *("–" if value is None else f"{value:.3f}" for value in known)])
    return rows
