"""Several processes predict the cases of one folder together: ``configs/multi_gpu_inference.json``.

``torchrun`` starts them and tells each its rank. They share nothing but the list of cases, so gloo, which works
with and without GPUs, is enough for them to wait for each other.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from .cases import Cases
from .evaluation import Evaluation, run_to_the_end

_PATIENCE = timedelta(days=7)  # between the first rank that is done and the last; the usual half hour is too short


def rank() -> int:
    """Number of this process; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes there are; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def device_of_this_rank() -> torch.device:
    """The GPU of this process, or the CPU if there is none.

    Raises:
        SystemExit: more processes than GPUs.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= gpus:
        raise SystemExit(f"bundle: there are {gpus} GPUs for more processes; use torchrun --nproc_per_node={gpus}")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def cases_of_this_rank(cases: Sequence[Any]) -> Cases:
    """Every n-th case, beginning with the rank's own number: each case goes to exactly one of n ranks.

    Example:
        >>> cases_of_this_rank(["a", "b", "c"])     # rank 0 of 2     # doctest: +SKIP
        ['a', 'c']
    """
    return Cases(cases[rank() :: world_size()], getattr(cases, "problem", ""))


def run_on_all_ranks(evaluator: Any, evaluation: Evaluation | None = None) -> None:
    """Predict this rank's cases, wait for the others, then evaluate on rank 0.

    Args:
        evaluator: MONAI's, over :func:`cases_of_this_rank`. As for
            :func:`scripts.evaluation.predict_and_evaluate`.
        evaluation: of all cases; None to predict only.

    Raises:
        SystemExit: cases failed.
    """
    together = "RANK" in os.environ
    if together and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        end = run_to_the_end(evaluator)
        failed = _of_all_ranks(dict(getattr(evaluator, "failed", None) or {}))
        if evaluation is not None and rank() == 0:
            try:
                evaluation.report_or_exit(failed)
            except SystemExit as error:
                end = error
        if dist.is_initialized():  # torchrun ends all ranks as soon as one has failed
            dist.barrier()
        if end is not None:
            raise end
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _of_all_ranks(own: dict[str, str]) -> dict[str, str]:
    """Waits for every rank."""
    if not dist.is_initialized():
        return own
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, own)
    return {case: reason for part in parts for case, reason in part.items()}
