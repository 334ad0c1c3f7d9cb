"""Writing a release as an nnU-Net raw dataset, case by case; safe to interrupt and to repeat."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from alhvr_trainer.bundle.scripts.overwriting import overwritten_input
from alhvr_trainer.config.dataset_json import check_dataset_json
from alhvr_trainer.config.files import read_json, write_json
from alhvr_trainer.config.names import UNLABELED_FOLDER
from alhvr_trainer.data.splits import SPLITS_FILE
from alhvr_trainer.errors import InputError
from alhvr_trainer.experiments.convert.labels import label_image
from alhvr_trainer.experiments.convert.release import Case, Release
from alhvr_trainer.experiments.convert.volumes import write_image

ENDING = ".nii.gz"
STARTED_FILE = "dataset.json.partial"
"""``dataset.json`` under this name says whose unfinished conversion a folder holds."""
SCRATCH = ".convert_"
"""Begins the name of the folder in which files are written before they are moved into place."""
IMAGE_FOLDERS = {"imagesTr": "labelsTr", "imagesTs": "labelsTs", UNLABELED_FOLDER: None}
"""Folder of images -> folder of their label maps."""


class Target(NamedTuple):
    """Where one case goes."""

    case: Case
    images: list[Path]
    label: Path | None

    def files(self) -> list[Path]:
        return [*self.images, *([self.label] if self.label else [])]


def dataset_json(release: Release) -> dict[str, Any]:
    """Content of ``dataset.json``."""
    return {
        "channel_names": {str(number): name for number, name in enumerate(release.channel_names)},
        "labels": dict(release.labels),
        "numTraining": len(release.training),
        "file_ending": ENDING,
        "name": release.name,
        "description": release.description,
        "reference": release.reference,
        **({"licence": release.licence} if release.licence else {}),
        "converted_from": release.kind,
    }


def write_dataset(release: Release, folder: Path, overwrite: bool = False) -> list[Case]:
    """Write all that is missing of a release into its raw dataset folder.

    Files appear whole or not at all, and ``dataset.json`` and ``splits_final.json`` come last, so an interrupted
    conversion is not mistaken for a finished one; repeating it resumes where it stopped.

    Args:
        release: to write.
        folder: ``nnUNet_raw/DatasetXXX_Name``; made if it is missing.
        overwrite: rewrite every file, even if an earlier conversion differs. Cases that do not belong to this
            release are still refused.

    Returns:
        Those of the cases written by this call whose label map was more than 1e-3 mm away from its image and was given
        the image's header.

    Raises:
        InputError: the folder holds something else, or a file of the release is missing, damaged or odd.
        OSError: a file cannot be written.
    """
    from tqdm import tqdm

    content = dataset_json(release)
    check_dataset_json(content)
    targets = list(_targets(release, folder))
    sources = {volume.file for target in targets for volume in (*target.case.images, target.case.label) if volume}
    written = [folder / name for name in ("dataset.json", STARTED_FILE, SPLITS_FILE)]
    problem = overwritten_input(sources, [*written, *(file for target in targets for file in target.files())])
    if problem:
        raise InputError(problem)
    _check_folder(folder, content, release, targets, overwrite)
    for name in {file.parent for target in targets for file in target.files()} | {folder / "labelsTr"}:
        name.mkdir(parents=True, exist_ok=True)
    for killed in folder.glob(f"{SCRATCH}*"):
        shutil.rmtree(killed)
    (folder / "dataset.json").unlink(missing_ok=True)
    moved = []
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder) as scratch:
        write_json(content, folder / STARTED_FILE)
        for target in tqdm(targets, desc=f"convert {release.kind}", unit="case"):
            if (overwrite or not all(file.exists() for file in target.files())) and not _write_case(
                target, release, Path(scratch)
            ):
                moved.append(target.case)
        write_json(list(release.folds), folder / SPLITS_FILE)
    os.replace(folder / STARTED_FILE, folder / "dataset.json")
    return moved


def _targets(release: Release, folder: Path) -> Iterator[Target]:
    parts = dict(zip(IMAGE_FOLDERS, (release.training, release.test, release.unlabeled), strict=True))
    for images, cases in parts.items():
        for case in cases:
            labels = IMAGE_FOLDERS[images] if case.label else None
            yield Target(
                case,
                [folder / images / f"{case.name}_{number:04d}{ENDING}" for number in range(len(case.images))],
                folder / labels / f"{case.name}{ENDING}" if labels else None,
            )


def _check_folder(
    folder: Path, content: dict[str, Any], release: Release, targets: Iterable[Target], overwrite: bool
) -> None:
    """The folder contains nothing that this conversion would not write; with ``overwrite``, no other case."""
    expected = {file for target in targets for file in target.files()}
    for name in {*IMAGE_FOLDERS, *filter(None, IMAGE_FOLDERS.values())}:
        for file in sorted((folder / name).glob(f"*{ENDING}")):
            if file not in expected:
                raise InputError(f"{file} is not a file of this release: remove it, or convert into another dataset")
    if overwrite:
        return
    for name, mine in (("dataset.json", content), (STARTED_FILE, content), (SPLITS_FILE, list(release.folds))):
        file = folder / name
        if file.exists() and read_json(file) != mine:
            raise InputError(
                f"{file} differs from what converting this {release.kind} gives: convert into another dataset, or use "
                "--overwrite to replace it"
            )
    claimed = any((folder / name).exists() for name in ("dataset.json", STARTED_FILE))
    if not claimed and any(file.exists() for file in expected):
        raise InputError(f"{folder} holds images but no dataset.json: remove it, or use --overwrite to replace them")


def _write_case(target: Target, release: Release, scratch: Path) -> bool:
    """Write a case; whether its label map lay on the grid of its image."""
    case = target.case
    grid = case.images[0].geometry()
    for volume in case.images[1:]:
        if not volume.geometry().aligned(grid):
            raise InputError(f"{volume.file} has another grid than {case.images[0].file}")
    aligned = True
    if case.label and target.label:
        image, aligned = label_image(case.label, release.label_values, grid)
        write_image(image, scratch / target.label.name)
        os.replace(scratch / target.label.name, target.label)
    for volume, file in zip(case.images, target.images, strict=True):
        volume.write(scratch / file.name)
        os.replace(scratch / file.name, file)
    return aligned
