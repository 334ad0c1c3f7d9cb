"""Labels of a dataset, and its label maps as nnU-Net reads them: with its choice of reader and of spacing."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from .input_error import InputError
from .nifti import check_complete

_NIFTI = (".nii", ".nii.gz")
_GZIP = b"\x1f\x8b"
_TOLERANCE = 1e-3  # mm, and entries of the direction matrix: NIfTI stores geometry in single precision


Grid = dict[str, tuple[float, ...]]
"""Size, spacing, and origin and direction or the affine; axes x, y, z."""


@dataclass(frozen=True)
class Labels:
    """What ``dataset.json`` says of the labels."""

    classes: dict[str, tuple[int, ...]]
    """Name -> values, without the background; several values make a region, and regions may overlap."""
    ignore: int | None
    """Marks unannotated voxels of references."""

    @property
    def values(self) -> set[int]:
        """All values that a reference may have."""
        ignored = set() if self.ignore is None else {self.ignore}
        return {0, *ignored, *(value for values in self.classes.values() for value in values)}


def labels_of(entries: Mapping[str, int | Sequence[int]]) -> Labels:
    """``labels`` of a ``dataset.json``; there are no classes if it has the background alone.

    Example:
        >>> labels_of({"background": 0, "whole": [1, 2], "core": 2, "ignore": 3})
        Labels(classes={'whole': (1, 2), 'core': (2,)}, ignore=3)
    """
    values = {name: (value,) if isinstance(value, int) else tuple(value) for name, value in entries.items()}
    ignore = values.pop("ignore", None)
    classes = {name: of_class for name, of_class in values.items() if of_class != (0,)}
    return Labels(classes, None if ignore is None else ignore[0])


def listed(names: Iterable[str], most: int = 10) -> str:
    """Names as a message shows them, in order; of many only the first."""
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@dataclass(frozen=True)
class LabelMap:
    """One segmentation."""

    array: np.ndarray
    """Whole numbers, (z, y, x); of a 2D image (1, y, x)."""
    spacing: tuple[float, ...]
    """Per axis of the array, in :attr:`unit`."""
    unit: str
    """"mm", or "voxels" where the format has no sizes, as pictures."""
    grid: Grid
    """What else must agree with a segmentation that it is compared with."""


def read_label_map(file: Path, dataset_json: Mapping[str, Any]) -> LabelMap:
    """A label map, its values whole numbers.

    Args:
        file: of any ending that nnU-Net has a reader for.
        dataset_json: its ``overwrite_image_reader_writer`` and ``file_ending`` choose the reader.

    Raises:
        InputError: unreadable; several values per voxel; NaN, infinite or fractional values.

    Example:
        >>> read_label_map(Path("labelsTr/case_001.nii.gz"), {"file_ending": ".nii.gz"}).spacing
        (5.0, 1.0, 1.0)
    """
    try:
        values, properties = _read(file, dataset_json)
        stored = stored_floats(file)
    except Exception as error:  # the readers use several libraries, each with its own errors
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].rsplit("ERROR: ", 1)[-1]
        raise InputError(f"cannot read {file} (damaged or not an image): {reason}") from error
    if len(values) != 1:
        raise InputError(f"{file} has {len(values)} values per voxel, as a color picture; a label map has one")
    check_whole_numbers(values, stored, file)
    return LabelMap(
        values[0].astype(np.int64),
        tuple(float(size) for size in properties["spacing"]),
        "mm" if _has_sizes(file, properties) else "voxels",
        _grid(values[0], properties),
    )


def read_pair(
    prediction_file: Path, reference_file: Path, labels: Labels, dataset_json: Mapping[str, Any]
) -> tuple[LabelMap, LabelMap]:
    """Prediction and reference, fit to be compared.

    Raises:
        InputError: a file is unreadable, they have different grids, or one has a value that is not a label.
    """
    maps = []
    for file in (prediction_file, reference_file):
        check_complete(file)
        maps.append(read_label_map(file, dataset_json))
        check_values(maps[-1], labels, file)
    problem = different_voxels(maps[0].grid, maps[1].grid, (prediction_file, reference_file))
    if problem:
        raise InputError(problem)
    return maps[0], maps[1]


def check_values(found: LabelMap, labels: Labels, file: Path) -> None:
    """A label map has no other values than the labels.

    Raises:
        InputError: it has; names the file and the values.
    """
    unknown = set(np.unique(found.array).tolist()) - labels.values
    if unknown:
        raise InputError(
            f"{file} has values that are not labels of dataset.json: {listed(f'{value:g}' for value in unknown)}; "
            f"labels are {', '.join(map(str, sorted(labels.values)))}"
        )


def common_unit(units: Mapping[str, str]) -> str:
    """Unit of the distances of all cases; an average over millimeters and voxels would mean nothing.

    Args:
        units: case -> unit.

    Raises:
        InputError: some cases are in mm, others in voxels.
    """
    by_unit = {unit: case for case, unit in units.items()}
    if len(by_unit) > 1:
        raise InputError(
            f"case {by_unit['mm']} has its spacing in mm, case {by_unit['voxels']} has none: add the spacing (for "
            "TIFF a JSON file next to it), or evaluate them separately"
        )
    return next(iter(by_unit))


def check_whole_numbers(values: np.ndarray, stored: np.ndarray | None, file: Path) -> None:
    """Label maps are read in float32, as nnU-Net's readers do: what is a whole number there, is one.

    Args:
        values: as read.
        stored: what :func:`stored_floats` gives.
        file: for the message.

    Raises:
        InputError: names the file and the number of voxels that are NaN, infinite or no whole numbers.
    """
    for what, bad in (
        ("NaN or infinite", ~np.isfinite(values if stored is None else stored)),
        ("no whole number", values != np.rint(values)),
    ):
        if bad.any():
            raise InputError(f"{file}: {np.count_nonzero(bad)} voxels are {what}; a label map has whole numbers")


def stored_floats(file: Path) -> np.ndarray | None:
    """The voxels of a NIfTI file as they are stored, if these are floats: ITK takes NaN there for 0."""
    image = open_nifti(file) if file.name.lower().endswith(_NIFTI) else None
    if image is None or image.get_data_dtype().kind != "f":
        return None
    return np.asarray(image.dataobj.get_unscaled())


def open_nifti(file: Path) -> Any:
    """As ``nibabel.load``, also where a file that is not compressed is called ``.nii.gz``, which ITK reads."""
    opened = open(file, "rb")  # noqa: SIM115  the image reads from it later
    compressed = opened.read(2) == _GZIP
    opened.seek(0)
    if file.name.lower().endswith(".gz") and not compressed:
        return nibabel.Nifti1Image.from_stream(opened)
    opened.close()
    return nibabel.load(file)


def grid_of(file: Path, dataset_json: Mapping[str, Any]) -> Grid:
    """The voxel grid of an image, as :attr:`LabelMap.grid` is that of a label map.

    Raises:
        InputError: unreadable.
    """
    try:
        values, properties = _read(file, dataset_json)
    except Exception as error:  # as for label maps
        raise InputError(f"cannot read {file} (damaged or not an image): {error}") from error
    return _grid(values[0], properties)


def different_voxels(prediction: Grid, reference: Grid, names: tuple[object, object]) -> str | None:
    """How two voxel grids differ, as one line; None if they do not.

    Args:
        names: what the line calls the two, e.g. their files.
    """
    for what, expected in reference.items():
        found = prediction.get(what, expected)
        if len(found) != len(expected) or not np.allclose(found, expected, rtol=0.0, atol=_TOLERANCE):
            one, other = f"{what} {found} of {names[0]}", f"{expected} of {names[1]}"
            return f"{one} differs from {other}: both must lie on the same voxels"
    return None


def _read(file: Path, dataset_json: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
    """(1, z, y, x) float32 and nnU-Net's properties."""
    named = str(dataset_json["file_ending"])
    own = _NIFTI[1] if file.name.lower().endswith(_NIFTI[1]) else file.suffix.lower()
    content = dict(dataset_json) if file.name.endswith(named) else {"file_ending": own}
    # a TIFF is a picture or a volume: nnU-Net tries its readers, and prints why one cannot read it
    example = str(file) if own in (".tif", ".tiff") else None
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
        except ImportError:
            return _without_nnunet(file, str(content.get("overwrite_image_reader_writer")))
        reader = determine_reader_writer_from_dataset_json(content, example, verbose=False)
        values, properties = reader().read_seg(str(file))
    return values, properties


