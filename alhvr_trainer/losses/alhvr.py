"""ALHVR: adaptive learning of high-value regions, from the outputs of two networks.

Lei et al., "Adaptive Learning of High-Value Regions for Semi-Supervised Medical Image Segmentation", ICCV 2025.
Equation numbers are that paper's. Notation: ``U`` unlabeled samples, ``C`` classes, ``K`` feature channels, ``*S`` the
spatial shape of the image (2D or 3D), ``*s`` that of the feature map.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .precision import in_float32
from .prototypes import cgcpcl_terms, class_prototypes, prototype_similarity
from .regions import Regions, split_regions
from .sums import Group, total
from .teaching import competing_teacher, dtct_term
from .voxels import valid_voxels

TERMS = ("dtct_a", "dtct_b", "ce_a", "ce_b", "cos_a", "cos_b")


class TwoPasses(NamedTuple):
    """What one network gives for the unlabeled samples: ``alhvr_terms(*a, *b)`` takes those of two networks."""

    logits: Tensor
    """Decoder on clean encoder features, (U, C, *S)."""
    perturbed_logits: Tensor
    """The same decoder on perturbed encoder features, (U, C, *S)."""
    features: Tensor
    """A decoder feature map of the clean pass, (U, K, *s)."""
    perturbed_features: Tensor
    """The same map of the perturbed pass, (U, K, *s)."""

    @property
    def labels(self) -> Tensor:
        """Pseudo-label of the clean pass, (U, *S)."""
        # torch.argmax over a strided axis takes six times as long on the CPU
        return self.logits.detach().max(dim=1).indices

    def channel(self, number: int) -> TwoPasses:
        """One sigmoid channel as a softmax of two classes, out (0) and in (1)."""
        clean, perturbed = (
            torch.stack((torch.zeros_like(z[:, number]), z[:, number]), dim=1)
            for z in (self.logits, self.perturbed_logits)
        )
        return self._replace(logits=clean, perturbed_logits=perturbed)


@dataclass(frozen=True)
class ALHVRTerms:
    """The terms of both networks (scalars) and the regions that they act on (masks (U, *S) bool).

    ``gamma`` is NaN if any logit is NaN or Inf.

    Where the samples are spread over the ranks of a process group, gamma is that of the whole batch, masks are those of
    this rank's samples, and each term is this rank's share: the sum over the ranks is the term of the whole batch.
    """

    gamma: Tensor
    omega1: Tensor
    omega2a: Tensor
    omega2b: Tensor
    omega3: Tensor
    dtct_a: Tensor
    dtct_b: Tensor
    ce_a: Tensor
    ce_b: Tensor
    cos_a: Tensor
    cos_b: Tensor

    @property
    def total(self) -> Tensor:
        """Unweighted sum of both networks' terms."""
        return self.dtct_a + self.dtct_b + self.ce_a + self.ce_b + self.cos_a + self.cos_b


