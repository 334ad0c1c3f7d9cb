"""Releases of the right structure with tiny images of noise, for the tests of ``alhvr convert``."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import SimpleITK as sitk

SIZE = (5, 4, 3)
"""x, y, z."""
AFFINE = np.array([[-1.5, 0, 0, 7], [0, -1.5, 0, -3], [0, 0, 8, 11], [0, 0, 0, 1.0]])
"""Of all NIfTI files: 1.5 × 1.5 × 8 mm, not at the origin."""
NRRD_SPACING = (0.625, 0.625, 1.25)


def noise(seed: int, size: Sequence[int] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 2000, size).astype(np.int16)


def labels(seed: int, values: Sequence[int], size: Sequence[int] = SIZE) -> np.ndarray:
    """Every value occurs."""
    drawn = np.random.default_rng(seed).choice(values, size).astype(np.uint8)
    drawn.flat[: len(values)] = values
    return drawn


def write_nifti(file: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), file)
    return file


def write_nrrd(file: Path, voxels: np.ndarray) -> Path:
    """``voxels``: x, y, z."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(voxels.transpose())
    image.SetSpacing(NRRD_SPACING)
    sitk.WriteImage(image, str(file))
    return file


def write_h5(file: Path, **arrays: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as content:
        for key, array in arrays.items():
            content.create_dataset(key, data=array, compression="gzip")
    return file


def linked(file: Path, target: Path) -> None:
    """The same file once more: quicker than writing hundreds."""
    target.parent.mkdir(parents=True, exist_ok=True)
    os.link(file, target)


def official_acdc(source: Path, patients: Sequence[str]) -> Path:
    """Frames 1 and 12 of each patient, but 4 and 11 of patient090, as in the release."""
    for patient in patients:
        number = int(patient[-3:])
        folder = source / "database" / ("testing" if number > 100 else "training") / patient
        frames = ("frame04", "frame11") if number == 90 else ("frame01", "frame12")
        for seed, frame in enumerate(frames):
            write_nifti(folder / f"{patient}_{frame}.nii.gz", noise(2 * number + seed))
            write_nifti(folder / f"{patient}_{frame}_gt.nii.gz", labels(2 * number + seed, range(4)))
        (folder / "Info.cfg").write_text("ED: 1\nES: 12\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n")
    write_nifti(folder / f"{patient}_4d.nii.gz", noise(0, (*SIZE, 2)))
    return source


def ssl4mis_acdc(source: Path, patients: Sequence[str]) -> Path:
    arrays = {"image": noise(1, SIZE[::-1]).astype(np.float32) / 2000, "label": labels(1, range(4), SIZE[::-1])}
    first = write_h5(source / "first.h5", **arrays)
    for patient in patients:
        for frame in ("frame01", "frame02"):
            linked(first, source / "data" / f"{patient}_{frame}.h5")
            linked(first, source / "data" / "slices" / f"{patient}_{frame}_slice_1.h5")
    return source


def official_brats(source: Path, cases: Sequence[str]) -> Path:
    """The four sequences of a case differ; those of all cases are alike."""
    firsts = {
        part: write_nifti(source / "first" / f"{part}.nii.gz", noise(seed))
        for seed, part in enumerate(("flair", "t1", "t1ce", "t2"))
    }
    firsts["seg"] = write_nifti(source / "first" / "seg.nii.gz", labels(9, (0, 1, 2, 4)))
    for number, case in enumerate(cases):
        for part, file in firsts.items():
            linked(file, source / ("LGG" if number % 4 == 0 else "HGG") / case / f"{case}_{part}.nii.gz")
    (source / "name_mapping.csv").write_text("Grade,BraTS_2019_subject_ID\n")
    return source


def official_la(source: Path, cases: Sequence[str]) -> Path:
    image, label = (
        write_nrrd(source / "first_image.nrrd", noise(3)),
        write_nrrd(source / "first_label.nrrd", labels(3, (0, 255))),
    )
    for case in cases:
        linked(image, source / "Training Set" / case / "lgemri.nrrd")
        linked(label, source / "Training Set" / case / "laendo.nrrd")
    return source


def uamt_la(source: Path, cases: Sequence[str]) -> Path:
    """Arrays x, y, z."""
    first = write_h5(source / "first.h5", image=noise(4).astype(np.float32) / 500 - 1, label=labels(4, (0, 1)))
    for case in cases:
        linked(first, source / "2018LA_Seg_Training Set" / case / "mri_norm2.h5")
    return source


def abdomenct1k(source: Path, labeled: int, unlabeled: int) -> Path:
    for number in range(1, labeled + unlabeled + 1):
        write_nifti(source / "AbdomenCT-1K-ImagePart1" / f"Case_{number:05d}_0000.nii.gz", noise(number) - 1000)
        if number <= labeled:
            write_nifti(source / "Mask" / f"Case_{number:05d}.nii.gz", labels(number, range(5)))
    return source


def decathlon(source: Path, training: int = 10, test: int = 2, channels: int = 2) -> Path:
    """A task whose images are 4D, and whose label maps are stored as floats now and then."""
    size = (*SIZE, channels) if channels > 1 else SIZE
    names = [f"toy_{number:03d}.nii.gz" for number in range(training + test)]
    for number, name in enumerate(names):
        folder = "imagesTr" if number < training else "imagesTs"
        write_nifti(source / folder / name, noise(number, size))
        write_nifti(source / folder / f"._{name}", noise(number, size))
        if number < training:
            kind = np.float32 if number == 3 else np.uint8
            write_nifti(source / "labelsTr" / name, labels(number, range(3)).astype(kind))
    content = {
        "name": "a toy, with a comma",
        "modality": {str(number): f"MR{number}" for number in range(channels)},
        "labels": {"0": "Background", "1": "left", "2": "right"},
        "numTraining": training,
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names[:training]],
        "test": [f"./imagesTs/{name}" for name in names[training:]],
    }
    (source / "dataset.json").write_text(json.dumps(content))
    return source
