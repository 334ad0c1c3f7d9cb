"""AbdomenCT-1K (Ma et al., IEEE TPAMI 44(10):6695-6714, 2022): abdominal CT with four organs.

Images are ``Case_00001_0000.nii.gz``, label maps ``Case_00001.nii.gz``, in folders of any name. Labels are 1 liver,
2 kidney (both), 3 spleen, 4 pancreas. Images without a label map, the challenge's hidden cases, become unlabeled ones.

No list of the cases that semi-supervised papers train and test on is public, so the split is drawn here: 70 % train,
10 % validation, 20 % test, the shares of ACDC's.
"""

from __future__ import annotations

from pathlib import Path

from alhvr_trainer.errors import InputError
from alhvr_trainer.experiments.convert.folds import drawn_folds, drawn_test_cases
from alhvr_trainer.experiments.convert.release import Case, Release, find_files
from alhvr_trainer.experiments.convert.volumes import ImageFile

LABELS = {"background": 0, "liver": 1, "kidney": 2, "spleen": 3, "pancreas": 4}
REFERENCE = "https://github.com/JunMa11/AbdomenCT-1K"
TEST_SHARE = 0.2
VALIDATION_SHARE = 0.125
"""Of what the test set leaves: a tenth of all."""


def abdomenct1k(source: Path, seed: int) -> Release:
    """The official release.

    Raises:
        InputError: a label map has no image.
    """
    images = find_files(source, r"(Case_\d{5})_0000\.nii(?:\.gz)?", "Case_00001_0000.nii.gz")
    labels = find_files(source, r"(Case_\d{5})\.nii(?:\.gz)?", "Case_00001.nii.gz, a label map")
    without_image = sorted(set(labels) - set(images))
    if without_image:
        name = without_image[0][0]
        raise InputError(f"{source} lacks {name}_0000.nii.gz, the image of {labels[name,]}: complete the release")
    cases = {
        name: Case(name, (ImageFile(images[name,]),), ImageFile(labels[name,]) if (name,) in labels else None)
        for (name,) in sorted(images)
    }
    labeled = [name for name, case in cases.items() if case.label]
    test = drawn_test_cases(labeled, TEST_SHARE, seed)
    training = [name for name in labeled if name not in test]
    return Release(
        kind="abdomenct1k",
        name="AbdomenCT1K",
        channel_names=("CT",),
        labels=LABELS,
        label_values={value: value for value in LABELS.values()},
        training=[cases[name] for name in training],
        test=[cases[name] for name in test],
        unlabeled=[case for case in cases.values() if not case.label],
        folds=drawn_folds(training, VALIDATION_SHARE, seed),
        description=f"AbdomenCT-1K; split drawn with seed {seed}",
        reference=REFERENCE,
    )
