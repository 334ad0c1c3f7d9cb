"""``alhvr convert`` as a Python function."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alhvr_trainer.errors import InputError

if TYPE_CHECKING:
    from alhvr_trainer.experiments.convert.release import Release

KINDS = {
    "acdc": "acdc",
    "acdc_h5": "acdc",
    "abdomenct1k": "abdomenct1k",
    "brats2019": "brats2019",
    "brats2019_flair": "brats2019",
    "brats2019_h5": "brats2019",
    "la2018": "la2018",
    "la2018_h5": "la2018",
    "msd": "msd",
}
"""Kind of release, also the name of its function -> its module in this package."""
DRAWN = ("abdomenct1k", "msd")
"""Kinds without a published split: ``seed`` draws one."""


def convert(
    kind: str,
    source: str,
    dataset: int | str,
    output: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> str:
    """Write a released data set as an nnU-Net raw dataset, with the splits of the semi-supervised papers.

    The raw folder gets splits_final.json with one fold for each number of labeled cases, the fewest in fold 0.
    Test cases go to imagesTs and labelsTs. Repeating the command resumes where it stopped.

    Args:
        kind: acdc, acdc_h5 (SSL4MIS), abdomenct1k, brats2019, brats2019_flair (FLAIR and whole tumor, as papers
            do), brats2019_h5 (SSL4MIS), la2018, la2018_h5 (UA-MT) or msd (a task of the decathlon).
        source: folder of the unpacked release.
        dataset: number of the dataset, as 27, or its whole name, as "Dataset027_ACDC".
        output: folder to make the dataset in; default: nnUNet_raw.
        seed: of the split, for abdomenct1k and msd; the others have published ones.
        overwrite: rewrite every file, even if an earlier conversion differs.

    Returns:
        Path of the dataset.

    Raises:
        InputError: a file of the release is missing, damaged or odd, or the dataset exists with another content.

    Example:
        alhvr convert acdc /data/ACDC -d 27
        alhvr convert msd /data/Task04_Hippocampus -d 4
    """
    release = _described(kind, Path(source), seed)
    folder = _dataset_folder(dataset, release.name, output)
    from alhvr_trainer.data.splits import split_summary
    from alhvr_trainer.experiments.convert.writing import write_dataset

    moved = write_dataset(release, folder, overwrite)
    if moved:
        print(
            f"note: the headers of {len(moved)} label maps place them elsewhere in space than their images; they were "
            f"written with the images' headers, voxels unchanged. Check the first: "
            f"{moved[0].label and moved[0].label.file}"
        )
    counts = f"{len(release.training)} training, {len(release.test)} test, {len(release.unlabeled)} unlabeled cases"
    print(f"{folder}: {counts}", *split_summary(list(release.folds)), sep="\n  ")
    return str(folder)


def _described(kind: str, source: Path, seed: int) -> Release:
    if kind not in KINDS:
        raise InputError(f'"kind" is {kind!r}; it must be one of: {", ".join(KINDS)}')
    if not source.is_dir():
        raise InputError(f'"source" is {source}, which is not a folder')
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f'"seed" must be a whole number of at least 0, found {seed!r}')
    describe: Callable[..., Any] = getattr(import_module(f"alhvr_trainer.experiments.convert.{KINDS[kind]}"), kind)
    return describe(source, seed) if kind in DRAWN else describe(source)


def _dataset_folder(dataset: int | str, name: str, output: str | None) -> Path:
    """Folder of the dataset; InputError where its number is taken."""
    text = str(dataset)
    text = f"Dataset{int(text):03d}_{name}" if text.isdecimal() else text
    if not re.fullmatch(r"Dataset\d{3}_\w[\w.-]*", text):
        raise InputError(f'"dataset" must be a number from 1 to 999 or a name like Dataset027_ACDC, found {dataset!r}')
    if output is None:
        from alhvr_trainer.compatibility import nnunet_folder

        output = nnunet_folder("nnUNet_raw")
    others = sorted(folder.name for folder in Path(output).glob(f"{text[:10]}_*") if folder.name != text)
    if others:
        raise InputError(f"the number {text[7:10]} is taken by {others[0]} in {output}: choose another")
    return Path(output) / text
