"""ALHVR's regions of a few unlabeled cases early, midway and late in a training, as images beside its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alhvr_trainer.bundle.scripts.nnunet import regions_in_image_space
from alhvr_trainer.bundle.scripts.uncertainty import REGIONS, alhvr_regions, confidence
from alhvr_trainer.config.names import REGION_MAPS_FOLDER
from alhvr_trainer.data.stream import evenly
from alhvr_trainer.trainers.parallel import get_rank, get_world_size
from alhvr_trainer.trainers.prediction import predicting

MOMENTS = {"early": 0.1, "midway": 0.5, "late": 1.0}
"""Name -> share of the training that is done."""


def moments(epochs: int) -> dict[int, str]:
    """After how many epochs the regions are mapped, and the moment's name; a very short training lacks the first.

    Example:
        >>> moments(30), moments(2)
        ({3: 'early', 15: 'midway', 30: 'late'}, {1: 'midway', 2: 'late'})
    """
    return {max(1, round(share * epochs)): name for name, share in MOMENTS.items()}


def region_map_file(fold: Path, case: str, moment: str, ending: str) -> Path:
    """Where a map lies.

    Args:
        fold: folder of the training.
        case: its name, or a pattern.
        moment: of :data:`MOMENTS`.
        ending: of image files.
    """
    return fold / REGION_MAPS_FOLDER / f"{case}_{REGIONS}_{moment}{ending}"


def write_region_maps(trainer: Any) -> None:
    """At the end of an epoch that is one of :func:`moments`, write the maps; each rank those of its share of the cases.

    The cases are always the same, evenly spread over the names. Their regions are those of ``alhvr predict
    --uncertainty``: of whole cases and clean predictions, where a training step has those of a batch's patches and of
    perturbed features.

    Args:
        trainer: ALHVR's. The setting ``region_maps`` says how many cases; a training on overlapping regions maps none.
    """
    moment = moments(trainer.num_epochs).get(trainer.current_epoch + 1)
    if moment is None or trainer.label_manager.has_regions:
        return
    plans, configuration = trainer.plans_manager, trainer.configuration_manager
    unlabeled = trainer.data.unlabeled
    cases = evenly(unlabeled.identifiers, trainer.settings.region_maps)
    for case in cases[get_rank() :: get_world_size()]:
        sure = []
        for network in trainer.supervised:
            with trainer.acting_on(network), predicting(trainer, mirroring=False) as predict:
                logits, properties = predict(unlabeled, case)
            sure.append(confidence(logits))
        regions = alhvr_regions(*sure, trainer.threshold_proportion)
        file = region_map_file(Path(trainer.output_folder), case, moment, trainer.dataset_json["file_ending"])
        file.parent.mkdir(exist_ok=True)
        found = regions_in_image_space(regions, properties, configuration, plans)
        plans.image_reader_writer_class().write_seg(found, str(file), properties)


def forget_region_maps(trainer: Any) -> None:
    """Remove the maps that an earlier training left behind, of moments that this one has not reached."""
    ending = trainer.dataset_json["file_ending"]
    for epochs, moment in moments(trainer.num_epochs).items():
        if epochs > trainer.current_epoch and get_rank() == 0:
            pattern = region_map_file(Path(trainer.output_folder), "*", moment, ending)
            for file in pattern.parent.glob(pattern.name):
                file.unlink()
