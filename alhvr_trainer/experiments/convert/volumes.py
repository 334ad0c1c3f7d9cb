"""Reading one volume of a release: a NIfTI or NRRD file, one channel of a 4D file, an array in an HDF5 file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from alhvr_trainer.bundle.scripts.nifti import check_complete
from alhvr_trainer.errors import InputError, one_line


class Geometry(NamedTuple):
    """Grid of a 3D image in ITK's terms, axes x, y, z."""

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    """mm."""
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    """3 × 3, row by row."""

    def aligned(self, other: Geometry, tolerance: float = 1e-3) -> bool:
        """Whether both grids coincide: equal sizes, the rest within ``tolerance``."""
        return self.size == other.size and all(
            np.allclose(mine, others, rtol=0, atol=tolerance) for mine, others in zip(self[1:], other[1:], strict=True)
        )


class Volume(Protocol):
    """A 3D image somewhere in a release."""

    @property
    def file(self) -> Path: ...

    def geometry(self) -> Geometry: ...

    def read(self) -> Any:
        """As ``SimpleITK.Image``."""

    def write(self, target: Path) -> None:
        """As ``.nii.gz``."""


@dataclass(frozen=True)
class ImageFile:
    """A file that ITK reads: a 3D image, or one channel of a 4D image with several ``channels``."""

    file: Path
    channel: int = 0
    channels: int = 1

    def geometry(self) -> Geometry:
        import SimpleITK as sitk

        reader = sitk.ImageFileReader()
        reader.SetFileName(str(self.file))
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise InputError(f"cannot read {self.file} (damaged or not an image): {one_line(error)}") from error
        axes, size = reader.GetDimension(), reader.GetSize()
        expected = size[:3] if self.channels == 1 else (*size[:3], self.channels)
        if len(size) < 3 or size != expected or reader.GetNumberOfComponents() != 1:
            wanted = "a 3D image" if self.channels == 1 else f"a 4D image of {self.channels} channels"
            raise InputError(f"{self.file} must be {wanted}, found {' × '.join(map(str, size))} voxels")
        direction = np.reshape(reader.GetDirection(), (axes, axes))[:3, :3]
        return Geometry(size[:3], reader.GetSpacing()[:3], reader.GetOrigin()[:3], tuple(direction.ravel().tolist()))

    def read(self) -> Any:
        self.geometry()
        image = _read_file(self.file, self.file.stat().st_mtime_ns)
        return image if self.channels == 1 else image[:, :, :, self.channel]

    def write(self, target: Path) -> None:
        """A ``.nii.gz`` file is copied as it is: compressing a CT again takes seconds and changes nothing."""
        if self.channels == 1 and self.file.name.endswith(".nii.gz"):
            self.geometry()
            check_complete(self.file)
            shutil.copyfile(self.file, target)
        else:
            write_image(self.read(), target)


@dataclass(frozen=True)
class HDF5Volume:
    """A data set of an HDF5 file, which knows neither spacing nor orientation.

    Attributes:
        file: to read.
        key: of the data set.
        spacing: x, y, z in mm; to be stated, for the file has none.
        axes: order of the array's axes.
    """

    file: Path
    key: str
    spacing: tuple[float, float, float]
    axes: Literal["zyx", "xyz"] = "zyx"

    def geometry(self) -> Geometry:
        shape = self._dataset(lambda dataset: dataset.shape)
        size = shape if self.axes == "xyz" else shape[::-1]
        return Geometry(size, self.spacing, (0.0, 0.0, 0.0), tuple(np.eye(3).ravel().tolist()))

    def read(self) -> Any:
        """float64 becomes float32, which is what the released files hold."""
        import SimpleITK as sitk

        array = self._dataset(np.asarray)
        array = array.transpose() if self.axes == "xyz" else array
        types = {"float64": np.float32, "float16": np.float32, "bool": np.uint8}
        image = sitk.GetImageFromArray(np.ascontiguousarray(array, types.get(array.dtype.name, array.dtype)))
        image.SetSpacing(self.spacing)
        return image

    def write(self, target: Path) -> None:
        write_image(self.read(), target)

    def _dataset(self, take: Callable[[Any], Any]) -> Any:
        """What ``take`` makes of the open data set, once it is known to be a 3D image."""
        import h5py

        try:
            with h5py.File(self.file) as content:
                dataset = content.get(self.key)
                if not isinstance(dataset, h5py.Dataset):
                    raise InputError(f'{self.file} has no "{self.key}"; it holds: {", ".join(content) or "nothing"}')
                if len(dataset.shape) != 3 or not dataset.size or dataset.dtype.kind not in "iufb":
                    found = f"{dataset.dtype} of shape {dataset.shape}"
                    raise InputError(f'"{self.key}" in {self.file} is {found}, not a 3D image')
                return take(dataset)
        except (OSError, RuntimeError) as error:  # HDF5's own errors
            raise InputError(f"cannot read {self.file} (damaged or no HDF5 file): {one_line(error)}") from error


@lru_cache(maxsize=1)
def _read_file(file: Path, modified: int) -> Any:
    """The last file stays in memory: the channels of a 4D file are asked for one after another.

    ``modified``, its time in ns, is there for the cache alone.
    """
    import SimpleITK as sitk

    check_complete(file)
    try:
        return sitk.ReadImage(str(file))
    except RuntimeError as error:
        raise InputError(f"cannot read {file} (damaged or not an image): {one_line(error)}") from error


def write_image(image: Any, target: Path) -> None:
    """Write a ``SimpleITK.Image``, compressed if the name asks for it."""
    import SimpleITK as sitk

    try:
        sitk.WriteImage(image, str(target), useCompression=True)
    except RuntimeError as error:  # a full disk above all
        raise OSError(f"cannot write {target}: {one_line(error)}") from error