@in_float32
def alhvr_terms(
    logits_a: Tensor,
    perturbed_logits_a: Tensor,
    features_a: Tensor,
    perturbed_features_a: Tensor,
    logits_b: Tensor,
    perturbed_logits_b: Tensor,
    features_b: Tensor,
    perturbed_features_b: Tensor,
    *,
    threshold_proportion: float = 0.8,
    temperature: float = 0.1,
    prototype_scale: float = 1.0,
    detach_teacher: bool = False,
    official_ce_broadcast: bool = False,
    valid: Tensor | None = None,
    dtct_regions: tuple[str, ...] = ("omega3",),
    cgcpcl_regions: tuple[str, ...] = ("omega2",),
    process_group: Group = None,
) -> ALHVRTerms:
    """Unsupervised terms of ALHVR on the unlabeled samples (Lei et al., ICCV 2025, Eq. 5-6 and 11-25).

    ``total = sum over networks n of  L_dtct_n + ce_n + cos_n``; weight it with
    :func:`~.schedules.consistency_weight` and add both networks' supervised losses.

    With ``p = softmax(z)``, N voxels inside the image, sums and means over all samples::

        con_n   = max_c p_n2,  con = (con_a + con_b) / 2
        gamma   = mean of the floor(beta * N) smallest con
        Omega1  = con_a >= gamma and con_b >= gamma                                                  (11)
        Omega2a = con_a <= gamma <  con_b                          b is sure, a is not               (12)
        Omega2b = con_b <= gamma <  con_a                                                            (13)
        Omega3  = con_a <  gamma and con_b <  gamma                                                  (14)

        t       = p_a1 where max_c p_a1 > max_c p_b1, else p_b1                                      (21)
        s       = t^(1/T) / (t^(1/T) + (1 - t)^(1/T))              each class by itself              (22)
        mse_n   = sum over Omega3 and classes of (p_n2 - s)^2 / |Omega3|                             (23)
        H(p)    = (1/N) sum over Omega3 of -sum_c p log(p + 1e-6)                                    (24)
        dtct_n  = mse_n + H(p_n1) + H(p_n2)                                                          (25)

        y_n     = argmax_c p_n1,  Up = (bi-, tri-)linear interpolation to S
        q_n[c]  = mean over samples of  sum_v Up(F_n1) 1(y_n = c) / (count(c) + 1e-5)             (5, 6, 15)
        d_a[c]  = scale * cosine(Up(F_a2), q_b[c])                 the other's prototypes            (16, 17)
        ce_a    = sum over Omega2a of CE(d_a, y_b) / |Omega2a|                                       (18)
        cos_a   = mean over all N voxels and C classes of (1 - d_a) 1(Omega2a)                       (19)
        L_cgcpcl_a = ce_a + cos_a,  and b likewise with a's prototypes and Omega2b                   (20)

    Half precision inputs are computed in float32, also under autocast: powers and logarithms underflow there.

    Args:
        logits_a: z_a1, network a on clean encoder features, (U, C, *S).
        perturbed_logits_a: z_a2, the same decoder on perturbed encoder features, (U, C, *S).
        features_a: F_a1, a decoder feature map of the clean pass, (U, K, *s).
        perturbed_features_a: F_a2, the same map in the perturbed pass, (U, K, *s).
        logits_b, perturbed_logits_b, features_b, perturbed_features_b: the same of network b.
        threshold_proportion: beta, share of the least confident voxels whose mean is gamma.
        temperature: T of the teacher's sharpening.
        prototype_scale: factor on the cosine similarity.
        detach_teacher: stop the gradient through the teacher (see ``competing_teacher``).
        official_ce_broadcast: cross-entropy as the authors' code computes it (see ``cgcpcl_terms``).
        valid: (U, *S) bool, False outside the image; None means all.
        dtct_regions: regions for DTCT out of "omega1", "omega2", "omega3"; empty switches it off.
        cgcpcl_regions: regions for CG-CPCL, likewise. In "omega2" each network learns where it is the poor one.
        process_group: ``torch.distributed`` ranks that the U samples are spread over, e.g. ``dist.group.WORLD``; gamma
            and prototypes are then those of the whole batch. Sum, not average, the gradients over the ranks.

    Raises:
        ValueError: shapes do not fit.

    Example:
        >>> z = [torch.randn(2, 4, 32, 32) for _ in range(4)]
        >>> f = [torch.randn(2, 16, 4, 4) for _ in range(4)]
        >>> terms = alhvr_terms(z[0], z[1], f[0], f[1], z[2], z[3], f[2], f[3])
        >>> terms.total.shape, terms.omega3.shape
        (torch.Size([]), torch.Size([2, 32, 32]))
    """
    a = TwoPasses(logits_a, perturbed_logits_a, features_a, perturbed_features_a)
    b = TwoPasses(logits_b, perturbed_logits_b, features_b, perturbed_features_b)
    _check_fit(a, b, valid)
    group = process_group
    p_a1, p_a2, p_b1, p_b2 = (
        torch.softmax(z, dim=1) for z in (a.logits, a.perturbed_logits, b.logits, b.perturbed_logits)
    )
    regions = split_regions(p_a2, p_b2, threshold_proportion, valid, group)
    voxels = valid_voxels(regions.omega1, valid, group)
    terms = dict.fromkeys(TERMS, a.logits.new_zeros(()))
    if dtct_regions:
        teacher = competing_teacher(p_a1, p_b1, temperature, detach_teacher)
        for name, clean, perturbed in (("a", p_a1, p_a2), ("b", p_b1, p_b2)):
            mask = regions.mask_for(name, dtct_regions)
            terms[f"dtct_{name}"] = dtct_term(clean, perturbed, teacher, mask, voxels, group)
    if cgcpcl_regions:
        shape, classes = tuple(a.logits.shape[2:]), a.logits.shape[1]
        labels = {"a": a.labels, "b": b.labels}
        prototypes = {
            name: class_prototypes(network.features, labels[name], classes, valid, group)
            for name, network in (("a", a), ("b", b))
        }
        for name, network, other in (("a", a, "b"), ("b", b, "a")):  # "cross": the OTHER's prototypes and labels
            similarity = prototype_similarity(network.perturbed_features, prototypes[other], shape, prototype_scale)
            mask = regions.mask_for(name, cgcpcl_regions)
            terms[f"ce_{name}"], terms[f"cos_{name}"] = cgcpcl_terms(
                similarity, labels[other], mask, voxels, official_ce_broadcast, group
            )
    return ALHVRTerms(**vars(_visible(regions, a, b, group)), **terms)


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
    a = TwoPasses(logits_a, perturbed_logits_a, features_a, perturbed_features_a)
    b = TwoPasses(logits_b, perturbed_logits_b, features_b, perturbed_features_b)
    channels = [alhvr_terms(*a.channel(r), *b.channel(r), **options) for r in range(logits_a.shape[1])]
    masks = ("omega1", "omega2a", "omega2b", "omega3")
    return ALHVRTerms(
        gamma=torch.stack([terms.gamma for terms in channels]),
        **{name: torch.stack([getattr(terms, name) for terms in channels], dim=1) for name in masks},
        **{name: torch.stack([getattr(terms, name) for terms in channels]).mean() for name in TERMS},
    )


