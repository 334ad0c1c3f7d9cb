"""EVIL: an evidential network and an ordinary one teach each other; what the former is unsure of is left out.

Chen et al., "Evidential Inference Learning for Semi-supervised Medical Image Segmentation", ISBI 2023
(arXiv 2307.08988).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss
from pydantic import Field
from torch import Tensor, nn

from alhvr_trainer.config.methods import method
from alhvr_trainer.config.settings import Settings, Share
from alhvr_trainer.errors import InputError
from alhvr_trainer.losses.evil import (
    annealed_weight,
    belief_probabilities,
    certain_cross_entropy_term,
    evidential_cross_entropy,
    evidential_term,
    evidential_uncertainty,
    least_uncertainty,
)
from alhvr_trainer.losses.voxels import masked_mean
from alhvr_trainer.trainers.partners import unwrapped
from alhvr_trainer.trainers.samples import Forward, Predictions, Samples, as_classes
from alhvr_trainer.trainers.semi_supervised import SemiSupervisedTrainer

AUTHORS_SGD = {"momentum": 0.9, "nesterov": False, "weight_decay": 1e-3}
"""Of network a: with nnU-Net's momentum of 0.99 its logits overshoot to where tanh is flat, and it learns no more."""


class EVILSettings(Settings):
    """EVIL (Chen et al., ISBI 2023)."""

    uncertainty_threshold: Share = 0.2
    """Voxels of lower uncertainty teach the ordinary network [u]."""
    evidential_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Initial learning rate of the evidential network; default: nnU-Net's 0.01, also the authors'.

    At one rate, their momentum of 0.9 moves the weights a tenth as far as nnU-Net's 0.99: short trainings need more.
    """


@method(
    "EVIL",
    "evidential inference learning",
    summary="Two networks of the same architecture train together from different initial weights. One is evidential: "
    "its loss makes it say how much evidence it has for each class. Each learns the other's pseudo-labels, those of "
    "the evidential network only where it has enough evidence. To predict, the evidential network is enough.",
    reference="Chen Y. et al. Evidential Inference Learning for Semi-supervised Medical Image Segmentation. ISBI 2023.",
)
class EVILTrainer(SemiSupervisedTrainer):
    """EVIL inside nnU-Net: ``nnUNetv2_train D C F -tr EVILTrainer``.

    ``loss = L_evidential_a + L_sup_b + w(t) (EDL_a + CE_b)``. L_sup is nnU-Net's own loss; in L_evidential its
    cross-entropy is replaced by the evidential one and its Dice takes ``softmax(belief)``. Network a, the evidential
    one, is what nnU-Net validates, saves and predicts with.

    Source: the authors' code; ``docs/methods.md`` lists the differences.

    Raises:
        InputError: no voxel could ever be certain, or a variant of nnU-Net's trainer has a loss without cross-entropy.
    """

    settings_class = EVILSettings
    settings: EVILSettings
    supervised = ("a", "b")
    terms = ("evidential_a", "cross_entropy_b")
    observed = ("uncertainty", "certain")
    co_trained = True

    loss: nn.Module
    """Of network a, in training and validation."""
    ordinary_loss: nn.Module
    """Of network b: nnU-Net's."""

    @staticmethod
    def uncertainty(logits: Tensor, regions: bool) -> Tensor:
        """u of network a's logits, (B, C, *S) to (B, *S); with regions, (B, R, *S), the largest of the channels."""
        found = evidential_uncertainty(evidential_classes(logits, regions))
        return found.unflatten(0, logits.shape[:2]).amax(dim=1) if regions else found

    def initialize(self) -> None:
        check_threshold(self.settings.uncertainty_threshold, classes_of(self.label_manager))
        super().initialize()
        for group in self.optimizer.param_groups:
            group.update(AUTHORS_SGD)

    def configure_optimizers(self):
        stock, rate = self.initial_lr, self.settings.evidential_learning_rate
        if rate is not None and "partners" not in vars(self):  # network a's optimizer is made before there are any
            self.initial_lr = rate
        optimizer_and_schedule = super().configure_optimizers()
        self.initial_lr = stock
        return optimizer_and_schedule

    def build_partners(self) -> dict[str, nn.Module]:
        return {"b": self.another_network()}

    def _build_loss(self) -> nn.Module:
        self.ordinary_loss = super()._build_loss()
        return make_evidential(super()._build_loss(), self.divergence_weight)

    def divergence_weight(self) -> float | Tensor:
        """lambda of the evidential loss."""
        return self.number("divergence_weight", lambda: annealed_weight(self.progress))

    def supervised_losses(self, forward: Forward, samples: Samples) -> dict[str, Tensor]:
        losses = {"a": self.loss, "b": self.ordinary_loss}
        return {name: loss(forward.labeled[name], samples.labels) for name, loss in losses.items()}

    def unsupervised(self, predictions: Predictions, samples: Samples) -> dict[str, Tensor]:
        a, b = predictions.logits["a"], predictions.logits["b"]
        a = centered(a) if predictions.regions else a
        threshold, valid, group = self.settings.uncertainty_threshold, predictions.valid, predictions.group
        uncertainty = evidential_uncertainty(a.detach())
        return {
            "evidential_a": evidential_term(a, b, self.divergence_weight(), valid, group),
            "cross_entropy_b": certain_cross_entropy_term(b, a, threshold, valid, group),
            "uncertainty": predictions.mean(uncertainty),
            "certain": predictions.mean(uncertainty < threshold),
        }


