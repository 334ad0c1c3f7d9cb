"""ACDC (Bernard et al., IEEE TMI 37(11):2514-2525, 2018): short-axis cine MRI, two annotated frames a patient.

The official release has ``training/patient001/`` to ``patient100/`` and ``testing/patient101/`` to ``patient150/``,
each with ``Info.cfg``, ``patientXXX_4d.nii.gz``, and ``patientXXX_frameNN.nii.gz`` with ``_frameNN_gt.nii.gz`` for
end-diastole and end-systole. NN is the number of the frame in the cine series and differs from patient to patient.
Papers on semi-supervised segmentation divide the 100 training patients (70 train, 10 validation, 20 test, lists of
SSL4MIS) and leave the official testing patients out, and so do we.

SSL4MIS distributes volumes as ``data/patientXXX_frame01.h5`` and ``_frame02.h5``: scaled to 0..1 per volume, the
spacing dropped. The slices next to them (``data/slices/``) repeat the training volumes and are not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from alhvr_trainer.errors import InputError
from alhvr_trainer.experiments.convert.folds import paper_folds, paper_split
from alhvr_trainer.experiments.convert.release import Case, Release, find_files, needed
from alhvr_trainer.experiments.convert.volumes import HDF5Volume, ImageFile

LABELED_PATIENTS = (3, 7, 14)
"""5, 10 and 20 % of the 70 training patients: folds 0, 1, 2."""
FRAMES = 2
LABELS = {"background": 0, "RV": 1, "MLV": 2, "LVC": 3}
REFERENCE = "https://www.creatis.insa-lyon.fr/Challenge/acdc/"
LICENCE = "CC BY-NC-SA 4.0"
SSL4MIS_SPACING = (1.0, 1.0, 10.0)
"""x, y, z in mm. Not the true one, which the h5 files lack: test scripts of SSL4MIS and of ALHVR's authors state it."""


def acdc(source: Path) -> Release:
    """The official release.

    Raises:
        InputError: a patient of the split has not exactly two annotated frames.
    """
    example = "patient001/patient001_frame01.nii.gz"
    found = find_files(source, r"(patient\d{3})_(frame\d{2,3})(_gt)?\.nii(?:\.gz)?", example)
    by_patient: dict[str, dict[str, Case]] = {}
    for patient, frame, mask in found:
        if not mask:
            name = f"{patient}_{frame}"
            label = needed(found, (patient, frame, "_gt"), source, f"{name}_gt.nii.gz, the label map of {name}")
            case = Case(name, (ImageFile(found[patient, frame, mask]),), ImageFile(label))
            by_patient.setdefault(patient, {})[name] = case
    return _release("acdc", source, by_patient, "original intensities and spacing")


def acdc_h5(source: Path) -> Release:
    """The volumes of SSL4MIS.

    Raises:
        InputError: a patient of the split has not exactly two frames.
    """
    found = find_files(source, r"(patient\d{3})_(frame\d{2})\.h5", "data/patient001_frame01.h5")
    by_patient: dict[str, dict[str, Case]] = {}
    for (patient, frame), file in found.items():
        name = f"{patient}_{frame}"
        image, label = (HDF5Volume(file, key, SSL4MIS_SPACING) for key in ("image", "label"))
        by_patient.setdefault(patient, {})[name] = Case(name, (image,), label)
    return _release("acdc_h5", source, by_patient, "intensities scaled to 0..1 and nominal spacing, as in SSL4MIS")


def _release(kind: str, source: Path, by_patient: Mapping[str, Mapping[str, Case]], note: str) -> Release:
    split = paper_split("acdc")
    for patient in split.all():
        frames = by_patient.get(patient, {})
        if len(frames) != FRAMES:
            raise InputError(
                f"{source} has {len(frames)} annotated frames of {patient} ({', '.join(frames) or 'none'}); "
                f"the release has {FRAMES}"
            )
    cases = {patient: sorted(by_patient[patient]) for patient in split.all()}
    return Release(
        kind=kind,
        name="ACDC",
        channel_names=("cineMRI",),
        labels=LABELS,
        label_values={value: value for value in LABELS.values()},
        training=[by_patient[patient][case] for patient in sorted(split.train + split.val) for case in cases[patient]],
        test=[by_patient[patient][case] for patient in sorted(split.test) for case in cases[patient]],
        folds=paper_folds(split, LABELED_PATIENTS, cases),
        description=f"ACDC, 100 patients, end-diastole and end-systole; {note}",
        reference=REFERENCE,
        licence=LICENCE,
    )
