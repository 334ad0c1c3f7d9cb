"""Sums over a batch that is spread over the ranks of a process group (``torch.distributed``).

``group`` is None everywhere in one process; nothing is communicated then.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor
from torch import distributed as dist

Group: TypeAlias = "dist.ProcessGroup | None"


def total(x: Tensor, group: Group = None) -> Tensor:
    """Sum of ``x`` over the ranks, the same on all of them; the gradient of each rank's ``x`` is summed as well.

    Args:
        x: the same shape on every rank.
    """
    if group is None:
        return x
    from torch.distributed.nn.functional import all_reduce

    summed: Tensor = all_reduce(x, group=group)
    return summed


def share(value: Tensor, group: Group = None) -> Tensor:
    """This rank's share of a value that is the same on all ranks: the shares add up to it."""
    return value if group is None else value / dist.get_world_size(group)


@torch.no_grad()
def gathered(values: Tensor, group: Group = None) -> Tensor:
    """The values of all ranks, one after another.

    Args:
        values: (n,), finite or NaN; n may differ from rank to rank.
    """
    if group is None:
        return values
    ranks = dist.get_world_size(group)
    sizes = values.new_zeros(ranks, dtype=torch.long)
    dist.all_gather_into_tensor(sizes, torch.tensor([values.numel()], device=values.device), group=group)
    padded = values.new_full((int(sizes.max()),), torch.inf)
    padded[: values.numel()] = values
    everyone = values.new_empty(ranks * len(padded))
    dist.all_gather_into_tensor(everyone, padded, group=group)
    return everyone[~torch.isinf(everyone)]
