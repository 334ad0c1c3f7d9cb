"""Label maps whose headers place them elsewhere in space than their images."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from alhvr_trainer.data.dataset import Dataset

_TOLERANCE = 1e-3
"""In mm, and of direction cosines: NIfTI stores geometry in single precision."""


def misplaced_labels(dataset: Dataset) -> list[str]:
    """Labeled cases whose label map has another origin or direction than the image. Hidden cases are left out.

    nnU-Net goes by the order of the voxels, so such a label map may be mirrored or shifted, or only its header wrong.

    Args:
        dataset: with its raw data; images that SimpleITK does not read are skipped.
    """
    listed = get_filenames_of_train_images_and_targets(str(dataset.raw), deepcopy(dataset.dataset_json))
    pairs = {case: (entry["images"][0], entry["label"]) for case, entry in listed.items() if case not in dataset.hidden}
    return [case for case, (image, label) in pairs.items() if not _same_place(_header(image), _header(label))]


def _header(file: str) -> Any:
    if not Path(file).is_file() or not file.endswith((".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")):
        return None
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    try:
        reader.ReadImageInformation()
    except RuntimeError:  # nibabel's readers take what ITK does not
        return None
    return reader


def _same_place(image: Any, label: Any) -> bool:
    if image is None or label is None or image.GetDimension() != label.GetDimension():
        return True
    return all(
        np.allclose(getattr(image, get)(), getattr(label, get)(), rtol=0, atol=_TOLERANCE)
        for get in ("GetOrigin", "GetDirection")
    )