def _visible(regions: Regions, a: TwoPasses, b: TwoPasses, group: Group) -> Regions:
    """NaN and Inf fail every comparison and would vanish from the masks: gamma shows them."""
    sums = [z.detach().sum() for z in (a.logits, a.perturbed_logits, b.logits, b.perturbed_logits)]
    return replace(regions, gamma=regions.gamma + total(0.0 * torch.stack(sums).sum(), group))


def _check_fit(a: TwoPasses, b: TwoPasses, valid: Tensor | None) -> None:
    for name, clean in (("logits", 0), ("features", 2)):
        shapes = [tuple(x.shape) for network in (a, b) for x in network[clean : clean + 2]]
        if len(set(shapes)) > 1:
            raise ValueError(f"clean and perturbed {name} of both networks must have one shape, found {shapes}")
    if a.features.ndim != a.logits.ndim or len(a.features) != len(a.logits):
        raise ValueError(f"features {tuple(a.features.shape)} do not fit logits {tuple(a.logits.shape)}")
    if valid is not None and valid.shape != a.logits[:, 0].shape:
        raise ValueError(f"valid must be (U, *S), found {tuple(valid.shape)} for logits {tuple(a.logits.shape)}")


class ALHVRLoss(nn.Module):
    """The sum of both networks' terms as a loss in MONAI's form.

    Args:
        sigmoid: the channels overlap, each with a sigmoid of its own (:func:`alhvr_channel_terms`).
        options: the keyword arguments of :func:`alhvr_terms`, but ``valid``.

    Example:
        >>> a, b = (TwoPasses(*torch.randn(2, 2, 4, 32, 32), *torch.randn(2, 2, 16, 4, 4)) for _ in "ab")
        >>> ALHVRLoss(threshold_proportion=0.7)(a, b).shape
        torch.Size([])
    """

    def __init__(self, sigmoid: bool = False, **options: Any) -> None:
        super().__init__()
        self.method = alhvr_channel_terms if sigmoid else alhvr_terms
        self.options = options

    def forward(self, a: TwoPasses, b: TwoPasses, valid: Tensor | None = None) -> Tensor:
        """Scalar; weight it with :func:`~.schedules.consistency_weight` and add both supervised losses.

        Args:
            a, b: of the two networks.
            valid: (U, *S) bool, False outside the image; None means all.
        """
        return self.method(*a, *b, valid=valid, **self.options).total
