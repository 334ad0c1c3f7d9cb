"""How sure a model is, beside nnU-Net's segmentations: maps in the image's geometry, and scores of each case.

The opinions are those of both networks of a checkpoint where they are of the plans' architecture, and of all folds; of
a single network, those on the mirrored copies of the image. The formulas: ``bundle/scripts/uncertainty.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor

from alhvr_trainer.bundle.scripts.label_files import labels_of
from alhvr_trainer.bundle.scripts.nnunet import in_image_space, regions_in_image_space
from alhvr_trainer.bundle.scripts.uncertainty import (
    DISAGREEMENT,
    ENTROPY,
    REGIONS,
    compare,
    labels_of_logits,
    scores,
    write_scores,
)
from alhvr_trainer.bundle.scripts.windows import flips
from alhvr_trainer.compatibility import replaced
from alhvr_trainer.config.methods import method_of
from alhvr_trainer.config.names import PREDICTED_BY, UNCERTAINTY_FOLDER
from alhvr_trainer.config.plans import planned_proportion
from alhvr_trainer.errors import InputError
from alhvr_trainer.models import Member, TrainedModel, model_members

if TYPE_CHECKING:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

EVIDENTIAL = "evidential"
"""Map of EVIL's own uncertainty."""
REORIENTED = "original_orientation"


@dataclass(frozen=True)
class Opinion:
    """One of the predictions that are compared."""

    weights: dict[str, Tensor] | None
    """None: of the network as it is loaded."""
    flip: tuple[int, ...] | None
    """Axes of the tensors (N, C, *S) along which the image is mirrored; None: nnU-Net's mean over all."""
    counts: bool
    """Whether it is part of the segmentation."""


@dataclass(frozen=True)
class Uncertainty:
    """What is asked of a model."""

    opinions: tuple[Opinion, ...]
    order: tuple[int, ...] | None
    """With overlapping regions, the label of each."""
    proportion: float | None
    """ALHVR's beta, if its regions can be mapped."""
    own: Callable[[Tensor, bool], Tensor] | None
    """A method's own uncertainty of logits (B, C, *S), as (B, *S)."""
    origin: list[dict[str, Any]]
    """Of the model, for the record."""

    @property
    def maps(self) -> tuple[str, ...]:
        """Names, in the order of the channels."""
        regions = (REGIONS,) if self.proportion is not None else ()
        return (ENTROPY, DISAGREEMENT, *regions, *((EVIDENTIAL,) if self.own else ()))


def uncertainty_of(model: TrainedModel, network: str, mirroring: bool) -> Uncertainty:
    """What tells how sure a model is.

    Args:
        model: its folds count as well.
        network: that segments, "a", "b" or "both".
        mirroring: whether the model predicts mirrored copies, too.

    Raises:
        InputError: there is but one opinion, or images are read by another library than SimpleITK.
    """
    reader = model.plans["image_reader_writer"]
    if not reader.startswith("SimpleITKIO"):
        raise InputError(f"--uncertainty needs images that SimpleITK reads; the plans of {model.folder} name {reader}")
    found = method_of(model.trainer)
    own = getattr(found.trainer, "uncertainty", None) if found else None
    if own is not None and network != "a":
        raise InputError(f"--uncertainty of {model.trainer} is that of network a alone: leave out --network {network}")
    pairs = both_networks(model) if own is None else None  # EVIL's second network is not evidential
    members = pairs or model_members(model, network)
    manager = model.plans_manager.get_label_manager(model.dataset_json)
    order = tuple(manager.regions_class_order) if manager.has_regions else None
    two = pairs and len(pairs) == 2 and order is None
    proportion = planned_proportion(model.configuration_manager.configuration) if two else None
    origin = [{**each, "network": network, "mirroring": mirroring} for each in model.origin]
    return Uncertainty(_opinions(members, network, mirroring, model), order, proportion, own, origin)


def _opinions(members: list[Member], network: str, mirroring: bool, model: TrainedModel) -> tuple[Opinion, ...]:
    if len(members) > 1:
        return tuple(Opinion(each.weights, None, network in (each.network, "both")) for each in members)
    axes = members[0].checkpoint.get("inference_allowed_mirroring_axes") if mirroring else None
    mirrored = flips(axes or ())
    if len(mirrored) == 1:
        raise InputError(
            f"--uncertainty compares predictions, and {model.folder} makes one only: leave out --nomirroring, name "
            "several folds, or train two networks, e.g. with ALHVRTrainer"
        )
    return tuple(Opinion(None, flip, counts=False) for flip in mirrored)


def both_networks(model: TrainedModel) -> list[Member] | None:
    """Networks a and b of each fold; None where there is no b, or it is of another architecture than the plans'."""
    try:
        return model_members(model, "both")
    except InputError:
        return None


