"""What inference with MONAI alone needs in addition to MONAI's transforms; does not import nnunetv2.

MONAI's own components do the rest (``configs/inference_native.json``). What is here has no counterpart that gives
nnU-Net's numbers:

- :class:`ResampleToSpacingd`: MONAI's ``Spacingd`` scales by the ratio of the spacings, nnU-Net by that of the shapes,
  which drifts apart towards the far end of the image; nnU-Net keeps spline values within the image's range; and
  decides for each image whether slices are resampled one by one. On a phantom of 25 × 31 × 9 voxels ``Spacingd``
  with ``scale_extent`` was off by 4 to 9 % of a standard deviation in the mean and by up to 64 % of the largest value
  (without, the shapes differ); this transform by less than a millionth.
- :class:`NormalizeChannelsd`: each channel has its own scheme, and the mask of z-scores is nnU-Net's: any channel
  is nonzero, holes filled.
- :class:`RegionsToLabelsd`: overlapping regions to a label map.
- :class:`NiftiReader`: ITK takes stored NaN for 0, and so does nnU-Net.
- :class:`LabelWriter`: MONAI's writer, but a volume of one slice stays a volume.

Source of the rules: F. Isensee et al., nnU-Net, Nature Methods 18, 203-211 (2021).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, NibabelReader, NibabelWriter
from monai.data.utils import affine_to_spacing, correct_nifti_header_if_necessary
from monai.transforms import InvertibleTransform, MapTransform
from monai.transforms.utils import scale_affine
from monai.utils import convert_to_dst_type, ensure_tuple
from scipy import ndimage
from torch.nn import functional

from .cases import ENDINGS, without_ending
from .images import check_finite
from .input_error import InputError
from .label_files import open_nifti
from .memory import check_memory

FIRST_CHANNEL = "_0000"
STORED_SPACING = "stored_spacing"
"""Key of the metadata: ``pixdim`` of a NIfTI file in mm; nnU-Net's nibabel readers go by it."""


def nonzero(image: torch.Tensor) -> torch.Tensor:
    """Where the image is not 0, for ``CropForegroundd``; an image of nothing but zeros is kept whole."""
    found = image != 0
    return found if bool(found.any()) else torch.ones_like(found)


class NiftiReader(NibabelReader):
    """MONAI's reader, with what nnU-Net's readers make of a NIfTI file.

    Args:
        as_itk: the model's reader is ITK's: stored NaN and infinite values count as 0, before they are scaled. Else
            it is nibabel's, which keeps them, and goes by the header's spacing: that is kept in the metadata.
    """

    def __init__(self, as_itk: bool = True) -> None:
        super().__init__()
        self.as_itk = as_itk

    def read(self, data: Any, **kwargs: Any) -> Any:
        """The image or images; of a damaged NIfTI file the error, which :meth:`get_data` raises.

        After an error that is raised here, LoadImage tries readers of other formats.
        """
        self.filenames = ensure_tuple(data)
        try:
            images = [open_nifti(Path(file)) for file in self.filenames]
        except Exception as error:  # nibabel has many, of several libraries
            if all(without_ending(file, (".nii", ".nii.gz")) is not None for file in self.filenames):
                return error
            raise
        self.stored_spacing = np.asarray(images[0].header.get_zooms()[:3], float)
        if self.as_itk:  # scales the affine where the header's spacing contradicts it
            images = [correct_nifti_header_if_necessary(image) for image in images]
        return images if len(images) > 1 else images[0]

    def get_data(self, img: Any) -> tuple[np.ndarray, dict[str, Any]]:
        if isinstance(img, Exception):
            files = ", ".join(map(str, self.filenames))
            raise InputError(f"cannot read {files} (damaged or not an image): {img}") from img
        array, meta = super().get_data(img)
        return array, meta if self.as_itk else {**meta, STORED_SPACING: self.stored_spacing}

    def _get_array_data(self, img: Any, filename: Any) -> np.ndarray:
        array = np.asanyarray(img.dataobj)
        if not self.as_itk or img.get_data_dtype().kind != "f" or np.isfinite(array).all():
            return array
        return np.where(np.isfinite(img.dataobj.get_unscaled()), array, img.dataobj.inter)


