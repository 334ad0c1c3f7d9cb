"""DTCT, dynamic teacher competition teaching (Eq. 21-25)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .sums import Group, total

_EPS_COUNT = 1e-16
_EPS_LOG = 1e-6


class _Sharpen(torch.autograd.Function):
    """s(t) with its gradient in closed form, ``s (1 - s) / (T t (1 - t))``: autograd's would take the powers again."""

    @staticmethod
    def forward(ctx, probabilities: Tensor, temperature: float) -> Tensor:
        power = probabilities ** (1.0 / temperature)
        sharpened = power / (power + (1.0 - probabilities) ** (1.0 / temperature))
        ctx.save_for_backward(probabilities, sharpened)
        ctx.temperature = temperature
        return sharpened

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        probabilities, sharpened = ctx.saved_tensors
        slope = ctx.temperature * probabilities * (1.0 - probabilities)
        # at t = 0 and t = 1 numerator and denominator vanish; for T < 1 the limit is 0
        return gradient * (sharpened * (1.0 - sharpened) / slope.clamp_min(torch.finfo(slope.dtype).tiny)), None


def sharpen(probabilities: Tensor, temperature: float) -> Tensor:
    """``s = t^(1/T) / (t^(1/T) + (1 - t)^(1/T))``: sharpening of each class by itself, not renormalized (Eq. 22).

    Finite with finite gradient at t = 0 and t = 1 for 0 < T <= 1: the powers underflow to exact zeros and never
    both at once.

    Args:
        probabilities: t, any shape, in [0, 1].
        temperature: T.
    """
    return _Sharpen.apply(probabilities, temperature)


def competing_teacher(
    probabilities_a: Tensor, probabilities_b: Tensor, temperature: float, detach: bool = False
) -> Tensor:
    """Sharpened clean prediction of the network that is more confident, voxel by voxel (Eq. 21-22).

    Args:
        probabilities_a: p_a1, (U, C, *S).
        probabilities_b: p_b1, (U, C, *S).
        temperature: T of the sharpening.
        detach: stop the gradient. The paper reads as a teacher, i.e. detached; the authors' code lets the gradient
            through, which is the default here.

    Returns:
        s, (U, C, *S).
    """
    a_wins = probabilities_a.detach().amax(dim=1, keepdim=True) > probabilities_b.detach().amax(dim=1, keepdim=True)
    teacher = sharpen(torch.where(a_wins, probabilities_a, probabilities_b), temperature)
    return teacher.detach() if detach else teacher


class _MaskedEntropy(torch.autograd.Function):
    """Autograd would keep two more class maps, ``p + 1e-6`` and its logarithm; this keeps p, which softmax has."""

    @staticmethod
    def forward(ctx, probabilities: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(probabilities, weight)
        entropy = -(probabilities * torch.log(probabilities + _EPS_LOG)).sum(dim=1)
        return (entropy * weight).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        probabilities, weight = ctx.saved_tensors
        shifted = probabilities + _EPS_LOG
        slope = probabilities / shifted + shifted.log_()  # d/dp of p log(p + eps)
        return slope.mul_(-gradient * weight.unsqueeze(1)), None


class _MaskedSquaredError(torch.autograd.Function):
    """Autograd would keep the difference, one more class map; this keeps its two operands, which are there anyway."""

    @staticmethod
    def forward(ctx, prediction: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(prediction, teacher, weight)
        return (((prediction - teacher) ** 2).sum(dim=1) * weight).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        prediction, teacher, weight = ctx.saved_tensors
        slope = (prediction - teacher).mul_(2.0 * gradient * weight.unsqueeze(1))
        return slope, -slope if ctx.needs_input_grad[1] else None, None


def masked_entropy(probabilities: Tensor, weight: Tensor, voxels: Tensor | int) -> Tensor:
    """``H(p) = (1 / N) * sum over the mask of -sum_c p log(p + 1e-6)``, N all voxels (Eq. 24).

    Args:
        probabilities: p, (U, C, *S).
        weight: the mask as a number of p's type, (U, *S).
        voxels: N.
    """
    return _MaskedEntropy.apply(probabilities, weight) / voxels


def dtct_term(
    probabilities: Tensor,
    perturbed: Tensor,
    teacher: Tensor,
    mask: Tensor,
    voxels: Tensor | int,
    group: Group = None,
) -> Tensor:
    """``L_dtct = mse(p_2, s) + H(p_1) + H(p_2)`` of one network (Eq. 23-25).

    ``mse = sum over mask and classes of (p_2 - s)^2 / |mask|``: divided by voxels, not voxels times classes.

    Args:
        probabilities: p_1, the network's clean prediction, (U, C, *S).
        perturbed: p_2, its perturbed prediction, (U, C, *S).
        teacher: s of :func:`competing_teacher`, (U, C, *S).
        mask: (U, *S), the voxels that count; exactly 0 if it is empty.
        voxels: N, number of voxels inside the image, over all ranks.
        group: the ranks that the batch is spread over; the sum of their results is the batch's term.
    """
    weight = mask.to(perturbed.dtype)
    mse = _MaskedSquaredError.apply(perturbed, teacher, weight) / (total(weight.sum(), group) + _EPS_COUNT)
    return mse + masked_entropy(probabilities, weight, voxels) + masked_entropy(perturbed, weight, voxels)
