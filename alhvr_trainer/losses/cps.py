"""CPS, cross pseudo supervision: two networks, each trained on the other's hard pseudo-labels.

Chen et al., "Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision", CVPR 2021 (arXiv 2106.01226).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .regions import REGIONS, split_regions
from .sums import Group
from .voxels import masked_mean


@dataclass(frozen=True)
class CPSTerms:
    """The loss of each network, and the pseudo-labels, (U, *S), that each gave to the other."""

    a: Tensor
    b: Tensor
    pseudo_labels_a: Tensor
    pseudo_labels_b: Tensor


def cps_terms(
    logits_a: Tensor,
    logits_b: Tensor,
    valid: Tensor | None = None,
    group: Group = None,
    regions: tuple[str, ...] = REGIONS,
    threshold_proportion: float = 0.8,
) -> CPSTerms:
    """Cross-entropy of each network against the other's hard pseudo-labels, a mean over the voxels.

    ``L_a = (1/N) sum_v CE(p_a[v], y_b[v])`` with ``y_b = argmax_c p_b``, and likewise for b. No gradient flows through
    the pseudo-labels, so each term trains one network.

    With fewer than all ``regions`` only their voxels count, in the sum and in N: ALHVR's regions, found with the
    confidences of these very predictions, as CPS perturbs none (:func:`region_mask`).

    Args:
        logits_a: of network a, (U, C, *S).
        logits_b: of network b, (U, C, *S).
        valid: (U, *S) bool, False outside the image (padding); None means all.
        group: the ranks that the batch is spread over; the sum of their results is the batch's term.
        regions: out of "omega1", "omega2", "omega3"; all three are CPS itself.
        threshold_proportion: beta, see :func:`~.regions.confidence_threshold`.

    Example:
        >>> agreed = torch.tensor([[[4.0], [0.0]]])  # one voxel, two classes
        >>> round(float(cps_terms(agreed, agreed).a), 4)
        0.0181

    Source: Eq. 5, L_cps^u; L_cps^l is the same on labeled samples. Regions: ALHVR (Lei et al., ICCV 2025), Eq. 11-14.
    """
    labels_a, labels_b = logits_a.detach().argmax(dim=1), logits_b.detach().argmax(dim=1)
    counts = region_mask(logits_a, logits_b, regions, threshold_proportion, valid, group)
    return CPSTerms(
        a=masked_mean(cross_entropy(logits_a, labels_b, reduction="none"), counts, group),
        b=masked_mean(cross_entropy(logits_b, labels_a, reduction="none"), counts, group),
        pseudo_labels_a=labels_a,
        pseudo_labels_b=labels_b,
    )


@torch.no_grad()
def region_mask(
    logits_a: Tensor,
    logits_b: Tensor,
    regions: tuple[str, ...],
    threshold_proportion: float,
    valid: Tensor | None = None,
    group: Group = None,
) -> Tensor | None:
    """The voxels in any of the named regions, (U, *S) bool; ``valid`` itself where all three are named.

    Unlike in ALHVR, where only the confident network teaches, Omega2 here means both of its halves for both networks.
    The three regions together therefore cover every voxel, which is plain CPS.

    Args:
        logits_a, logits_b, valid, group: as for :func:`cps_terms`.
        regions: names of the regions that count.
        threshold_proportion: beta.
    """
    if set(regions) == set(REGIONS):
        return valid
    found = split_regions(logits_a.softmax(dim=1), logits_b.softmax(dim=1), threshold_proportion, valid, group)
    return found.mask_for("a", regions) | found.mask_for("b", regions)


class CPSLoss(nn.Module):
    """:func:`cps_terms` of both networks as a loss in MONAI's form.

    Args:
        options: ``regions``, ``threshold_proportion`` and ``group`` of :func:`cps_terms`.

    Example:
        >>> CPSLoss()(torch.randn(2, 4, 32, 32), torch.randn(2, 4, 32, 32)).shape
        torch.Size([])
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, logits_a: Tensor, logits_b: Tensor, valid: Tensor | None = None) -> Tensor:
        terms = cps_terms(logits_a, logits_b, valid, **self.options)
        return terms.a + terms.b
