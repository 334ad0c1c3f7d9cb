"""``alhvr suggest``: which unlabeled cases to annotate next."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alhvr_trainer.bundle.scripts.overwriting import inside_raw_dataset
from alhvr_trainer.config.files import check_folder, check_whole_number
from alhvr_trainer.config.names import TRAINER_NAME, UNCERTAINTY_FOLDER, WEIGHTS_FILE
from alhvr_trainer.devices import check_device
from alhvr_trainer.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from alhvr_trainer.models import TrainedModel

COLUMNS = (
    "rank",
    "case",
    "method",
    "score",
    "expected_dice",
    "entropy",
    "foreground_voxels",
    "most_alike",
    "distance",
    "images",
)


@dataclass(frozen=True)
class Candidate:
    """An unlabeled case and what is known of it."""

    case: str
    images: list[str]
    scores: dict[str, Any]
    foreground: int
    """Voxels of the predicted foreground."""


def suggest(
    dataset: int | str,
    configuration: str,
    fold: int | str = 0,
    *,
    number: int = 10,
    method: str = "disagreement",
    plans: str | None = None,
    trainer: str = TRAINER_NAME,
    weights_file: str = WEIGHTS_FILE,
    output: str | Path = "suggestions",
    diversity: float = 0.3,
    seed: int = 0,
    device: str = "cuda",
    num_processes: int = 3,
) -> Path:
    """Name the unlabeled cases whose annotation should help the model most.

    The model predicts all unlabeled cases of its fold; that takes the most time, and a second call with the same
    output, e.g. for another method, takes the predictions that are there.

    Args:
        dataset: id or name.
        configuration: e.g. 2d or 3d_fullres.
        fold: of the model; its unlabeled cases are the candidates.
        number: how many cases to name.
        method: "disagreement" (of both networks, or of mirrored copies: one minus the expected Dice), "entropy"
            (mean over the predicted foreground and its border), "foreground" (at random, in proportion to the
            predicted foreground: cases with much to annotate) or "random" (predicts nothing).
        plans: plans identifier; default: that of the only such model, else ALHVRPlans.
        trainer: that the model was trained with.
        weights_file: name of the checkpoint.
        output: folder for suggestions.csv, suggestions.html and the predictions.
        diversity: from 0 to 1: how much a case counts that looks unlike those above it in the list; for
            "disagreement" and "entropy".
        seed: for "foreground" and "random".
        device: "cuda", "cpu" or "mps".
        num_processes: worker processes of the prediction.

    Returns:
        The table, OUTPUT/suggestions.csv.

    Raises:
        InputError: bad arguments, no model or no unlabeled case; or as for ``alhvr predict``.

    Example:
        alhvr suggest -d 27 -c 2d -f 0 -n 10
        alhvr suggest -d 27 -c 2d -f 0 -n 10 --method entropy --output by_entropy
    """
    from alhvr_trainer.annotation.ranking import METHODS

    if method not in METHODS:
        raise InputError(f"method is {method!r}{did_you_mean(str(method), METHODS)}; it must be {', '.join(METHODS)}")
    if not 0 <= diversity <= 1:
        raise InputError(f"diversity is {diversity}; it must be from 0 to 1")
    check_whole_number("number", number)
    target = Path(output)
    check_folder(target)
    problem = inside_raw_dataset(target)
    if problem:
        raise InputError(problem)
    check_device(device)
    from alhvr_trainer.annotation.predictions import predict_cases
    from alhvr_trainer.data.dataset import find_dataset
    from alhvr_trainer.models import find_model, one_fold

    found = find_dataset(dataset)
    number_of_fold = one_fold(fold, "its unlabeled cases are ranked")
    model = find_model(dataset, configuration, number_of_fold, plans, trainer, weights_file)
    cases = found.fold(number_of_fold, (), ()).unlabeled
    target.mkdir(parents=True, exist_ok=True)
    if method == "random":
        candidates = [Candidate(case, images, {}, 0) for case, images in cases.items()]
    else:
        predicted = predict_cases(model, cases, target, device, num_processes)
        candidates = [_candidate(case, images, predicted, model) for case, images in cases.items()]
    rows = _rank(candidates, model, method, min(number, len(cases)), diversity, seed)
    table = _write_table(rows, target / "suggestions.csv")
    from alhvr_trainer.annotation.page import write_page

    write_page(rows, model, target, method)
    print(f"{len(rows)} of {len(cases)} unlabeled cases by {method}: {', '.join(row['case'] for row in rows)}")
    return table


def _candidate(case: str, images: list[str], predicted: Path, model: TrainedModel) -> Candidate:
    import numpy as np

    reader = model.plans_manager.image_reader_writer_class()
    segmentation, _ = reader.read_seg(str(predicted / f"{case}{model.dataset_json['file_ending']}"))
    scores = json.loads((predicted / UNCERTAINTY_FOLDER / f"{case}.json").read_text(encoding="utf-8"))
    return Candidate(case, images, scores, int(np.count_nonzero(segmentation)))


def _rank(
    candidates: Sequence[Candidate], model: TrainedModel, method: str, number: int, diversity: float, seed: int
) -> list[dict[str, Any]]:
    """The rows of the table."""
    import numpy as np

    from alhvr_trainer.annotation import ranking

    reader = model.plans_manager.image_reader_writer_class()
    small = np.stack([ranking.thumbnail(reader.read_images(each.images)[0]) for each in candidates])
    apart = ranking.distances_between(small)
    if method in ("random", "foreground"):
        weights = [float(each.foreground) if method == "foreground" else 1.0 for each in candidates]
        chosen, needs = ranking.draw(weights, number, seed), weights
    else:
        needs = [ranking.need(each.scores, method) for each in candidates]
        chosen = ranking.choose(needs, apart, number, diversity)
    rows = []
    for rank, index in enumerate(chosen, start=1):
        each, above = candidates[index], chosen[: rank - 1]
        alike = min(above, key=lambda other: apart[index, other], default=None)
        rows.append(
            {
                "rank": rank,
                "case": each.case,
                "method": method,
                "score": round(needs[index], 4),
                "expected_dice": each.scores.get("expected_dice"),
                "entropy": each.scores.get("entropy"),
                "foreground_voxels": "" if method == "random" else each.foreground,
                "most_alike": "" if alike is None else candidates[alike].case,
                "distance": "" if alike is None else round(float(apart[index, alike]), 4),
                "images": each.images,
            }
        )
    return rows


def _write_table(rows: Sequence[dict[str, Any]], file: Path) -> Path:
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, COLUMNS)
        writer.writeheader()
        writer.writerows({**row, "images": ";".join(row["images"])} for row in rows)
    return file
