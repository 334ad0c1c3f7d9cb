"""MLRP: two decoders teach each other where the other is more certain, weighted by how reliable its pseudo-labels look.

Su et al., "Mutual learning with reliable pseudo label for semi-supervised medical image segmentation", Medical Image
Analysis 2024.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from .precision import in_float32
from .sums import Group, total
from .uamt import predictive_entropy

_EPS_NORM = 1e-8  # torch.nn.functional.cosine_similarity's


@dataclass(frozen=True)
class MLRPTerms:
    """The loss of each decoder, and where it comes from, (B, *S)."""

    a: Tensor
    b: Tensor
    learns_a: Tensor
    """bool, the voxels on which a learns from b."""
    reliability_a: Tensor
    """r of the pseudo-labels that a gives to b."""
    reliability_b: Tensor


@torch.no_grad()
def prototype_cosines(features: Tensor, labels: Tensor, classes: int, valid: Tensor | None = None) -> Tensor:
    """``s_k = cos(f, c_k)`` with ``c_k`` the mean feature of class k in the same sample; 0 for a class that is absent.

    Args:
        features: f, float32, (B, K, *S).
        labels: pseudo-labels that say which voxels make up c_k, (B, *S) integer; or (B * R, *S): R consecutive maps
            share the features of one sample.
        classes: C.
        valid: bool, of the shape of ``labels``; False outside the image, where no voxel enters a prototype.

    Returns:
        (B, C, *S) or (B * R, C, *S), from -1 to 1.

    Example:
        >>> features = torch.tensor([[[1.0, 3.0, 0.0], [0.0, 0.0, 2.0]]])  # two channels, three voxels
        >>> prototype_cosines(features, torch.tensor([[0, 0, 1]]), classes=3)
        tensor([[[1., 1., 0.],
                 [0., 0., 1.],
                 [0., 0., 0.]]])
    """
    vectors = features.flatten(2)  # (B, K, N)
    members = torch.stack([labels == k for k in range(classes)], dim=1)
    if valid is not None:
        members = members & valid.unsqueeze(1)
    weights = members.flatten(2).unflatten(0, (len(features), -1)).to(vectors.dtype)  # (B, R, C, N)
    means = torch.einsum("brcn,bkn->brck", weights, vectors) / weights.sum(dim=3, keepdim=True).clamp_min(1)
    projections = torch.einsum("brck,bkn->brcn", normalize(means, dim=3), vectors)
    cosines = projections / vectors.norm(dim=1).clamp_min(_EPS_NORM)[:, None, None]
    return cosines.view(members.shape)


@torch.no_grad()
def reliability(cosines: Tensor, probabilities: Tensor) -> Tensor:
    """``r = mean_k (1 - (s_k - p_k)^2)``: 1 where a voxel is as near to each prototype as it is likely of the class.

    Args:
        cosines: s of :func:`prototype_cosines`, (B, C, *S).
        probabilities: p of the same decoder, (B, C, *S).

    Returns:
        r, (B, *S), from 0 to 1. The authors' features come out of a ReLU, so their cosines, and with them r, are never
        negative. nnU-Net's leaky ReLU allows both; an r below 0, which would teach the opposite, counts as 0.

    Example:
        >>> reliability(torch.tensor([[[1.0, 0.5], [0.0, 0.5]]]), torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]))
        tensor([[1.0000, 0.7500]])
    """
    return (1 - (cosines - probabilities) ** 2).mean(dim=1).clamp_min(0)


@dataclass(frozen=True)
class PseudoLabels:
    """What one decoder tells the other, (B, *S) each."""

    labels: Tensor
    """The most likely class y."""
    entropy: Tensor
    """H of the prediction."""
    reliability: Tensor
    """r."""


@torch.no_grad()
def pseudo_labels(logits: Tensor, features: Tensor, valid: Tensor | None = None) -> PseudoLabels:
    """Pseudo-labels of a decoder, with both of their reliability criteria.

    Args:
        logits: z, (B, C, *S); with regions (B * R, 2, *S).
        features: f, (B, K, *S).
        valid: (B, *S) bool, with regions (B * R, *S); False outside the image; None means all.
    """
    probabilities, labels = logits.softmax(dim=1), logits.argmax(dim=1)
    cosines = prototype_cosines(features, labels, logits.shape[1], valid)
    return PseudoLabels(labels, predictive_entropy(probabilities), reliability(cosines, probabilities))


def reliable_label_term(logits: Tensor, labels: Tensor, weight: Tensor, learns: Tensor, group: Group = None) -> Tensor:
    """``L_ij = sum_v m CE(z_i, y_j) r / sum_v m``, the loss of decoder i, which learns from j; 0 if m is empty.

    Args:
        logits: z_i, (B, C, *S).
        labels: y_j, the pseudo-labels of the other decoder, (B, *S) integer.
        weight: r of the other decoder's :func:`reliability`, (B, *S).
        learns: m, (B, *S) bool: where the other decoder is more certain.
        group: the ranks that the batch is spread over; the sum of their results is the batch's term.

    Source: the authors' code adds 1e-6 to the denominator.
    """
    error = cross_entropy(logits, labels, reduction="none") * weight
    return (error * learns).sum() / total(learns.sum(), group).clamp_min(1)


@in_float32
def mlrp_terms(
    logits_a: Tensor,
    logits_b: Tensor,
    features_a: Tensor,
    features_b: Tensor,
    valid: Tensor | None = None,
    group: Group = None,
) -> MLRPTerms:
    """Cross-entropy of each decoder against the other's hard pseudo-labels, where these deserve trust.

    Intra-model: decoder i learns where its entropy is the larger one, ``m = [H(p_i) > H(p_j)]``. Inter-model: each of
    these voxels is weighted with :func:`reliability` r, the agreement of j's feature and j's prediction. Gradients flow
    through z_i alone: pseudo-labels, masks, and weights, and with them the features, are constants.

    Args:
        logits_a, logits_b: of the decoders, (B, C, *S); with regions (B * R, 2, *S).
        features_a, features_b: the map that the decoder's segmentation layer reads, (B, K, *S).
        valid: (B, *S) bool, with regions (B * R, *S); False outside the image (padding); None means all.
        group: the ranks that the batch is spread over; the sum of their results is the batch's term.

    Source: the two reliability criteria and the mutual loss of the paper, as the authors' code has them.
    """
    a, b = pseudo_labels(logits_a, features_a, valid), pseudo_labels(logits_b, features_b, valid)
    learns_a, learns_b = a.entropy > b.entropy, b.entropy > a.entropy
    if valid is not None:
        learns_a, learns_b = learns_a & valid, learns_b & valid
    return MLRPTerms(
        a=reliable_label_term(logits_a, b.labels, b.reliability, learns_a, group),
        b=reliable_label_term(logits_b, a.labels, a.reliability, learns_b, group),
        learns_a=learns_a,
        reliability_a=a.reliability,
        reliability_b=b.reliability,
    )


class MLRPLoss(nn.Module):
    """:func:`mlrp_terms` of both decoders as a loss in MONAI's form.

    Example:
        >>> logits, features = torch.randn(2, 2, 4, 32, 32), torch.randn(2, 2, 16, 32, 32)
        >>> MLRPLoss()(*logits, *features).shape
        torch.Size([])
    """

    def forward(
        self, logits_a: Tensor, logits_b: Tensor, features_a: Tensor, features_b: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        terms = mlrp_terms(logits_a, logits_b, features_a, features_b, valid)
        return terms.a + terms.b
