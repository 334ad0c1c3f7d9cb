"""nnU-Net's own readers and writers behind MONAI's interfaces, so that every number and every geometry is nnU-Net's.

MONAI arranges an image as ``(channels, x, y, z)``, nnU-Net as ``(channels, z, y, x)``. What nnU-Net knows of a file
besides its voxels (its "properties") travels in the image's metadata, as arrays: those survive MONAI's collating.
"""

from __future__ import annotations

import tempfile
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from monai.config import KeysCollection
from monai.data import ImageReader, ImageWriter
from monai.transforms import LoadImaged
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from .images import check_finite, nnunet_readable

PROPERTIES = "nnunet"  # key of the metadata
AXES_PER_SLICE = 2


class LoadImageNNUNetd(LoadImaged):
    """Load the files of a case by nnU-Net's reader, and by no other; images in memory stay as they are.

    In: ``data[key]``, the files of the channels (one, or a sequence), or a tensor. Out: ``data[key]``, a
    ``MetaTensor`` ``(C, x, y, z)`` with the affine (RAS, mm) and nnU-Net's properties in its metadata.

    MONAI's class falls back to other readers where one fails; those could read what nnU-Net refuses.

    Args:
        keys: of the images.
        plans_manager: the model's plans.
        allow_unknown_orientation: see :func:`scripts.images.check_image`.
    """

    def __init__(
        self, keys: KeysCollection, plans_manager: PlansManager, allow_unknown_orientation: bool = False
    ) -> None:
        self.reader = NNUNetReader(plans_manager, allow_unknown_orientation)
        super().__init__(keys, reader=self.reader)

    def __call__(self, data: Mapping[Hashable, Any], reader: ImageReader | None = None) -> dict[Hashable, Any]:
        data = dict(data)
        of_files = {key: data[key] for key in self.key_iterator(data) if not isinstance(data[key], _IN_MEMORY)}
        for key in {*self.key_iterator(data)} - {*of_files}:
            check_finite(np.asarray(data[key]), "the image")
        if of_files:
            data.update(super().__call__(of_files, reader or self.reader))
        return data


_IN_MEMORY = (torch.Tensor, np.ndarray)