class CheckImaged(MapTransform):
    """See that an image is what the model takes, before anything is computed.

    Args:
        keys: of the images, ``(C, x, y, z)``.
        num_channels: that the model needs.
        num_outputs: channels that the network puts out.
        allow_unknown_orientation: accept a NIfTI file without orientation as it is stored.

    Raises:
        InputError: another number of channels or axes (a film has one more), NaN or infinite voxels, an affine that
            spans no space, is unknown or contradicts the header, or more voxels than memory can hold.
    """

    def __init__(
        self,
        keys: KeysCollection,
        num_channels: int,
        num_outputs: int,
        allow_unknown_orientation: bool = False,
    ) -> None:
        super().__init__(keys)
        self.num_channels, self.num_outputs = num_channels, num_outputs
        self.allow_unknown_orientation = allow_unknown_orientation

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(data):
            self._check(data[key])
        return dict(data)

    def _check(self, image: MetaTensor) -> None:
        if image.ndim != 4 or image.shape[0] != self.num_channels:
            raise InputError(
                f"an image of shape {tuple(image.shape)}: the model needs {self.num_channels} channel(s) first, then "
                "three axes; a film or several channels in one file must be split, one file per channel"
            )
        check_finite(image.cpu().numpy(), image.meta.get("filename_or_obj", "the image"))
        spacing = affine_to_spacing(image.affine, 3)
        stored = np.asarray(image.meta.get(STORED_SPACING, spacing.cpu()))
        if not np.allclose(stored, spacing.cpu(), rtol=1e-4):
            raise InputError(
                f"spacing {stored.tolist()} mm in the header, {spacing.tolist()} mm in the affine: nnU-Net goes by the "
                "one, MONAI by the other; predict with configs/inference.json"
            )
        if not bool(torch.isfinite(image.affine).all()) or not abs(torch.linalg.det(image.affine[:3, :3])) > 0:
            raise InputError(f"the image's affine spans no space (spacing {spacing.tolist()} mm); correct its header")
        codes = [int(image.meta[name]) for name in ("qform_code", "sform_code") if name in image.meta]
        if codes and not any(codes) and not self.allow_unknown_orientation:
            raise InputError(
                "the image does not say how it lies in the patient (qform_code and sform_code are 0): left and right "
                "are unknown; write its orientation, or set allow_unknown_orientation"
            )
        check_memory(image.shape[1:], image.shape[1:], self.num_outputs, self.num_channels)


def separate_axis(spacing: Sequence[float], target: Sequence[float], threshold: float) -> int | None:
    """The axis of thick slices, which nnU-Net resamples by the nearest slice; None if there is none.

    Args:
        spacing: of the image, in mm, per axis. It decides if it is anisotropic.
        target: spacing to resample to; decides if the image's is not.
        threshold: largest over smallest spacing above which an image is anisotropic.

    Example:
        >>> separate_axis((1, 1, 5), (1, 1, 1), threshold=3)
        2
    """
    for each in (spacing, target):
        if max(each) / min(each) > threshold:
            thickest = [axis for axis, size in enumerate(each) if max(each) / size == 1]
            return thickest[0] if len(thickest) == 1 else None
    return None


class ResampleToSpacingd(MapTransform, InvertibleTransform):
    """Resample to the spacing of the training as nnU-Net does; the inverse brings logits back, linearly.

    In and out: ``MetaTensor`` ``(C, *S)`` with its affine; out float32. A size becomes
    ``round(size * spacing / target)``, and both grids cover the same extent.

    Args:
        keys: of the images.
        pixdim: target spacing in mm per axis of the image; 0 keeps the image's own.
        order: of the spline.
        threshold: see :func:`separate_axis`.
    """

    def __init__(self, keys: KeysCollection, pixdim: Sequence[float], order: int = 3, threshold: float = 3.0) -> None:
        super().__init__(keys)
        self.pixdim, self.order, self.threshold = tuple(pixdim), order, threshold

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            image, shape = d[key], tuple(d[key].shape[1:])
            spacing = affine_to_spacing(image.affine, len(shape)).tolist()
            target = [new or old for new, old in zip(self.pixdim, spacing, strict=True)]
            size = [max(round(o / n * s), 1) for o, n, s in zip(spacing, target, shape, strict=True)]
            axis = separate_axis(spacing, target, self.threshold)
            voxels = np.stack([_spline(channel, size, self.order, axis) for channel in image.cpu().numpy()])
            d[key] = MetaTensor(torch.from_numpy(voxels), meta=image.meta, applied_operations=image.applied_operations)
            self.push_transform(d, key, extra_info={"shape": shape, "axis": axis, "affine": image.affine})
            d[key].affine = image.affine @ torch.as_tensor(scale_affine(shape, size)).to(image.affine)
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            done = self.pop_transform(d, key)["extra_info"]
            logits = _linear(d[key].as_tensor(), done["shape"], done["axis"])
            d[key] = MetaTensor(logits, meta=d[key].meta, applied_operations=d[key].applied_operations)
            d[key].affine = done["affine"]
        return d


def _spline(channel: np.ndarray, size: Sequence[int], order: int, axis: int | None) -> np.ndarray:
    """One channel ``S`` on a grid of another size; with an ``axis``, slice by slice and the nearest slices of these."""
    if list(channel.shape) == list(size):
        return channel.astype(np.float32)
    if axis is None:
        return _zoom(channel, size, order)
    plane = [each for number, each in enumerate(size) if number != axis]
    slices = np.stack([_zoom(each, plane, order) for each in np.moveaxis(channel, axis, 0)])
    return np.moveaxis(slices[_nearest(len(slices), size[axis])], 0, axis)


