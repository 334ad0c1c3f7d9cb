"""BraTS 2019 training data: four MR sequences of gliomas, 335 cases.

The official release has ``HGG/`` and ``LGG/``, each case a folder with
``BraTS19_X_flair.nii.gz``, ``_t1``, ``_t1ce``, ``_t2`` and ``_seg``; some copies hold ``.nii``. Labels are 1
(necrotic and non-enhancing core), 2 (oedema) and 4 (enhancing tumor); nnU-Net wants them without a gap, so 4 becomes
3. Papers on semi-supervised segmentation take FLAIR alone and the whole tumor, all labels together:
``brats2019_flair``. The split (250 train, 25 validation, 60 test) is that of SSL4MIS; ALHVR's authors use it as well.

SSL4MIS distributes ``data/BraTS19_X.h5``: FLAIR cropped to the brain, clipped, and normalized over it, label 1 the
whole tumor, no geometry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from alhvr_trainer.experiments.convert.folds import paper_folds, paper_split
from alhvr_trainer.experiments.convert.release import Case, Release, find_files, needed
from alhvr_trainer.experiments.convert.volumes import HDF5Volume, ImageFile

LABELED_CASES = (25, 50)
"""10 and 20 % of the 250 training cases: folds 0 and 1."""
SEQUENCES = {"flair": "FLAIR", "t1": "T1", "t1ce": "T1ce", "t2": "T2"}
WHOLE_TUMOR = {"background": 0, "whole_tumor": 1}
REFERENCE = "https://www.med.upenn.edu/cbica/brats2019/data.html"
SPACING = (1.0, 1.0, 1.0)
"""x, y, z in mm: BraTS is resampled to it."""


def brats2019(source: Path) -> Release:
    """The official release: four sequences, three labels."""
    return _release(
        kind="brats2019",
        cases=_official_cases(source, tuple(SEQUENCES)),
        channel_names=tuple(SEQUENCES.values()),
        labels={"background": 0, "necrotic_and_non_enhancing": 1, "edema": 2, "enhancing": 3},
        label_values={0: 0, 1: 1, 2: 2, 4: 3},
        note="all sequences; label 4 of the release is 3",
    )


def brats2019_flair(source: Path) -> Release:
    """The official release as semi-supervised papers use it: FLAIR alone, the whole tumor."""
    return _release(
        kind="brats2019_flair",
        cases=_official_cases(source, ("flair",)),
        channel_names=("FLAIR",),
        labels=WHOLE_TUMOR,
        label_values={0: 0, 1: 1, 2: 1, 4: 1},
        note="FLAIR; all tumor labels together",
    )


def brats2019_h5(source: Path) -> Release:
    """The volumes of SSL4MIS."""
    found = find_files(source, r"(BraTS19_\w+)\.h5", "data/BraTS19_2013_8_1.h5")
    cases = {}
    for name in paper_split("brats2019").all():
        file = needed(found, (name,), source, f"{name}.h5")
        image, label = (HDF5Volume(file, key, SPACING) for key in ("image", "label"))
        cases[name] = Case(name, (image,), label)
    return _release(
        kind="brats2019_h5",
        cases=cases,
        channel_names=("FLAIR",),
        labels=WHOLE_TUMOR,
        label_values={0: 0, 1: 1},
        note="FLAIR, cropped and normalized as in SSL4MIS; whole tumor",
    )


def _official_cases(source: Path, sequences: Sequence[str]) -> dict[str, Case]:
    endings = "|".join((*SEQUENCES, "seg"))
    found = find_files(source, rf"(BraTS19_\w+)_({endings})\.nii(?:\.gz)?", "HGG/BraTS19_X/BraTS19_X_flair.nii.gz")
    cases = {}
    for name in paper_split("brats2019").all():
        *images, label = (
            ImageFile(needed(found, (name, part), source, f"{name}_{part}.nii.gz")) for part in (*sequences, "seg")
        )
        cases[name] = Case(name, tuple(images), label)
    return cases


def _release(
    kind: str,
    cases: Mapping[str, Case],
    channel_names: tuple[str, ...],
    labels: Mapping[str, int],
    label_values: Mapping[int, int],
    note: str,
) -> Release:
    split = paper_split("brats2019")
    return Release(
        kind=kind,
        name="BraTS2019",
        channel_names=channel_names,
        labels=labels,
        label_values=label_values,
        training=[cases[name] for name in sorted(split.train + split.val)],
        test=[cases[name] for name in sorted(split.test)],
        folds=paper_folds(split, LABELED_CASES),
        description=f"BraTS 2019 training data; {note}",
        reference=REFERENCE,
    )