def _without_nnunet(file: Path, reader: str) -> tuple[np.ndarray, dict[str, Any]]:
    """The same, on a server where a bundle runs without nnU-Net; only models with these two readers do."""
    if reader.startswith("Nibabel"):
        image: Any = open_nifti(file)
        values = image.get_fdata().transpose(2, 1, 0)[None].astype(np.float32)
        affine = {"original_affine": image.affine}
        return values, {"spacing": image.header.get_zooms()[::-1], "nibabel_stuff": affine}
    import SimpleITK as sitk

    image = sitk.ReadImage(str(file))
    geometry = {"origin": image.GetOrigin(), "direction": image.GetDirection()}
    values = sitk.GetArrayFromImage(image).astype(np.float32)
    spacing = image.GetSpacing()[::-1]
    if values.ndim == 2:
        values, spacing = values[None], (999.0, *spacing)
    return values[None], {"spacing": spacing, "sitk_stuff": geometry}


def _has_sizes(file: Path, properties: Mapping[str, Any]) -> bool:
    """nnU-Net reads sizes from medical formats, and for a TIFF from the JSON file next to it."""
    return "sitk_stuff" in properties or "nibabel_stuff" in properties or file.with_suffix(".json").is_file()


def _grid(array: np.ndarray, properties: Mapping[str, Any]) -> Grid:
    grid: Grid = {"size": array.shape[::-1], "spacing": tuple(float(size) for size in properties["spacing"][::-1])}
    itk, nifti = properties.get("sitk_stuff"), properties.get("nibabel_stuff")
    if itk:
        grid |= {"origin": tuple(itk["origin"]), "direction": tuple(itk["direction"])}
    if nifti:
        grid["affine"] = tuple(np.asarray(nifti.get("reoriented_affine", nifti["original_affine"])).ravel().tolist())
    return grid
