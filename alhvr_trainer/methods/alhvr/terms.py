"""All unsupervised terms of ALHVR from the outputs of two networks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alhvr_trainer.methods.alhvr.prototypes import cgcpcl_terms, class_prototypes, prototype_similarity
from alhvr_trainer.methods.alhvr.regions import split_regions
from alhvr_trainer.methods.alhvr.teaching import competing_teacher, dtct_term
from alhvr_trainer.training.distributed.sums import Group, total
from alhvr_trainer.training.precision import in_float32
from alhvr_trainer.training.voxels import valid_voxels


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
    """Unsupervised terms of ALHVR on the unlabelled samples (Lei et al., ICCV 2025, Eq. 5-6 and 11-25).

    ``total = sum over networks n of  L_dtct_n + ce_n + cos_n``; weight it with
    :func:`alhvr_trainer.methods.alhvr.consistency_weight` and add both networks' supervised losses.

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
    all_logits = (logits_a, perturbed_logits_a, logits_b, perturbed_logits_b)
    all_features = (features_a, perturbed_features_a, features_b, perturbed_features_b)
    _check_shapes(all_logits, all_features, valid)
    p_a1, p_a2, p_b1, p_b2 = (torch.softmax(z, dim=1) for z in all_logits)
    regions = split_regions(p_a2, p_b2, threshold_proportion, valid, process_group)
    # NaN and Inf fail every comparison and would vanish from the masks: let them show in gamma
    gamma = regions.gamma + total(0.0 * torch.stack([z.detach().sum() for z in all_logits]).sum(), process_group)
    voxels = valid_voxels(regions.omega1, valid, process_group)
    zero = logits_a.new_zeros(())

    # the argmax; torch.argmax over a strided axis takes six times as long on the CPU
    labels_a, labels_b = (z.detach().max(dim=1).indices for z in (logits_a, logits_b))

    dtct_a = dtct_b = ce_a = ce_b = cos_a = cos_b = zero
    if dtct_regions:
        teacher = competing_teacher(p_a1, p_b1, temperature, detach_teacher)
        dtct_a = dtct_term(p_a1, p_a2, teacher, regions.mask_for("a", dtct_regions), voxels, process_group)
        dtct_b = dtct_term(p_b1, p_b2, teacher, regions.mask_for("b", dtct_regions), voxels, process_group)
    if cgcpcl_regions:
        shape = tuple(logits_a.shape[2:])
        prototypes_a = class_prototypes(features_a, labels_a, logits_a.shape[1], valid, process_group)
        prototypes_b = class_prototypes(features_b, labels_b, logits_b.shape[1], valid, process_group)
        # "cross": each network's features against the OTHER's prototypes and pseudo-labels
        similarity_a = prototype_similarity(perturbed_features_a, prototypes_b, shape, prototype_scale)
        similarity_b = prototype_similarity(perturbed_features_b, prototypes_a, shape, prototype_scale)
        mask_a, mask_b = regions.mask_for("a", cgcpcl_regions), regions.mask_for("b", cgcpcl_regions)
        ce_a, cos_a = cgcpcl_terms(similarity_a, labels_b, mask_a, voxels, official_ce_broadcast, process_group)
        ce_b, cos_b = cgcpcl_terms(similarity_b, labels_a, mask_b, voxels, official_ce_broadcast, process_group)
    masks = {name: getattr(regions, name) for name in ("omega1", "omega2a", "omega2b", "omega3")}
    return ALHVRTerms(
        gamma,
        **masks,
        dtct_a=dtct_a,
        dtct_b=dtct_b,
        ce_a=ce_a,
        ce_b=ce_b,
        cos_a=cos_a,
        cos_b=cos_b,
    )


def _check_shapes(logits: tuple[Tensor, ...], features: tuple[Tensor, ...], valid: Tensor | None) -> None:
    if len({tuple(z.shape) for z in logits}) != 1:
        raise ValueError(f"the four logits must have one shape (U, C, *S), found {[tuple(z.shape) for z in logits]}")
    if len({tuple(f.shape) for f in features}) != 1:
        raise ValueError(
            f"the four feature maps must have one shape (U, K, *s), found {[tuple(f.shape) for f in features]}"
        )
    if features[0].ndim != logits[0].ndim or len(features[0]) != len(logits[0]):
        raise ValueError(f"features {tuple(features[0].shape)} do not fit logits {tuple(logits[0].shape)}")
    if valid is not None and valid.shape != logits[0].amax(dim=1).shape:
        raise ValueError(f"valid must be (U, *S), found {tuple(valid.shape)} for logits {tuple(logits[0].shape)}")