class OpinionPredictor(nnUNetPredictor):
    """nnU-Net's predictor; behind a case's logits come, as channels, maps and the labels that each opinion gives."""

    list_of_parameters: Any
    flip: tuple[int, ...] | None = None

    def __init__(self, uncertainty: Uncertainty, **options: Any) -> None:
        super().__init__(**options)
        self.uncertainty = uncertainty

    @torch.inference_mode()
    def predict_logits_from_preprocessed_data(self, data: Tensor) -> Tensor:
        """(C, *S) to (K + maps + M, *S), half precision."""
        asked = self.uncertainty
        predictions = ((self._ask(opinion, data), opinion.counts) for opinion in asked.opinions)
        mean, maps, labels = compare(predictions, len(asked.opinions), asked.order, asked.proportion)
        logits = super().predict_logits_from_preprocessed_data(data) if mean is None else mean
        if asked.own is not None:
            maps[EVIDENTIAL] = asked.own(logits[None].float(), asked.order is not None)[0]
        return torch.cat((logits, *(maps[name][None].to(logits) for name in asked.maps), labels.to(logits)))

    def _ask(self, opinion: Opinion, data: Tensor) -> Tensor:
        segmenting, self.flip = self.list_of_parameters, opinion.flip
        try:
            self.list_of_parameters = segmenting if opinion.weights is None else [opinion.weights]
            return super().predict_logits_from_preprocessed_data(data)
        finally:
            self.list_of_parameters, self.flip = segmenting, None

    def _internal_maybe_mirror_and_predict(self, x: Tensor) -> Tensor:
        if self.flip is None:
            return super()._internal_maybe_mirror_and_predict(x)
        return self.network(x.flip(self.flip)).flip(self.flip)


@contextmanager
def uncertainty_maps(uncertainty: Uncertainty) -> Iterator[None]:
    """While the context is open, nnU-Net exports maps and scores beside each segmentation.

    Args:
        uncertainty: of the :class:`OpinionPredictor` that predicts.
    """
    export = partial(export_with_maps, uncertainty.maps, uncertainty.order, uncertainty.origin)
    with replaced(predict_from_raw_data, export_prediction_from_logits=export):
        yield


def export_with_maps(
    maps: tuple[str, ...],
    order: tuple[int, ...] | None,
    origin: list[dict[str, Any]],
    predicted: Any,
    properties: dict[str, Any],
    configuration: Any,
    plans: Any,
    dataset_json: dict[str, Any],
    file: str,
    *options: Any,
    **named_options: Any,
) -> None:
    """nnU-Net's export of a segmentation, after ``uncertainty/CASE_MAP...`` and ``uncertainty/CASE.json``.

    Args:
        maps, order, origin: of :class:`Uncertainty`.
        predicted: of :class:`OpinionPredictor`; the others as for nnU-Net's ``export_prediction_from_logits``.
    """
    manager: LabelManager = plans.get_label_manager(dataset_json)
    outputs = manager.num_segmentation_heads
    channels = torch.as_tensor(predicted)
    logits, found, opinions = channels.split([outputs, len(maps), len(channels) - outputs - len(maps)])
    folder, case = Path(file).parent / UNCERTAINTY_FOLDER, Path(file).name
    folder.mkdir(exist_ok=True)
    for name in {ENTROPY, DISAGREEMENT, REGIONS, EVIDENTIAL}.difference(maps):  # of a model that predicted before
        (folder / f"{case}_{name}{dataset_json['file_ending']}").unlink(missing_ok=True)
    for name, values in zip(maps, found, strict=True):
        write_map(
            _in_image_space(name, values, properties, configuration, plans),
            properties["sitk_stuff"],
            folder / f"{case}_{name}{dataset_json['file_ending']}",
        )
    export_prediction_from_logits(
        np.asarray(logits), properties, configuration, plans, dataset_json, file, *options, **named_options
    )
    entropy = found[maps.index(ENTROPY)].float().numpy()
    segmentation = labels_of_logits(logits, order).numpy()
    classes = labels_of(dataset_json["labels"]).classes
    # last, for a case without scores is predicted again
    found_scores = scores(segmentation, opinions.numpy().astype(int), entropy, classes)
    write_scores({**found_scores, PREDICTED_BY: origin}, folder, case)


def _in_image_space(name: str, values: Tensor, *case: Any) -> np.ndarray:
    if name == REGIONS:
        return regions_in_image_space(values, *case)
    return in_image_space(values[None].float(), *case)[0].astype(np.float32)


def write_map(values: np.ndarray, geometry: dict[str, Any], file: Path) -> None:
    """Write a map.

    Args:
        values: (z, y, x), of a 2D image (1, y, x).
        geometry: what nnU-Net's reader keeps under "sitk_stuff".
        file: to write.
    """
    image = sitk.GetImageFromArray(values if len(geometry["spacing"]) == 3 else values[0])
    image.SetSpacing(geometry["spacing"])
    image.SetOrigin(geometry["origin"])
    image.SetDirection(geometry["direction"])
    if REORIENTED in geometry:
        image = sitk.DICOMOrient(image, geometry[REORIENTED])
    sitk.WriteImage(image, str(file), True)
