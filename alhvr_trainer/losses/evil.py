"""EVIL: an evidential network and an ordinary one teach each other; what the former is unsure of is left out.

Chen et al., "Evidential Inference Learning for Semi-supervised Medical Image Segmentation", ISBI 2023
(arXiv 2307.08988).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .precision import at_least_float32
from .sums import Group
from .voxels import masked_mean

EVIDENCE_SCALE = 0.25
"""Of the evidence, ``exp(tanh(z) / 0.25)``, which lies in [e^-4, e^4]."""


def evidence(logits: Tensor) -> Tensor:
    """``e_c = exp(tanh(z_c) / 0.25)``, from 0.018 to 54.6, in float32 (float64 where the logits are).

    Args:
        logits: z of the evidential network, (B, C, *S).

    Source: the authors' code.
    """
    return torch.exp(torch.tanh(at_least_float32(logits)) / EVIDENCE_SCALE)


def belief_probabilities(logits: Tensor) -> Tensor:
    """``softmax(b)`` with the belief ``b_c = e_c / S``, ``S = sum_c (e_c + 1)``: what the Dice loss takes, (B, C, *S).

    The class of the largest belief is the class of the largest logit.

    Args:
        logits: of the evidential network, (B, C, *S).

    Example:
        >>> belief_probabilities(torch.zeros(1, 2, 1)).flatten().tolist()
        [0.5, 0.5]
    """
    found = evidence(logits)
    return torch.softmax(found / (found + 1).sum(dim=1, keepdim=True), dim=1)


def evidential_uncertainty(logits: Tensor) -> Tensor:
    """``u = C / S``, ``S = sum_c (e_c + 1)``: near 0 where there is much evidence for any class, 1/2 where all z are 0.

    Args:
        logits: of the evidential network, (B, C, *S). A constant added to all classes changes the evidence, so
            probabilities do not determine u.

    Returns:
        u, (B, *S), from :func:`least_uncertainty` to almost 1.

    Example:
        >>> evidential_uncertainty(torch.tensor([[[0.0, 9.0], [0.0, -9.0]]]))
        tensor([[0.5000, 0.0353]])
    """
    return logits.shape[1] / (evidence(logits) + 1).sum(dim=1)


def least_uncertainty(classes: int) -> float:
    """The least possible u, where one class has all the evidence that there can be and the others the least.

    Example:
        >>> round(least_uncertainty(4), 3), round(least_uncertainty(14), 3)
        (0.068, 0.203)
    """
    most, least = math.exp(1 / EVIDENCE_SCALE), math.exp(-1 / EVIDENCE_SCALE)
    return classes / (classes + most + (classes - 1) * least)


def annealed_weight(progress: float) -> float:
    """``lambda = min(1, t / (t_max / 2))``, the weight of the divergence in :func:`evidential_cross_entropy`.

    Args:
        progress: t / t_max, the share of the training that is done, from 0 to 1.

    Source: the authors' code counts epochs; here lambda grows with every step.
    """
    return min(1.0, 2.0 * progress)


def evidential_cross_entropy(logits: Tensor, labels: Tensor, divergence_weight: float | Tensor = 1.0) -> Tensor:
    """Expected cross-entropy under ``Dir(alpha)``, ``alpha = e + 1``, and what punishes evidence for wrong classes.

    ``EDL = psi(S) - psi(alpha_y) + lambda KL(Dir(alpha~) || Dir(1))`` with psi the digamma function and
    ``alpha~ = (alpha - 1) (1 - y) + 1``, i.e. without the evidence for the label.

    Args:
        logits: of the evidential network, (B, C, *S).
        labels: (B, *S), integers from 0 to C - 1.
        divergence_weight: lambda.

    Returns:
        One value per voxel, (B, *S), never negative, in float32 (float64 where the logits are).

    Source: the loss of the evidential network in the authors' code, which the paper takes from Sensoy et al., NeurIPS
    2018.

    Example:
        >>> evidential_cross_entropy(torch.zeros(1, 2, 1), torch.tensor([[0]]), 0.0)  # psi(4) - psi(2)
        tensor([[0.8333]])
    """
    found, index = evidence(logits), labels.long().unsqueeze(1)
    alpha = found + 1
    expected = torch.digamma(alpha.sum(dim=1)) - torch.digamma(alpha.gather(1, index).squeeze(1))
    return expected + divergence_weight * divergence_from_ignorance(found.scatter(1, index, 0.0))


def divergence_from_ignorance(found: Tensor) -> Tensor:
    """``KL(Dir(alpha) || Dir(1))`` of ``alpha = e + 1``; 0 where there is no evidence.

    ``lnG(S) - lnG(C) - sum_c lnG(alpha_c) + sum_c (alpha_c - 1) (psi(alpha_c) - psi(S))``

    Args:
        found: e, (B, C, *S).

    Returns:
        (B, *S).
    """
    alpha = found + 1
    strength = alpha.sum(dim=1, keepdim=True)
    of_classes = found * (torch.digamma(alpha) - torch.digamma(strength)) - torch.lgamma(alpha)
    return torch.lgamma(strength).squeeze(1) - math.lgamma(found.shape[1]) + of_classes.sum(dim=1)


def evidential_term(
    logits: Tensor,
    other_logits: Tensor,
    divergence_weight: float | Tensor = 1.0,
    valid: Tensor | None = None,
    group: Group = None,
) -> Tensor:
    """What the evidential network learns: the other's hard pseudo-labels, by :func:`evidential_cross_entropy`.

    Args:
        logits: of the evidential network, (U, C, *S).
        other_logits: of the ordinary network, (U, C, *S); no gradient reaches them.
        divergence_weight: lambda.
        valid: (U, *S) bool, False outside the image (padding); None means all.
        group: the ranks that the batch is spread over; the sum of their results is the batch's term.
    """
    pseudo_labels = other_logits.detach().argmax(dim=1)
    return masked_mean(evidential_cross_entropy(logits, pseudo_labels, divergence_weight), valid, group)


def certain_cross_entropy_term(
    logits: Tensor,
    evidential_logits: Tensor,
    threshold: float = 0.2,
    valid: Tensor | None = None,
    group: Group = None,
) -> Tensor:
    """What the ordinary network learns: the evidential one's hard pseudo-labels where that one is certain.

    ``(1/N) sum_v I(u_v < threshold) CE(p_v, argmax_c z_v)``, N all voxels, certain or not.

    Args:
        logits: of the ordinary network, (U, C, *S).
        evidential_logits: z of the evidential network, (U, C, *S); no gradient reaches them.
        threshold: of the uncertainty u.
        valid: (U, *S) bool, False outside the image (padding); None means all.
        group: the ranks that the batch is spread over; the sum of their results is the batch's term.

    Source: the authors' code sets logits and label of uncertain voxels to 0, so that each adds the constant log C to
    the mean; here it adds nothing. The gradient is the same.
    """
    teacher = evidential_logits.detach()
    certain = evidential_uncertainty(teacher) < threshold
    return masked_mean(cross_entropy(logits, teacher.argmax(dim=1), reduction="none") * certain, valid, group)


class EVILLoss(nn.Module):
    """Both unsupervised terms as a loss in MONAI's form: ``EVILLoss()(evidential_logits, logits)``.

    Args:
        threshold: of :func:`certain_cross_entropy_term`.

    Example:
        >>> EVILLoss()(torch.randn(2, 4, 32, 32), torch.randn(2, 4, 32, 32), divergence_weight=0.5).shape
        torch.Size([])
    """

    def __init__(self, threshold: float = 0.2) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(
        self, evidential_logits: Tensor, logits: Tensor, valid: Tensor | None = None, divergence_weight: float = 1.0
    ) -> Tensor:
        return evidential_term(evidential_logits, logits, divergence_weight, valid) + certain_cross_entropy_term(
            logits, evidential_logits, self.threshold, valid
        )
