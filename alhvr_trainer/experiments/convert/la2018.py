"""Left atrium, 2018 Atrial Segmentation Challenge (Xiong et al., Medical Image Analysis 67:101832, 2021).

The official release has one folder a case, named by 20 letters and digits, with ``lgemri.nrrd`` (late gadolinium
enhanced MRI) and ``laendo.nrrd`` (255 in the cavity of the left atrium, else 0). Papers on semi-supervised segmentation
divide the 100 training cases into 80 and 20 (lists of UA-MT, Yu et al., MICCAI 2019; the same in BCP, CVPR 2023), label
the first 4, 8 or 16, and have no validation cases. Other folders, such as the challenge's testing set, are left out.

UA-MT distributes ``mri_norm2.h5`` in the same folders: cropped around the atrium with the help of the label,
normalized, no geometry, axes x, y, z.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from alhvr_trainer.experiments.convert.folds import paper_folds, paper_split
from alhvr_trainer.experiments.convert.release import Case, Release, find_files, needed
from alhvr_trainer.experiments.convert.volumes import HDF5Volume, ImageFile

LABELED_CASES = (4, 8, 16)
"""5, 10 and 20 % of the 80 training cases: folds 0, 1, 2."""
LABELS = {"background": 0, "left_atrium": 1}
REFERENCE = "https://www.cardiacatlas.org/atriaseg2018-challenge/atria-seg-data/"
SPACING = (0.625, 0.625, 0.625)
"""x, y, z in mm, as the challenge's page states it; the h5 files have none."""


def la2018(source: Path) -> Release:
    """The official release."""
    images = find_files(source, r"([0-9A-Z]{20})/lgemri\.nrrd", "06SR5RBREL16DQ6M8LWS/lgemri.nrrd")
    labels = find_files(source, r"([0-9A-Z]{20})/laendo\.nrrd", "06SR5RBREL16DQ6M8LWS/laendo.nrrd")
    cases = {}
    for name in paper_split("la2018").all():
        image = needed(images, (name,), source, f"{name}/lgemri.nrrd")
        label = needed(labels, (name,), source, f"{name}/laendo.nrrd")
        cases[name] = Case(name, (ImageFile(image),), ImageFile(label))
    return _release("la2018", cases, {0: 0, 255: 1}, "original intensities and spacing")


def la2018_h5(source: Path) -> Release:
    """The volumes of UA-MT."""
    found = find_files(source, r"([0-9A-Z]{20})/mri_norm2\.h5", "06SR5RBREL16DQ6M8LWS/mri_norm2.h5")
    cases = {}
    for name in paper_split("la2018").all():
        file = needed(found, (name,), source, f"{name}/mri_norm2.h5")
        image, label = (HDF5Volume(file, key, SPACING, "xyz") for key in ("image", "label"))
        cases[name] = Case(name, (image,), label)
    return _release("la2018_h5", cases, {0: 0, 1: 1}, "cropped and normalized as in UA-MT")


def _release(kind: str, cases: Mapping[str, Case], label_values: Mapping[int, int], note: str) -> Release:
    split = paper_split("la2018")
    return Release(
        kind=kind,
        name="LA2018",
        channel_names=("LGE-MRI",),
        labels=LABELS,
        label_values=label_values,
        training=[cases[name] for name in sorted(split.train)],
        test=[cases[name] for name in sorted(split.test)],
        folds=paper_folds(split, LABELED_CASES),
        description=f"2018 Atrial Segmentation Challenge, training data; {note}",
        reference=REFERENCE,
    )
