"""The cases that a report shows: the validation cases with the lowest Dice, the unlabeled ones that are least sure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import SimpleITK as sitk

from alhvr_trainer.bundle.scripts.label_files import labels_of
from alhvr_trainer.bundle.scripts.uncertainty import ENTROPY, REGIONS
from alhvr_trainer.config.files import is_name, read_object
from alhvr_trainer.config.names import UNCERTAINTY_FOLDER
from alhvr_trainer.data.dataset import Cases
from alhvr_trainer.data.linking import linked_cases
from alhvr_trainer.errors import InputError, one_line, shown
from alhvr_trainer.models import TrainedModel
from alhvr_trainer.reports.volumes import Volume, as_volume, cropped, shrunk
from alhvr_trainer.trainers.region_maps import MOMENTS, region_map_file

SUMMARY = "summary.json"
IMAGE, REFERENCE, PREDICTION = "image", "reference", "prediction"
REGIONS_AT = {moment: f"{REGIONS}, {moment}" for moment in MOMENTS}
"""Moment of the training -> name of the volume."""
Dice = dict[str, dict[str, float]]
"""Case -> class -> Dice; of classes that neither reference nor prediction has, there is none."""


@dataclass(frozen=True)
class ShownCase:
    """A case with its volumes."""

    name: str
    measure: str
    """What :attr:`value` is, e.g. "mean Dice"."""
    value: float | None
    details: dict[str, float]
    """More such values, e.g. by class."""
    volumes: dict[str, Volume]
    """Image, reference, prediction, entropy, regions, where they are there; as :func:`prepared` gives them."""

    @property
    def score(self) -> str:
        """In words, e.g. "mean Dice 0.512"."""
        return f"{self.measure} {'unknown' if self.value is None else f'{self.value:.3f}'}"


def read_validation(folder: Path, classes: Mapping[str, Sequence[int]], ending: str) -> Dice | None:
    """The Dice of each validation case, as nnU-Net measured it at the end of the training.

    Args:
        folder: ``validation`` of a fold.
        classes: name -> label values.
        ending: of the segmentations' files.

    Returns:
        None if there is no ``summary.json``: the training was not validated.

    Raises:
        InputError: ``summary.json`` is not nnU-Net's.
    """
    file = folder / SUMMARY
    if not file.is_file():
        return None
    content = read_object(file, "validate again: alhvr train ... --val")
    # nnU-Net writes a region as text of the tuple of its labels
    keys = {str(values[0] if len(values) == 1 else tuple(values)): name for name, values in classes.items()}
    found: Dice = {}
    try:
        for entry in content["metric_per_case"]:
            case = Path(entry["prediction_file"]).name.removesuffix(ending)
            dice = {name: float(entry["metrics"][key]["Dice"]) for key, name in keys.items()}
            found[case] = {name: value for name, value in dice.items() if math.isfinite(value)}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{file} is not what nnU-Net writes ({type(error).__name__} at {shown(str(error))}); validate again: "
            "alhvr train ... --val"
        ) from error
    return found


def mean(values: Sequence[float]) -> float:
    """NaN of nothing."""
    return sum(values) / len(values) if values else math.nan


def worst(dice: Dice, count: int) -> list[str]:
    """The cases with the lowest mean Dice, the lowest first; without those that nothing can be said of.

    Example:
        >>> worst({"a": {"organ": 0.9}, "b": {"organ": 0.2}, "c": {}}, 5)
        ['b', 'a']
    """
    known = {case: mean(list(values.values())) for case, values in dice.items() if values}
    return sorted(known, key=lambda case: (known[case], case))[:count]


class Reader:
    """Reads the volumes of a model's cases with nnU-Net's reader, so all of a case lie on the same voxels.

    Args:
        model: whose plans name the reader.
    """

    def __init__(self, model: TrainedModel) -> None:
        self.reader = model.plans_manager.image_reader_writer_class()

    def image(self, files: Sequence[str | Path]) -> Volume:
        """The first channel; InputError if it cannot be read."""
        return self._read(self.reader.read_images, [str(file) for file in files], labels=False)

    def labels(self, file: Path) -> Volume:
        """A label map; InputError if it cannot be read."""
        return self._read(self.reader.read_seg, str(file), labels=True)

    def regions(self, file: Path) -> Volume:
        """A map of ALHVR's regions; InputError if it cannot be read, or is none."""
        found = replace(self.labels(file), background=1)
        values = sitk.GetArrayViewFromImage(found.image)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 3:
            raise InputError(f"{file} is no map of ALHVR's regions, 1 to 3: its values are {low} to {high}")
        return found

    @staticmethod
    def _read(read: Any, files: Any, labels: bool) -> Volume:
        try:
            values, properties = read(files)
            return as_volume(values[0], properties, labels)
        except Exception as error:  # the readers sit on several libraries, each with errors of its own
            names = files if isinstance(files, str) else ", ".join(files)
            raise InputError(f"cannot read {names}: {one_line(error)}") from error


