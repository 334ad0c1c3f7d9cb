"""Maps of a method's own uncertainty beside nnU-Net's segmentations, one file per case in the image's geometry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.export_prediction import (
    convert_predicted_logits_to_segmentation_with_correct_shape,
    export_prediction_from_logits,
)
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from alhvr_trainer.commands.predict import UNCERTAINTY
from alhvr_trainer.compatibility import replaced
from alhvr_trainer.config.methods import method_of, methods
from alhvr_trainer.errors import InputError

if TYPE_CHECKING:
    from alhvr_trainer.models import TrainedModel

REORIENTED = "original_orientation"
Uncertainty = Callable[[Tensor, bool], Tensor]


def uncertainty_of(model: TrainedModel) -> Uncertainty:
    """What turns a model's logits into its uncertainty.

    Raises:
        InputError: its method has none, or its images are read by another library than SimpleITK.
    """
    found = method_of(model.trainer)
    uncertainty: Uncertainty | None = getattr(found.trainer, "uncertainty", None) if found else None
    if uncertainty is None:
        able = [name for name, each in methods().items() if getattr(each.trainer, "uncertainty", None)]
        raise InputError(f"--uncertainty is for models of {', '.join(able)}; {model.folder} is of {model.trainer}")
    reader = model.plans["image_reader_writer"]
    if not reader.startswith("SimpleITKIO"):
        raise InputError(f"--uncertainty needs images that SimpleITK reads; the plans of {model.folder} name {reader}")
    return uncertainty


@contextmanager
def uncertainty_maps(uncertainty: Uncertainty) -> Iterator[None]:
    """While the context is open, nnU-Net's predictors write a map beside each segmentation: ``uncertainty/CASE...``."""
    with replaced(predict_from_raw_data, export_prediction_from_logits=partial(export_with_map, uncertainty)):
        yield


def export_with_map(
    uncertainty: Uncertainty,
    logits: Tensor,
    properties: dict[str, Any],
    configuration: Any,
    plans: Any,
    dataset_json: dict[str, Any],
    file: str,
    *options: Any,
    **named_options: Any,
) -> None:
    """nnU-Net's export of a segmentation, with a map of its uncertainty.

    Args:
        uncertainty: of logits, (B, C, *S) to (B, *S).
        logits: (C, *S), preprocessed; the others as for nnU-Net's ``export_prediction_from_logits``.
    """
    regions = plans.get_label_manager(dataset_json).has_regions
    values = uncertainty(torch.as_tensor(logits)[None].float(), regions)
    found = in_image_space(values, properties, configuration, plans)
    target = Path(file).parent / UNCERTAINTY / f"{Path(file).name}{dataset_json['file_ending']}"
    target.parent.mkdir(exist_ok=True)
    write_map(found, properties["sitk_stuff"], target)
    export_prediction_from_logits(
        logits, properties, configuration, plans, dataset_json, file, *options, **named_options
    )


def in_image_space(values: Tensor, properties: dict[str, Any], configuration: Any, plans: Any) -> np.ndarray:
    """Values on the preprocessed grid, (1, *S), on the image's, (*S); 0 where nnU-Net cropped the image.

    nnU-Net resamples and crops them as it does the probabilities of a single region.
    """
    one_region = LabelManager({"background": 0, "map": [1, 2]}, (1,), inference_nonlin=torch.Tensor.float)
    _, maps = convert_predicted_logits_to_segmentation_with_correct_shape(
        values, plans, configuration, one_region, properties, return_probabilities=True
    )
    found: np.ndarray = maps[0]
    return found


def write_map(values: np.ndarray, geometry: dict[str, Any], file: Path) -> None:
    """Write a map as float32.

    Args:
        values: (z, y, x), of a 2D image (1, y, x).
        geometry: what nnU-Net's reader keeps under "sitk_stuff".
        file: to write.
    """
    image = sitk.GetImageFromArray(np.asarray(values if len(geometry["spacing"]) == 3 else values[0], np.float32))
    image.SetSpacing(geometry["spacing"])
    image.SetOrigin(geometry["origin"])
    image.SetDirection(geometry["direction"])
    if REORIENTED in geometry:
        image = sitk.DICOMOrient(image, geometry[REORIENTED])
    sitk.WriteImage(image, str(file), True)
