"""The ranks of a training: who am I, what is my share, wait for the others, hear from them.

Waiting and hearing go over gloo, whose waits may be long (nccl's end after minutes) and end when a rank dies.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from torch import distributed as dist

from alhvr_trainer.errors import InputError

LONGEST_WAIT = timedelta(days=7)
"""For what rank 0 does alone, such as preprocessing."""


def rank() -> int:
    """Number of this process, 0 where there is one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def ranks() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def share(samples: int, number: int, parts: int) -> range:
    """Which of ``samples`` fall to part ``number`` of ``parts``; the first parts take one more if it does not come out.

    Example:
        >>> [len(share(5, number, 3)) for number in range(3)]
        [2, 2, 1]
    """
    low, extra = divmod(samples, parts)
    start = number * low + min(number, extra)
    return range(start, start + low + (number < extra))


_control_groups: dict[Any, dist.ProcessGroup] = {}


def _control_group() -> dist.ProcessGroup:
    """Made by all ranks together when they first need it."""
    world: Any = dist.group.WORLD
    if world not in _control_groups:
        group: Any = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
        _control_groups[world] = group
    return _control_groups[world]


@contextmanager
def rank_0_first() -> Iterator[None]:
    """Rank 0 runs the body alone, then the others find the files that it left.

    Raises:
        InputError: rank 0 failed, in the others.
    """
    if ranks() == 1:
        yield
        return
    if rank() == 0:
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


def from_rank_0(value: Any) -> Any:
    """Rank 0's value, on all ranks."""
    if ranks() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=_control_group())
    return values[0]


def of_all_ranks(value: Any) -> list[Any]:
    """The values of all ranks, by rank."""
    values: list[Any] = [value]
    if ranks() > 1:
        values = [None] * ranks()
        dist.all_gather_object(values, value, group=_control_group())
    return values


def wait_for_all() -> None:
    if ranks() > 1:
        dist.barrier(group=_control_group())