class EvidentialCrossEntropy(nn.Module):
    """:func:`evidential_cross_entropy` in the place of the cross-entropy in nnU-Net's loss.

    Args:
        like: what it replaces, ``RobustCrossEntropyLoss``, or ``BCEWithLogitsLoss`` with regions.
        divergence_weight: gives lambda of the current step.
    """

    def __init__(self, like: Any, divergence_weight: Callable[[], float | Tensor]) -> None:
        super().__init__()
        self.regions = isinstance(like, nn.BCEWithLogitsLoss)
        self.reduction = like.reduction
        self.ignore_index: int = getattr(like, "ignore_index", -1)  # with regions nnU-Net's loss leaves out by itself
        self.divergence_weight = divergence_weight

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The mean over the voxels, or with reduction "none" (regions and an ignore label) one value for each.

        Args:
            logits: (L, C, *S), or (L, R, *S) of regions.
            target: (L, *S), or (L, R, *S), 0 or 1.
        """
        if self.regions:
            classes = evidential_classes(logits, regions=True)
            values = evidential_cross_entropy(classes, target.flatten(0, 1), self.divergence_weight()).reshape(
                logits.shape
            )
            return values if self.reduction == "none" else values.mean()
        annotated = torch.ne(target, self.ignore_index)
        values = evidential_cross_entropy(logits, torch.where(annotated, target, 0), self.divergence_weight())
        return masked_mean(values, annotated)


def make_evidential(loss: nn.Module, divergence_weight: Callable[[], float | Tensor]) -> nn.Module:
    """Turn nnU-Net's loss into that of an evidential network, in place; returns it.

    Args:
        loss: as nnU-Net builds it, with or without wrappers for deep supervision and several ranks.
        divergence_weight: gives lambda of the current step.

    Raises:
        InputError: it is not Dice and cross-entropy.
    """
    inner: Any = loss
    while isinstance(getattr(inner, "loss", None), nn.Module):
        inner = inner.loss
    cross_entropy = getattr(inner, "ce", None)
    if type(cross_entropy) not in (RobustCrossEntropyLoss, nn.BCEWithLogitsLoss) or not hasattr(inner, "dc"):
        raise InputError(
            "EVIL replaces the cross-entropy in nnU-Net's loss of Dice and cross-entropy; this trainer's loss is "
            f"{type(inner).__name__}: use EVILTrainer itself or another variant"
        )
    inner.ce = EvidentialCrossEntropy(cross_entropy, divergence_weight)
    dice: Any = unwrapped(inner.dc)
    dice.apply_nonlin = region_probabilities if inner.ce.regions else belief_probabilities
    return loss


def centered(classes: Tensor) -> Tensor:
    """Two-class logits of regions, (0, z), as (-z/2, z/2): the same softmax, but evidence for "out" as well as "in".

    Args:
        classes: of :func:`as_classes`, (B * R, 2, *S).
    """
    return classes - classes.mean(dim=1, keepdim=True)


def evidential_classes(logits: Tensor, regions: bool) -> Tensor:
    """Logits as the functions of :mod:`alhvr_trainer.losses.evil` take them, e.g. ``evidential_uncertainty``.

    Args:
        logits: of the evidential network, (B, C, *S), or of regions (B, R, *S).
        regions: whether training is region-based.

    Returns:
        (B, C, *S), or (B * R, 2, *S).
    """
    classes = as_classes(logits, regions)
    return centered(classes) if regions else classes


def region_probabilities(logits: Tensor) -> Tensor:
    """``softmax(belief)`` of "in" for each region, (B, R, *S) logits to (B, R, *S)."""
    return belief_probabilities(evidential_classes(logits, regions=True))[:, 1].reshape(logits.shape)


def classes_of(label_manager: Any) -> int:
    """Classes that compete with each other: with regions two, "in" and "out"."""
    return 2 if label_manager.has_regions else int(label_manager.num_segmentation_heads)


def check_threshold(threshold: float, classes: int) -> None:
    """Some uncertainty lies below the threshold.

    Raises:
        InputError: none does.
    """
    least = least_uncertainty(classes)
    if threshold <= least:
        raise InputError(
            f'"alhvr.uncertainty_threshold" in the plans is {threshold}, but with {classes} classes the uncertainty '
            f"is at least {least:.3f}: no voxel would ever teach; raise it"
        )