def prepared(volumes: Mapping[str, Volume], case: str) -> dict[str, Volume]:
    """The volumes, cropped and no larger than a page needs: a report holds those of all cases at once.

    Raises:
        InputError: they have different sizes; names the case and these.
    """
    sizes = {name: each.image.GetSize() for name, each in volumes.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise InputError(f"the files of case {case} have different sizes: {listed}; replace the wrong ones")
    first = next(iter(volumes.values())).image
    for each in volumes.values():  # they differ by rounding, which ITK does not forgive
        each.image.CopyInformation(first)
    return shrunk(cropped(volumes))


def validation_case(
    reader: Reader, case: str, images: Sequence[str], reference: Path, prediction: Path, dice: Mapping[str, float]
) -> ShownCase:
    """A validation case with its volumes."""
    volumes = {IMAGE: reader.image(images), REFERENCE: reader.labels(reference), PREDICTION: reader.labels(prediction)}
    return ShownCase(case, "mean Dice", mean(list(dice.values())), dict(dice), prepared(volumes, case))


def unlabeled_case(reader: Reader, case: str, images: Sequence[str], folder: Path, ending: str) -> ShownCase:
    """An unlabeled case with its volumes and scores.

    Args:
        folder: that ``alhvr predict --uncertainty`` wrote into.
        ending: of image files.
    """
    maps = folder / UNCERTAINTY_FOLDER
    volumes = {IMAGE: reader.image(images), PREDICTION: reader.labels(folder / f"{case}{ending}")}
    volumes[ENTROPY] = reader.image([maps / f"{case}_{ENTROPY}{ending}"])
    regions = maps / f"{case}_{REGIONS}{ending}"
    if regions.is_file():
        volumes[REGIONS] = reader.regions(regions)
    scores = read_object(maps / f"{case}.json")
    by_class = {name: each["expected_dice"] for name, each in scores["classes"].items()}
    known = {name: value for name, value in by_class.items() if value is not None}
    return ShownCase(case, "expected Dice", scores["expected_dice"], known, prepared(volumes, case))


def mapped_case(reader: Reader, case: str, images: Sequence[str], fold: Path, ending: str) -> ShownCase | None:
    """An unlabeled case with ALHVR's regions early, midway and late in the training; None if these were not mapped.

    Args:
        fold: folder of the training.
        ending: of image files.
    """
    files = {name: region_map_file(fold, case, moment, ending) for moment, name in REGIONS_AT.items()}
    maps = {name: reader.regions(file) for name, file in files.items() if file.is_file()}
    if not maps:
        return None
    shares = {
        f"Ω{region}, {moment}": float(np.mean(sitk.GetArrayViewFromImage(maps[name].image) == region))
        for moment, name in REGIONS_AT.items()
        if name in maps
        for region in (2, 3)
    }
    measure, last = list(shares.items())[-1]
    return ShownCase(case, measure, last, shares, prepared({IMAGE: reader.image(images), **maps}, case))


def least_sure(folder: Path, cases: Sequence[str], count: int) -> list[str]:
    """The cases with the lowest expected Dice, the lowest first; one of which no opinion finds anything is the first.

    Args:
        folder: with ``CASE.json`` of each.
        cases: their names.
        count: at most.
    """
    expected = {case: read_object(folder / f"{case}.json")["expected_dice"] or 0.0 for case in cases}
    return sorted(cases, key=lambda case: (expected[case], case))[:count]


@contextmanager
def predicted(model: TrainedModel, fold: int | str, cases: Cases, **options: Any) -> Iterator[Path]:
    """A folder with the cases' segmentations and maps, which is there while the context is open.

    Args:
        model, fold: that predict.
        cases: name -> images.
        options: further ones of ``alhvr_trainer.predict``.
    """
    from alhvr_trainer.commands.predict import predict

    with (
        linked_cases(cases, model.dataset_json["file_ending"]) as scans,
        TemporaryDirectory(prefix="alhvr_report_") as folder,
    ):
        output = Path(folder, "segmentations")
        predict(
            fold=fold,
            input=scans,
            output=output,
            model_folder=model.folder,
            weights_file=model.weights_file,
            uncertainty=True,
            **options,
        )
        yield output


def class_values(model: TrainedModel) -> dict[str, tuple[int, ...]]:
    """Name -> label values of the classes or regions, without the background."""
    return labels_of(model.dataset_json["labels"]).classes


def reference_file(model: TrainedModel, folders: Sequence[str | Path], case: str) -> Path | None:
    """The reference of a validation case in the first of the folders that has it."""
    name = f"{case}{model.dataset_json['file_ending']}"
    return next((Path(folder, name) for folder in folders if is_name(case) and Path(folder, name).is_file()), None)