class NNUNetReader(ImageReader):
    """The model's reader of nnU-Net as a reader of MONAI."""

    def __init__(self, plans_manager: PlansManager, allow_unknown_orientation: bool = False) -> None:
        self.nnunet_reader = plans_manager.image_reader_writer_class()
        self.allow_unknown_orientation = allow_unknown_orientation

    def verify_suffix(self, filename: Any) -> bool:
        return True  # a file of another format is converted, or refused with a reason

    def read(self, data: Any, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """``(C, z, y, x)`` and nnU-Net's properties of the files of one case."""
        files = [str(file) for file in ensure_tuple(data)]
        with tempfile.TemporaryDirectory(prefix="bundle_") as folder:
            endings = self.nnunet_reader.supported_file_endings
            by_nibabel = isinstance(self.nnunet_reader, (NibabelIO, NibabelIOWithReorient))
            readable = nnunet_readable(files, endings, folder, self.allow_unknown_orientation, by_nibabel)
            array, properties = self.nnunet_reader.read_images(readable)
        check_finite(array, ", ".join(files))
        return array, properties

    def get_data(self, img: tuple[np.ndarray, dict[str, Any]]) -> tuple[np.ndarray, dict[str, Any]]:
        array, properties = img
        affine = affine_of(properties, spatial_dims=3 if array.shape[1] > 1 else None)
        array = to_monai(array, spatial_dims=len(affine) - 1)
        return array, {
            MetaKeys.AFFINE: affine,
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.SPATIAL_SHAPE: np.asarray(array.shape[1:]),
            MetaKeys.ORIGINAL_CHANNEL_DIM: 0,
            PROPERTIES: as_arrays(properties),
        }


class NNUNetWriter(ImageWriter):
    """The model's writer of nnU-Net as a writer of MONAI; images that no file was read for get their affine."""

    def __init__(self, plans_manager: PlansManager, **kwargs: Any) -> None:
        super().__init__()
        self.nnunet_writer = plans_manager.image_reader_writer_class()
        self.properties: dict[str, Any] = {}

    def set_data_array(self, data_array: Any, **kwargs: Any) -> None:
        self.data_obj = to_nnunet(np.asarray(data_array))[0]

    def set_metadata(self, meta_dict: Mapping[str, Any] | None, **options: Any) -> None:
        meta = meta_dict or {}
        from_file = as_properties(meta.get(PROPERTIES, {}))
        self.properties = from_file if "spacing" in from_file else properties_of_affine(meta[MetaKeys.AFFINE])

    def write(self, filename: Any, verbose: bool = False, **kwargs: Any) -> None:
        self.nnunet_writer.write_seg(self.data_obj, str(filename), self.properties)


def to_monai(array: np.ndarray, spatial_dims: int = 3) -> np.ndarray:
    """``(C, z, y, x)`` → ``(C, x, y, z)``; an image of two axes, ``(C, 1, y, x)`` → ``(C, x, y)``."""
    array = array.transpose(0, 3, 2, 1)
    return array[..., 0] if spatial_dims == AXES_PER_SLICE else array


def to_nnunet(array: np.ndarray) -> np.ndarray:
    """``(C, x, y, z)`` or ``(C, x, y)`` → ``(C, z, y, x)``."""
    if array.ndim == 1 + AXES_PER_SLICE:
        array = array[..., None]
    return array.transpose(0, 3, 2, 1)


def affine_of(properties: Mapping[str, Any], spatial_dims: int | None = None) -> np.ndarray:
    """Voxel indices ``(x, y, z)`` → mm in RAS, ``(4, 4)``; ``(3, 3)`` for an image of two axes.

    Readers of plain pictures know no place in the world: spacing alone decides there.
    """
    if "nibabel_stuff" in properties:
        stuff = properties["nibabel_stuff"]
        return np.array(stuff.get("reoriented_affine", stuff["original_affine"]), float)
    if "sitk_stuff" in properties:
        stuff = properties["sitk_stuff"]
        axes = len(stuff["spacing"])
        affine = np.eye(axes + 1)
        affine[:axes, :axes] = np.reshape(stuff["direction"], (axes, axes)) * np.asarray(stuff["spacing"])
        affine[:axes, axes] = stuff["origin"]
        affine[:AXES_PER_SLICE] *= -1  # ITK's world is LPS
        return affine
    spacing = [float(value) for value in reversed(properties["spacing"])]
    return np.diag([*spacing[: spatial_dims or AXES_PER_SLICE], 1.0])


def as_arrays(properties: Mapping[str, Any]) -> dict[str, Any]:
    """nnU-Net's properties of a file with arrays for its tuples and lists of numbers."""
    return {
        key: as_arrays(value) if isinstance(value, Mapping) else value if isinstance(value, str) else np.asarray(value)
        for key, value in properties.items()
    }


def as_properties(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The opposite of :func:`as_arrays`: tuples of Python's numbers, lists for matrices."""
    return {key: _plain(value) for key, value in meta.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return as_properties(value)
    if isinstance(value, str):
        return value
    plain = np.asarray(value).tolist()
    return tuple(plain) if isinstance(plain, list) and not isinstance(plain[0], list) else plain


def properties_of_affine(affine: Any) -> dict[str, Any]:
    """nnU-Net's properties of an image in memory, ``(d + 1, d + 1)`` affine, for any of its readers and writers.

    A lone slice gets the spacing that nnU-Net's readers give it, so that no other slice seems near.
    """
    ras = np.asarray(affine, float)
    lps = ras.copy()
    lps[:AXES_PER_SLICE] *= -1
    spacing = np.linalg.norm(lps[:-1, :-1], axis=0)
    direction = lps[:-1, :-1] / spacing
    lone_slice = len(spacing) == AXES_PER_SLICE
    sitk_stuff: dict[str, Any] = {
        "spacing": tuple(spacing.tolist()),
        "origin": tuple(lps[:-1, -1].tolist()),
        "direction": tuple(direction.ravel().tolist()),
    }
    if not lone_slice:
        code = sitk.DICOMOrientImageFilter_GetOrientationFromDirectionCosines(sitk_stuff["direction"])
        sitk_stuff["original_orientation"] = code
    return {
        "spacing": ((spacing.max() * 999,) if lone_slice else ()) + tuple(spacing[::-1].tolist()),
        "sitk_stuff": sitk_stuff,
        "nibabel_stuff": {"original_affine": ras, "reoriented_affine": ras},
    }
