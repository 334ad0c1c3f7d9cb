"""Short-axis cardiac phantoms: the data set of ``alhvr demo`` and of the tests.

Each phantom is a short stack of thick slices with the three structures of cardiac MRI: the right ventricle
(RV, a crescent), the myocardium (MYO, a ring) and the cavity of the left ventricle (LV). Anatomy, pose,
contrast, sharpness, noise and the coil's brightness vary from scan to scan, and other organs of similar
brightness surround the heart. Everything is drawn from formulas: it contains no patient data.

The same seed gives the same voxels on every run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from alhvr_trainer.config.files import write_json
from alhvr_trainer.config.names import UNLABELED_FOLDER
from alhvr_trainer.experiments.demo import DATASET_ID
from alhvr_trainer.experiments.demo.anatomy import LABELS, draw_heart, draw_organs, draw_tones, paint_slice

SHAPE = (5, 48, 48)
SPACING = (8.0, 3.0, 3.0)
CASE_NAME = "phantom_{:03d}"


def make_phantom(
    seed: int | Sequence[int],
    shape: tuple[int, int, int] = SHAPE,
    spacing: tuple[float, float, float] = SPACING,
) -> tuple[np.ndarray, np.ndarray]:
    """One phantom: scan and labels.

    Args:
        seed: anything that ``numpy.random.default_rng`` takes, e.g. ``(dataset seed, case number)``.
        shape: slices, rows, columns. The heart is scaled with the shorter side of a slice.
        spacing: mm along the same axes; only the in-plane ratio matters here (hearts are round in mm).

    Returns:
        The scan (float32, arbitrary units as in MRI) and the labels (uint8: 0 background, 1 RV, 2 MYO, 3 LV),
        both of ``shape``.

    Example:
        >>> image, label = make_phantom(0)
        >>> image.shape, label.dtype
        ((5, 48, 48), dtype('uint8'))
    """
    rng = np.random.default_rng(seed)
    heart = draw_heart(rng)
    tones = draw_tones(rng)
    organs = draw_organs(rng, heart)
    grid = _pixel_grid(shape, spacing)
    heights = np.linspace(0.0, 1.0, shape[0]) if shape[0] > 1 else np.array([0.4])  # 0 base, 1 apex
    slices = [paint_slice(heart, tones, organs, grid, height) for height in heights]
    image = _scanner(rng, np.stack([scan for scan, _ in slices]), grid)
    return image.astype(np.float32), np.stack([label for _, label in slices])


def _pixel_grid(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> np.ndarray:
    """Coordinates (2, rows, columns) of the pixel centers; the shorter side runs from -1 to 1."""
    sides = [(shape[axis], spacing[axis]) for axis in (1, 2)]
    unit = 2 / min(count * step for count, step in sides)
    axes = [(np.arange(count) - (count - 1) / 2) * step * unit for count, step in sides]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def _smooth_field(rng: np.random.Generator, grid: np.ndarray, waves: int, frequency: float) -> np.ndarray:
    """A smooth random pattern (rows, columns) of about unit size."""
    directions = rng.normal(0.0, frequency, (waves, 2))
    phases = rng.uniform(0, 2 * np.pi, waves)
    pattern = np.cos(np.tensordot(directions, grid, axes=1) + phases[:, None, None])
    return pattern.sum(axis=0) / np.sqrt(waves / 2)


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """In-plane Gaussian blur, ``sigma`` in pixels."""
    rows, columns = (np.fft.fftfreq(count) for count in image.shape[1:])
    transfer = np.exp(-2 * (np.pi * sigma) ** 2 * (rows[:, None] ** 2 + columns[None] ** 2))
    return np.fft.ifft2(np.fft.fft2(image) * transfer).real


def _scanner(rng: np.random.Generator, image: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Tissue texture, blur, coil brightness, Rician noise, and the scan's own arbitrary scale."""
    texture = rng.uniform(0.02, 0.06)
    image = image + texture * np.stack([_smooth_field(rng, grid, 24, 16.0) for _ in image])
    image = _blur(image, rng.uniform(0.0, 0.8))
    image = image * np.exp(rng.uniform(0.05, 0.35) * _smooth_field(rng, grid, 3, 1.5))
    noise = rng.uniform(0.015, 0.05)
    image = np.hypot(image + rng.normal(0.0, noise, image.shape), rng.normal(0.0, noise, image.shape))
    return image * rng.uniform(200.0, 800.0)


