"""A model's predictions of unlabeled cases, kept with their origin."""

from __future__ import annotations

import shutil
from pathlib import Path

from alhvr_trainer.commands.predict import predict
from alhvr_trainer.config.files import read_object, write_json
from alhvr_trainer.config.names import UNCERTAINTY_FOLDER
from alhvr_trainer.data.dataset import Cases
from alhvr_trainer.data.linking import linked_cases
from alhvr_trainer.errors import InputError
from alhvr_trainer.models import TrainedModel


def predict_cases(model: TrainedModel, cases: Cases, folder: Path, device: str, num_processes: int) -> Path:
    """Segmentations, maps and scores of cases; those of the same checkpoint that are there are kept.

    Args:
        model: that predicts, with one fold.
        cases: images.
        folder: for ``predicted`` and ``origin.json``.
        device, num_processes: as for ``alhvr predict``.

    Returns:
        ``folder/predicted``.

    Raises:
        InputError: as :func:`~alhvr_trainer.predict`; or the folder has another ``origin.json``.
    """
    output, origin = folder / "predicted", folder / "origin.json"
    (now,) = model.origin
    before = read_object(origin) if origin.exists() else now
    if before.keys() != now.keys():
        raise InputError(f"{origin} is not this package's: choose another folder than {folder}")
    if before != now:
        print(f"{output} holds predictions of an earlier checkpoint: they are made again")
        shutil.rmtree(output, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(now, origin)
    missing = {
        case: images for case, images in cases.items() if not (output / UNCERTAINTY_FOLDER / f"{case}.json").is_file()
    }
    if missing:
        with linked_cases(missing, model.dataset_json["file_ending"]) as images:
            predict(
                input=images,
                output=output,
                model_folder=model.folder,
                fold=model.folds[0],
                weights_file=model.weights_file,
                uncertainty=True,
                device=device,
                num_processes=num_processes,
            )
    return output
