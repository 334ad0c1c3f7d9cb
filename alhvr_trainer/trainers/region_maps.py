"""ALHVR's regions of a few unlabeled cases early, midway and late in a training, as images beside its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alhvr_trainer.bundle.scripts.nnunet import regions_in_image_space
from alhvr_trainer.bundle.scripts.uncertainty import REGIONS, alhvr_regions, confidence
from alhvr_trainer.config.names import REGION_MAPS_FOLDER
from alhvr_trainer.data.stream import evenly
from alhvr_trainer.errors import one_line
from alhvr_trainer.trainers.parallel import get_rank, get_world_size
from alhvr_trainer.trainers.prediction import predicting

MOMENTS = {"early": 0.1, "midway": 0.5, "late": 1.0}
"""Name -> share of the training that is done."""


def moments(epochs: int) -> dict[int, str]:
    """After how many epochs the regions are mapped, and the moment's name; of moments that coincide, the last.

    Example:
        >>> moments(30), moments(2)
        ({3: 'early', 15: 'midway', 30: 'late'}, {1: 'midway', 2: 'late'})
    """
    return {max(1, round(share * epochs)): name for name, share in MOMENTS.items()}


def region_map_file(fold: Path, case: str, moment: str, ending: str) -> Path:
    """Where a map lies.

    Args:
        fold: folder of the training.
        case: its name.
        moment: of :data:`MOMENTS`.
        ending: of image files.
    """
    return fold / REGION_MAPS_FOLDER / f"{case}_{REGIONS}_{moment}{ending}"


def write_region_maps(trainer: Any) -> None:
    """After an epoch that is one of :func:`moments`, write the maps; each rank those of its share of the cases.

    The cases are always the same, evenly spread over the names. Their regions are those of ``alhvr predict
    --uncertainty``: of whole cases and clean predictions, where a training step has those of a batch's patches and of
    perturbed features. A case that cannot be mapped is named in the log, and training goes on.

    Args:
        trainer: ALHVR's. The setting ``region_maps`` says how many cases; a training on overlapping regions maps none.
    """
    moment = moments(trainer.num_epochs).get(trainer.current_epoch)
    cases = _mapped_cases(trainer)
    if moment is None or not cases:
        return
    for case in cases[get_rank() :: get_world_size()]:
        try:
            _write_region_map(trainer, case, moment)
        except (MemoryError, OSError, RuntimeError) as error:  # scans may be larger than any that is trained on
            trainer.print_to_log_file(f"ALHVR WARNING: no map of the regions of case {case}: {one_line(error)}")
        else:
            trainer.print_to_log_file(f"ALHVR: mapped the regions of unlabeled case {case} ({moment})")


def _mapped_cases(trainer: Any) -> list[str]:
    if trainer.label_manager.has_regions:
        return []
    return evenly(trainer.data.unlabeled.identifiers, trainer.settings.region_maps)


def _write_region_map(trainer: Any, case: str, moment: str) -> None:
    plans, sure = trainer.plans_manager, []
    for network in trainer.supervised:
        with trainer.acting_on(network), predicting(trainer, mirroring=False) as predict:
            logits, properties = predict(trainer.data.unlabeled, case)
        sure.append(confidence(logits))
    regions = alhvr_regions(*sure, trainer.threshold_proportion)
    found = regions_in_image_space(regions, properties, trainer.configuration_manager, plans)
    file = region_map_file(Path(trainer.output_folder), case, moment, trainer.dataset_json["file_ending"])
    file.parent.mkdir(exist_ok=True)
    plans.image_reader_writer_class().write_seg(found, str(file), properties)


def forget_region_maps(trainer: Any) -> None:
    """Remove the maps of an earlier training: of moments that this one has not reached, and of other cases."""
    if get_rank() != 0:
        return
    reached = [moment for epochs, moment in moments(trainer.num_epochs).items() if epochs <= trainer.current_epoch]
    fold = Path(trainer.output_folder)
    own = tuple(region_map_file(fold, case, moment, ".").name for case in _mapped_cases(trainer) for moment in reached)
    for file in (fold / REGION_MAPS_FOLDER).glob(f"*_{REGIONS}_*"):
        if not file.name.startswith(own):
            file.unlink()