def write_volume(
    array: np.ndarray,
    path: str | Path,
    spacing: Sequence[float] = SPACING,
    origin: Sequence[float] = (0.0, 0.0, 0.0),
    direction: Sequence[float] = (1, 0, 0, 0, 1, 0, 0, 0, 1),
) -> None:
    """Write (slices, rows, columns) as an image file.

    ``spacing`` is in array order; ``origin`` and ``direction`` are as in SimpleITK (x, y, z).
    """
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(step) for step in reversed(spacing)])
    image.SetOrigin([float(x) for x in origin])
    image.SetDirection([float(x) for x in direction])
    sitk.WriteImage(image, str(path), useCompression=True)


def write_dataset(
    folder: str | Path,
    labeled: int = 5,
    unlabeled: int = 20,
    test: int = 10,
    seed: int = 0,
    val: int = 1,
    shape: tuple[int, int, int] = SHAPE,
    spacing: tuple[float, float, float] = SPACING,
    dataset_id: int = DATASET_ID,
) -> Path:
    """Write phantoms in nnU-Net's raw layout.

    Makes ``<folder>/DatasetNNN_Phantom/`` with ``dataset.json``, ``imagesTr``, ``labelsTr``,
    ``imagesTr_unlabeled`` (no labels anywhere), ``imagesTs``, ``labelsTs`` and ``splits_final.json``. The
    latter, which nnU-Net's planner takes over, holds one fold; the last ``val`` labeled cases are its
    validation cases.

    Args:
        folder: what ``nnUNet_raw`` points to.
        labeled: labeled cases, validation cases included.
        unlabeled: cases without labels.
        test: test cases; 0 leaves the folders out.
        seed: of the whole data set; case i is ``make_phantom((seed, i))``, labeled ones first.
        val: validation cases among the labeled ones, at least 1.
        shape: slices, rows, columns of every case.
        spacing: mm in the same order.
        dataset_id: NNN.

    Returns:
        The data set's folder.

    Raises:
        ValueError: ``val`` leaves no case to train on, or is 0.

    Example:
        >>> write_dataset("nnUNet_raw", labeled=2, unlabeled=2, test=0, shape=(3, 32, 32)).name
        'Dataset901_Phantom'
    """
    if not 1 <= val < labeled:
        raise ValueError(f"{labeled} labeled cases, {val} for validation: at least one of each kind is needed")
    dataset = Path(folder) / f"Dataset{dataset_id:03d}_Phantom"
    counts = {"imagesTr": labeled, UNLABELED_FOLDER: unlabeled, "imagesTs": test}
    label_folders = {"imagesTr": "labelsTr", "imagesTs": "labelsTs"}
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    for number, kind in enumerate(kinds):
        case = CASE_NAME.format(number)
        image, label = make_phantom((seed, number), shape, spacing)
        (dataset / kind).mkdir(parents=True, exist_ok=True)
        write_volume(image, dataset / kind / f"{case}_0000.nii.gz", spacing)
        if kind in label_folders:
            (dataset / label_folders[kind]).mkdir(exist_ok=True)
            write_volume(label, dataset / label_folders[kind] / f"{case}.nii.gz", spacing)
    cases = [CASE_NAME.format(number) for number in range(labeled)]
    channels = {"channel_names": {"0": "MRI"}, "labels": LABELS}
    write_json({**channels, "numTraining": labeled, "file_ending": ".nii.gz"}, dataset / "dataset.json")
    write_json([{"train": cases[:-val], "val": cases[-val:]}], dataset / "splits_final.json")
    return dataset


if __name__ == "__main__":
    write_dataset(sys.argv[1], **json.loads(sys.argv[2]))
