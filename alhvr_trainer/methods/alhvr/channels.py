"""ALHVR for sigmoid heads, as in nnU-Net's region-based training, where labels overlap."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from alhvr_trainer.methods.alhvr.terms import ALHVRTerms, alhvr_terms
from alhvr_trainer.training.precision import in_float32

_SCALARS = ("dtct_a", "dtct_b", "ce_a", "ce_b", "cos_a", "cos_b")
_MASKS = ("omega1", "omega2a", "omega2b", "omega3")


@in_float32
def alhvr_channel_terms(
    logits_a: Tensor,
    perturbed_logits_a: Tensor,
    features_a: Tensor,
    perturbed_features_a: Tensor,
    logits_b: Tensor,
    perturbed_logits_b: Tensor,
    features_b: Tensor,
    perturbed_features_b: Tensor,
    **options: Any,
) -> ALHVRTerms:
    """Each of R channels is a two-class problem of its own, "in" against "out"; the terms are means over the channels.

    Formulas and equation numbers: :func:`alhvr_terms`; the precision, too.

    ``term = (1/R) sum_r term(softmax over (0, z_r))``, and ``softmax((0, z)) = (1 - sigmoid(z), sigmoid(z))``. So the
    confidence of a channel is ``max(p, 1 - p)``, gamma and the regions are found per channel, and CG-CPCL has two
    prototypes per channel. The paper treats exclusive classes only; this is our extension.

    Args:
        logits_a, perturbed_logits_a, logits_b, perturbed_logits_b: before the sigmoid, (U, R, *S).
        features_a, perturbed_features_a, features_b, perturbed_features_b: as for :func:`alhvr_terms`.
        options: the keyword arguments of :func:`alhvr_terms`.

    Returns:
        As :func:`alhvr_terms`, but gamma is (R,) and the masks are (U, R, *S).

    Raises:
        ValueError: shapes do not fit.

    Example:
        >>> z = [torch.randn(2, 3, 32, 32) for _ in range(4)]
        >>> f = [torch.randn(2, 16, 4, 4) for _ in range(4)]
        >>> terms = alhvr_channel_terms(z[0], z[1], f[0], f[1], z[2], z[3], f[2], f[3])
        >>> terms.gamma.shape, terms.omega3.shape
        (torch.Size([3]), torch.Size([2, 3, 32, 32]))
    """
    channels = [
        alhvr_terms(
            _two_classes(logits_a, channel),
            _two_classes(perturbed_logits_a, channel),
            features_a,
            perturbed_features_a,
            _two_classes(logits_b, channel),
            _two_classes(perturbed_logits_b, channel),
            features_b,
            perturbed_features_b,
            **options,
        )
        for channel in range(logits_a.shape[1])
    ]
    return ALHVRTerms(
        gamma=torch.stack([terms.gamma for terms in channels]),
        **{name: torch.stack([getattr(terms, name) for terms in channels], dim=1) for name in _MASKS},
        **{name: torch.stack([getattr(terms, name) for terms in channels]).mean() for name in _SCALARS},
    )


def _two_classes(logits: Tensor, channel: int) -> Tensor:
    """Logits (U, 2, *S) of "out" and "in" of one channel."""
    inside = logits[:, channel]
    return torch.stack((torch.zeros_like(inside), inside), dim=1)
