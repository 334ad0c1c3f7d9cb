"""Losses and gradients of a batch that is spread over the ranks, equal to those of one process with the whole batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import Tensor, nn
from torch import distributed as dist

from alhvr_trainer.losses.precision import at_least_float32
from alhvr_trainer.trainers.ranks import ranks


def sum_gradients(parameters: Iterable[nn.Parameter], group: dist.ProcessGroup | None) -> None:
    """Replace each gradient by its sum over the ranks; one message for all of them.

    A parameter has a gradient on all ranks or on none: the ranks run the same graph.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if group is None or not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat, group=group)
    for gradient, summed in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))


def global_batch_loss(loss: nn.Module, ignore_label: int | None) -> nn.Module:
    """nnU-Net's loss, such that its mean over the ranks is the loss of the whole batch. Changes ``loss``.

    Args:
        loss: as nnU-Net builds it, with or without deep supervision around it.
        ignore_label: of the dataset.
    """
    if isinstance(loss, DeepSupervisionWrapper):
        loss.loss = GlobalBatchLoss(loss.loss, ignore_label)
        return loss
    return GlobalBatchLoss(loss, ignore_label)


class GlobalBatchLoss(nn.Module):
    """Weights this rank's loss by its share of the samples, and its cross-entropy by its share of annotated voxels.

    nnU-Net averages over the ranks, which is the loss of the whole batch only where all have equally many.
    """

    def __init__(self, loss: nn.Module, ignore_label: int | None) -> None:
        super().__init__()
        self.loss = loss
        self.ignore_label = ignore_label
        self.weight_ce = getattr(loss, "weight_ce", None)
        for module in loss.modules():
            if getattr(module, "batch_dice", False):
                module.register_forward_pre_hook(_fold_samples, with_kwargs=True)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        samples = _share(at_least_float32(output.new_tensor(len(output))))
        if self.ignore_label is not None and self.weight_ce is not None:
            # with regions the last channel says where nobody annotated
            regions = target.shape[1] > 1
            annotated = ~target[:, -1:].bool() if regions else target != self.ignore_label
            self.loss.weight_ce = self.weight_ce * _share(annotated.sum().to(samples)) / samples
        return samples * self.loss(output, target)


def _share(count: Tensor) -> Tensor:
    """Count of this rank against the mean of all ranks."""
    everyone = count.clone()
    dist.all_reduce(everyone)
    return count * ranks() / everyone.clamp_min(1)


def _fold_samples(_module: nn.Module, tensors: tuple[Tensor, ...], keywords: dict[str, Any]) -> Any:
    """(B, C, *S) to (1, C, B, *S), before a Dice over the whole batch: nnU-Net gathers (B, C) sums of the ranks, which
    fails where B differs; as one sample they sum up to the same."""
    fold = {key: value.transpose(0, 1).unsqueeze(0) for key, value in keywords.items() if value is not None}
    return tuple(x.transpose(0, 1).unsqueeze(0) for x in tensors), {**keywords, **fold}
