"""CG-CPCL, confidence-guided cross-prototype consistency learning (Eq. 5-6, 15-20)."""

from __future__ import annotations

import torch
from torch import Tensor

from .interpolation import upsample, upsample_transposed, upsampled_squared_norm
from .sums import Group, total

_EPS_COUNT = 1e-16
_EPS_VOXELS = 1e-5
_EPS_NORM_SQUARED = 1e-16  # torch.nn.functional.cosine_similarity's eps 1e-8, squared


def class_prototypes(
    features: Tensor, labels: Tensor, classes: int, valid: Tensor | None = None, group: Group = None
) -> Tensor:
    """Mean feature of each pseudo-class, averaged over the samples (Eq. 5-6, 15).

    ``proto[c] = (1/U) sum_i [ sum_v Up(F)[i,:,v] 1(y[i,v]=c) / (count_i(c) + 1e-5) ]``; an absent class gives 0.

    Args:
        features: F, (U, K, *s). Gradients flow through it, as in the authors' code.
        labels: y, the pseudo-label of the clean prediction, (U, *S) integer.
        classes: C.
        valid: (U, *S) bool, False outside the image; None means all.
        group: the ranks that the samples are spread over.

    Returns:
        (C, K), the same on every rank.
    """
    with torch.no_grad():
        members = torch.stack([labels == c for c in range(classes)], dim=1).to(features.dtype)  # (U, C, *S)
        if valid is not None:
            members = members * valid.unsqueeze(1)
        counts = members.flatten(2).sum(dim=2)  # (U, C)
        weights = upsample_transposed(members, tuple(features.shape[2:])) / (
            counts.view(*counts.shape, *[1] * (features.ndim - 2)) + _EPS_VOXELS
        )
        samples = total(torch.full((), len(features), dtype=features.dtype, device=features.device), group)
    return total(torch.einsum("ucv,ukv->ck", weights.flatten(2), features.flatten(2)), group) / samples


def prototype_similarity(features: Tensor, prototypes: Tensor, shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
    """``d[i,c,v] = scale * cosine(Up(F)[i,:,v], proto[c])`` (Eq. 16-17); 0 for an absent class (zero prototype).

    Args:
        features: F of the perturbed pass, (U, K, *s).
        prototypes: (C, K), those of the OTHER network.
        shape: *S.
        scale: factor on the cosine.

    Returns:
        (U, C, *S).
    """
    squared = (prototypes**2).sum(dim=1, keepdim=True)
    # a zero prototype is left as it is: dividing by its clamped norm would make gradients of 1e8, NaN in half precision
    directions = prototypes * torch.where(squared > 0, squared, 1.0).clamp_min(_EPS_NORM_SQUARED).rsqrt()
    projection = torch.einsum("ukv,ck->ucv", features.flatten(2), directions).unflatten(2, features.shape[2:])
    inverse_norm = upsampled_squared_norm(features, shape).clamp_min(_EPS_NORM_SQUARED).rsqrt()
    return scale * upsample(projection, shape) * inverse_norm.unsqueeze(1)


def cgcpcl_terms(
    similarity: Tensor,
    labels: Tensor,
    mask: Tensor,
    voxels: Tensor | int,
    official_broadcast: bool = False,
    group: Group = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and cosine term of one network on its region (Eq. 18-20).

    ``ce = sum over mask of CE(d[:,v], y[v]) / |mask|``;
    ``cos = mean over ALL voxels and classes of (1 - d) * mask`` (all classes, not only the pseudo-label's).

    Args:
        similarity: d, the network's perturbed features against the other's prototypes, (U, C, *S).
        labels: y, pseudo-label of the OTHER network, (U, *S) integer.
        mask: (U, *S) bool, where this network is the poor one; both terms are exactly 0 if it is empty.
        voxels: number of voxels inside the image, over all ranks.
        official_broadcast: the authors' code multiplies a mask (U, 1, *S) with a map (U, *S), which broadcasts to
            (U, U, *S): masks of one sample weight the loss of another, and the term grows about U times. The paper's
            Eq. 18, the masked mean, is the default.
        group: the ranks that the samples are spread over; the sum of their results is the batch's term.
    """
    weight = mask.to(similarity.dtype)
    ce_map = torch.logsumexp(similarity, dim=1) - similarity.gather(1, labels.unsqueeze(1)).squeeze(1)
    weighted = total(weight.sum(dim=0), group) * ce_map.sum(dim=0) if official_broadcast else weight * ce_map
    ce = weighted.sum() / (total(weight.sum(), group) + _EPS_COUNT)
    cos = ((1.0 - similarity).sum(dim=1) * weight).sum() / (voxels * similarity.shape[1])
    return ce, cos
