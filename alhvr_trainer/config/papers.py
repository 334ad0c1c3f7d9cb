"""The method behind each trainer: its name, what it does in a few words, and the paper. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

_TWO_NETWORKS = (
    "Two networks of the same architecture train together from different initial weights, on labelled images with "
    "nnU-Net's own loss."
)
_ONE_IS_ENOUGH = "To predict, one network is enough."


@dataclass(frozen=True)
class Paper:
    """A semi-supervised method as a reader of a model's card meets it."""

    name: str
    long_name: str
    summary: str
    reference: str


PAPERS: dict[str, Paper] = {
    "ALHVRTrainer": Paper(
        "ALHVR",
        "adaptive learning of high-value regions",
        f"{_TWO_NETWORKS} On unlabelled images each predicts from clean and from perturbed features, and its "
        "confidence sorts the voxels into regions: where both networks are sure there is nothing to learn, where one "
        "is sure it teaches the other through class prototypes of its features, and where both are unsure the more "
        f"confident prediction of each voxel teaches both. {_ONE_IS_ENOUGH}",
        "Lei T. et al. Adaptive Learning of High-Value Regions for Semi-Supervised Medical Image Segmentation. "
        "ICCV 2025.",
    ),
    "MeanTeacherTrainer": Paper(
        "Mean Teacher",
        "averaged weights as targets",
        "On unlabelled images the network learns to agree, under noise on the input, with a teacher: the moving "
        "average of its own weights, which is also what predicts.",
        "Tarvainen A., Valpola H. Mean teachers are better role models: Weight-averaged consistency targets improve "
        "semi-supervised deep learning results. NeurIPS 2017.",
    ),
    "UAMTTrainer": Paper(
        "UA-MT",
        "uncertainty-aware mean teacher",
        "On unlabelled images the network learns to agree with a teacher, the moving average of its own weights, where "
        "several passes of that teacher under noise and dropout show that it is certain.",
        "Yu L. et al. Uncertainty-Aware Self-ensembling Model for Semi-supervised 3D Left Atrium Segmentation. MICCAI "
        "2019.",
    ),
    "FixMatchTrainer": Paper(
        "FixMatch",
        "consistency and confidence",
        "What the network is sure of on a weakly augmented unlabelled image, it learns on the strongly augmented one. "
        "The moving average of its weights predicts.",
        "Sohn K. et al. FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence. NeurIPS 2020.",
    ),
    "CPSTrainer": Paper(
        "CPS",
        "cross pseudo supervision",
        f"{_TWO_NETWORKS} Each learns the other's pseudo-labels. {_ONE_IS_ENOUGH}",
        "Chen X. et al. Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision. CVPR 2021.",
    ),
    "MCNetTrainer": Paper(
        "MC-Net",
        "mutual consistency",
        "A second decoder with another kind of up-sampling shares the network's encoder; the two learn from each "
        "other's sharpened predictions. To predict, nnU-Net's own decoder is enough.",
        "Wu Y. et al. Semi-supervised Left Atrium Segmentation with Mutual Consistency Training. MICCAI 2021.",
    ),
}


def paper_of(trainer: str) -> Paper | None:
    """The paper behind a trainer or a variant of it; None for those that learn from labelled images alone, or unknown.

    Example:
        >>> paper_of("CPSTrainer_5epochs").name, paper_of("nnUNetTrainer")
        ('CPS', None)
    """
    return next((paper for name, paper in PAPERS.items() if trainer.startswith(name)), None)
