"""Is an image what a model can take, seen from its header alone; and files that nnU-Net's readers do not take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .cases import ENDINGS, without_ending
from .dicom import check_series, dicom_header, is_dicom, itk_reason, series_files
from .input_error import InputError
from .label_files import open_nifti
from .nifti import check_complete, read_header

_SINGULAR = 1e-3  # of the determinant, which is 1 or -1
_NIFTI = (".nii", ".nii.gz")
_FOR_CONVERTED = (".mha", ".nii", ".nii.gz", ".nrrd")  # exact and fast first; NIfTI keeps geometry in float32 only


def check_finite(array: np.ndarray, name: object) -> None:
    """No voxel is NaN or infinite: one is enough to spoil what the network says of the whole image.

    Args:
        array: as the model's reader gives it.
        name: what the message calls the image.

    Raises:
        InputError: some are; it counts them.
    """
    # a sum is finite only if all voxels are, and needs no mask of the image's size
    with np.errstate(invalid="ignore", over="ignore"):
        suspicious = not np.isfinite(array.sum(dtype=np.float64))
    bad = int(array.size - np.isfinite(array).sum()) if suspicious else 0
    if bad:
        raise InputError(f"{name} has {bad} NaN or infinite voxel{'s' if bad > 1 else ''}; replace them")


def check_image(file: str | Path, allow_unknown_orientation: bool = False, by_nibabel: bool = False) -> None:
    """See from the header that a file, or the folder of a DICOM series, is one 2D or 3D image with a place in space.

    A NIfTI file may have no orientation (``qform_code`` and ``sform_code`` both 0). It is refused, because left and
    right are then unknown in the image and in its segmentation, and on a server no one reads warnings. nnU-Net itself
    reads such files as they are stored; ``allow_unknown_orientation`` does the same, for datasets whose training images
    were like that, too.

    Args:
        file: image file or folder of a DICOM series.
        allow_unknown_orientation: accept a NIfTI file without orientation.
        by_nibabel: the model's reader is nibabel's, which takes axes that are not at right angles, as ITK does not.

    Raises:
        InputError: unreadable; neither 2D nor 3D; several components per voxel; no more than one voxel; a NIfTI file
            that ends early; a spacing that is not positive and finite; direction cosines that are singular or
            unknown; a DICOM series that is not a regular volume.

    Example:
        >>> check_image("images/film_0000.nii.gz")     # doctest: +SKIP
        Traceback (most recent call last):
        scripts.errors.InputError: images/film_0000.nii.gz is a 4D image of 64 x 64 x 20 x 30 voxels; …
    """
    folder = Path(file).is_dir()
    if folder:
        check_series(file)
    nifti = by_nibabel and without_ending(file, _NIFTI) is not None
    header = _NiftiHeader(Path(file)) if nifti else dicom_header(series_files(file)[0] if folder else file)
    _check_shape(file, header)
    check_complete(Path(file))
    dimensions = header.GetDimension()
    spacing, direction = header.GetSpacing(), header.GetDirection()
    for sizes in (spacing, _stored_spacing(Path(file), header.GetSize())):
        if not all(math.isfinite(size) and size > 0 for size in sizes):
            raise InputError(f"{file} has a spacing of {_by(sizes)} mm; correct its header")
    if not abs(np.linalg.det(np.reshape(direction, (dimensions, dimensions)))) > _SINGULAR:  # NaN as well
        raise InputError(f"{file} has direction cosines that span no space ({_by(direction, ' ')}); correct its header")
    codes = [header.GetMetaData(key) for key in ("qform_code", "sform_code") if header.HasMetaDataKey(key)]
    if codes and not any(code.strip() not in ("0", "") for code in codes) and not allow_unknown_orientation:
        raise InputError(
            f"{file} does not say how it lies in the patient (qform_code and sform_code are 0): left and right are "
            "unknown; write its orientation, or set allow_unknown_orientation"
        )


class _NiftiHeader:
    """What nibabel reads in a header, in SimpleITK's terms."""

    def __init__(self, file: Path) -> None:
        try:
            image = open_nifti(file)
        except Exception as error:  # nibabel has many, of several libraries
            raise InputError(f"cannot read {file} (damaged or not an image): {itk_reason(error)}") from error
        self.size, self.header = tuple(map(int, image.shape)), image.header
        sizes = np.linalg.norm(image.affine[:3, :3], axis=0)
        self.direction = tuple((image.affine[:3, :3] / np.where(sizes > 0, sizes, 1.0)).ravel().tolist())

    def GetSize(self) -> tuple[int, ...]:
        return self.size

    def GetDimension(self) -> int:
        return len(self.size)

    def GetNumberOfComponents(self) -> int:
        return 1

    def GetSpacing(self) -> tuple[float, ...]:
        return tuple(map(float, self.header.get_zooms()))

    def GetDirection(self) -> tuple[float, ...]:
        return self.direction

    def HasMetaDataKey(self, key: str) -> bool:
        return key in self.header

    def GetMetaData(self, key: str) -> str:
        return str(int(self.header[key]))