def _zoom(voxels: np.ndarray, size: Sequence[int], order: int) -> np.ndarray:
    factors = [new / old for new, old in zip(size, voxels.shape, strict=True)]
    zoomed = ndimage.zoom(voxels.astype(np.float64), factors, order=order, mode="nearest", grid_mode=True)
    return np.clip(zoomed, voxels.min(), voxels.max()).astype(np.float32)


def _nearest(old: int, new: int) -> np.ndarray:
    """For each of ``new`` slices the nearest of the ``old`` ones over the same extent."""
    return np.floor((np.arange(new) + 0.5) * old / new).astype(int)


def _linear(logits: torch.Tensor, size: Sequence[int], axis: int | None) -> torch.Tensor:
    """Logits ``(K, *S)`` on a grid of another size, as :func:`_spline` with order 1."""
    between = [
        old if number == axis else new for number, (old, new) in enumerate(zip(logits.shape[1:], size, strict=True))
    ]
    if list(logits.shape[1:]) != between:
        mode = "trilinear" if len(between) == 3 else "bilinear"
        logits = functional.interpolate(logits[None].float(), between, mode=mode, align_corners=False)[0]
    if axis is not None and between[axis] != size[axis]:
        nearest = torch.from_numpy(_nearest(between[axis], size[axis])).to(logits.device)
        logits = logits.index_select(axis + 1, nearest)
    return logits


class NormalizeChannelsd(MapTransform):
    """Normalize each channel with its own transform, within the nonzero region if so configured.

    In and out: ``(C, *S)``.

    Args:
        keys: of the images.
        channels: for each channel a transform of arrays, or None to leave it as it is.
        masked: for each channel, whether only the nonzero region is normalized (the rest stays as it is): where any
            channel is nonzero, holes filled.
    """

    def __init__(
        self,
        keys: KeysCollection,
        channels: Sequence[Callable[[torch.Tensor], torch.Tensor] | None],
        masked: Sequence[bool],
    ) -> None:
        super().__init__(keys)
        self.channels, self.masked = channels, masked

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key].clone()
            mask = _filled(image) if any(self.masked) else torch.ones_like(image[0], dtype=torch.bool)
            for number, (normalize, masked) in enumerate(zip(self.channels, self.masked, strict=True)):
                if normalize is not None:
                    where = mask if masked else ...
                    image[number][where] = normalize(image[number][where].as_tensor())
            d[key] = image
        return d


def _filled(image: torch.Tensor) -> torch.Tensor:
    """Mask ``S`` of the voxels where any channel is nonzero, and of those that they enclose."""
    return torch.from_numpy(ndimage.binary_fill_holes((image != 0).any(0).cpu().numpy())).to(image.device)


class RegionsToLabelsd(MapTransform):
    """Logits of overlapping regions ``(K, *S)`` to a label map ``(1, *S)``: a later region paints over earlier ones.

    Args:
        keys: of the logits.
        order: label of each region, nnU-Net's ``regions_class_order``.
        dtype: of the label map.
    """

    def __init__(self, keys: KeysCollection, order: Sequence[int], dtype: torch.dtype = torch.uint8) -> None:
        super().__init__(keys)
        self.order, self.dtype = order, dtype

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            labels = torch.zeros_like(d[key][:1], dtype=self.dtype)
            for logits, label in zip(d[key], self.order, strict=True):
                labels[0][logits > 0] = label
            d[key] = convert_to_dst_type(labels, d[key], dtype=self.dtype)[0]
        return d


class LabelWriter(NibabelWriter):
    """MONAI's writer of NIfTI files for label maps of volumes; ``SaveImaged`` needs ``squeeze_end_dims=False``.

    MONAI would drop a last axis of one slice together with that of the channel, and its version 1.6 takes the last
    axis of a volume without channels for the channels' where the image had several.
    """

    data_obj: Any

    def write(self, filename: Any, verbose: bool = False, **kwargs: Any) -> None:
        self.data_obj = self.data_obj[..., 0]
        super().write(filename, verbose=verbose, **kwargs)


def case_name(meta: Mapping[str, Any], saver: Any) -> dict[str, Any]:
    """Name of the output file for ``SaveImaged``: that of the image's first file without ``_0000``.

    Example:
        >>> case_name({"filename_or_obj": "/images/patient_1_0000.nii.gz"}, None)["subject"]
        'patient_1.nii.gz'
    """
    name = Path(str((meta or {}).get("filename_or_obj", "image"))).name
    name = without_ending(name, (*ENDINGS, ".dcm")) or name
    # SaveImaged cuts an ending off, and a folder of DICOM files may well have a dot in its name
    return {"subject": f"{name.removesuffix(FIRST_CHANNEL)}.nii.gz", "idx": None}
