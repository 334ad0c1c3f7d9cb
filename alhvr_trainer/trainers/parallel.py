"""Training on several ranks: each rank's share, messages between them, and losses and gradients of the whole batch.

Messages use gloo, which waits as long as necessary (nccl gives up after minutes) and notices when a rank dies.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import Tensor, nn
from torch import distributed as dist

from alhvr_trainer.errors import InputError
from alhvr_trainer.losses.precision import at_least_float32

LONGEST_WAIT = timedelta(days=7)
"""Enough for what rank 0 does alone, such as preprocessing."""


def get_rank() -> int:
    """Number of this process; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def get_world_size() -> int:
    """Number of processes that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def share(samples: int, number: int, parts: int) -> range:
    """Which of ``samples`` belong to part ``number`` of ``parts``; the first parts take the remainder.

    Example:
        >>> [len(share(5, number, 3)) for number in range(3)]
        [2, 2, 1]
    """
    low, extra = divmod(samples, parts)
    start = number * low + min(number, extra)
    return range(start, start + low + (number < extra))


_control_groups: dict[Any, dist.ProcessGroup] = {}


def _control_group() -> dist.ProcessGroup:
    """Created by all ranks together at first use."""
    world: Any = dist.group.WORLD
    if world not in _control_groups:
        group: Any = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
        _control_groups[world] = group
    return _control_groups[world]


@contextmanager
def rank_0_first() -> Iterator[None]:
    """Rank 0 runs the body before the others do, so that they find the files that it wrote.

    Raises:
        InputError: on the other ranks, if rank 0 failed.
    """
    if get_world_size() == 1:
        yield
        return
    if get_rank() == 0:
        problem: str | None = "rank 0 was interrupted"
        try:
            yield
            problem = None
        except Exception as error:
            problem = str(error)
            raise
        finally:
            dist.broadcast_object_list([problem], src=0, group=_control_group())
        return
    told: list[str | None] = [None]
    dist.broadcast_object_list(told, src=0, group=_control_group())
    if told[0] is not None:
        raise InputError(f"rank 0 stopped: {told[0]}")
    yield


def broadcast(value: Any) -> Any:
    """Rank 0's value, on all ranks."""
    if get_world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=_control_group())
    return values[0]


def gather(value: Any) -> list[Any]:
    """The values of all ranks, in the order of the ranks."""
    values: list[Any] = [value]
    if get_world_size() > 1:
        values = [None] * get_world_size()
        dist.all_gather_object(values, value, group=_control_group())
    return values


def barrier() -> None:
    """Wait until all ranks are here."""
    if get_world_size() > 1:
        dist.barrier(group=_control_group())


def local_device(device: torch.device) -> torch.device:
    """This rank's device; torchrun's ``LOCAL_RANK`` counts the GPUs of each machine from 0."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", get_rank()))) if device.type == "cuda" else device


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
    """Make the mean of nnU-Net's loss over the ranks the loss of the whole batch. Changes ``loss``.

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
    return count * get_world_size() / everyone.clamp_min(1)


def _fold_samples(_module: nn.Module, tensors: tuple[Tensor, ...], keywords: dict[str, Any]) -> Any:
    """(B, C, *S) to (1, C, B, *S), before a Dice over the whole batch: nnU-Net gathers (B, C) sums of the ranks, which
    fails where B differs; as one sample they sum up to the same."""
    fold = {key: value.transpose(0, 1).unsqueeze(0) for key, value in keywords.items() if value is not None}
    return tuple(x.transpose(0, 1).unsqueeze(0) for x in tensors), {**keywords, **fold}