def _check_shape(file: str | Path, header: Any) -> None:
    size, components = header.GetSize(), header.GetNumberOfComponents()
    dimensions = header.GetDimension()
    if dimensions not in (2, 3):
        raise InputError(
            f"{file} is a {dimensions}D image of {_by(size)} voxels; the model takes one 3D volume: "
            "split it, one file per channel (CASE_0000, CASE_0001, ...) or per time"
        )
    if components != 1:
        raise InputError(
            f"{file} has {components} components per voxel ({_by(size)} voxels, e.g. color); the model takes one "
            "value per voxel: write one file per channel"
        )
    if math.prod(size) < 2:
        raise InputError(f"{file} is an image of {_by(size)} voxels; that is not an image to segment")


def _stored_spacing(file: Path, size: Sequence[int]) -> list[float]:
    """``pixdim`` of a NIfTI-1 file: ITK takes 1 mm for what is 0, infinite or NaN. Empty for other files.

    Axes of one voxel often have no size, and the sign is left to the direction.
    """
    header = read_header(file)
    sizes = zip(header.spacing, size, strict=False) if header else ()
    return [abs(mm) for mm, voxels in sizes if voxels > 1]


def read_image(file: str | Path) -> Any:
    """A ``SimpleITK.Image`` from a file or the folder of a DICOM series.

    Raises:
        InputError: it cannot be read.
    """
    import SimpleITK as sitk

    try:
        if Path(file).is_dir():
            return sitk.ReadImage(series_files(file))
        return sitk.ReadImage(str(file))
    except RuntimeError as error:
        raise InputError(f"cannot read {file} (damaged or not an image): {itk_reason(error)}") from error


def nnunet_readable(
    files: str | Path | Sequence[str | Path],
    supported_endings: Sequence[str],
    folder: str | Path,
    allow_unknown_orientation: bool = False,
    by_nibabel: bool = False,
) -> list[str]:
    """Files that nnU-Net's reader takes: those that it does not take are converted, voxels and geometry unchanged.

    Args:
        files: of the channels of one case, or the one file of its only channel; a DICOM series is its folder.
        supported_endings: those of nnU-Net's reader, e.g. ``SimpleITKIO.supported_file_endings``.
        folder: where converted files are written; the caller's to remove.
        allow_unknown_orientation, by_nibabel: as in :func:`check_image`.

    Returns:
        For each file itself, or the converted one: MetaImage where the reader takes it, which keeps the geometry in
        full precision, else NIfTI.

    Raises:
        InputError: a file is not an image that a model takes, see :func:`check_image`.
    """
    paths = [files] if isinstance(files, (str, Path)) else files
    return [
        _readable(Path(file), number, tuple(supported_endings), Path(folder), allow_unknown_orientation, by_nibabel)
        for number, file in enumerate(paths)
    ]


def _readable(
    file: Path, number: int, supported: tuple[str, ...], folder: Path, allow_unknown: bool, by_nibabel: bool
) -> str:
    dicom = file.is_dir() or is_dicom(file)
    taken = not dicom and without_ending(file, supported) is not None
    if dicom or without_ending(file, ENDINGS) is not None:  # pictures (.png, .tif) are the readers' own affair
        check_image(file, allow_unknown, by_nibabel)
    if taken:
        return str(file)
    import SimpleITK as sitk

    ending = next((ending for ending in _FOR_CONVERTED if ending in supported), None)
    if ending is None:
        raise InputError(f"{file} cannot be converted for this model, it reads {', '.join(supported)} only")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{number:04d}{ending}"
    sitk.WriteImage(read_image(file), str(target), useCompression=ending.endswith(".gz"))
    return str(target)


def _by(numbers: Sequence[float], between: str = " x ") -> str:
    return between.join(f"{number:g}" for number in numbers)
