"""The values of a training step, read at once on the CPU, and once per epoch where they are on a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from alhvr_trainer.losses.host import host_may_look
from alhvr_trainer.trainers.checks import stop_on_bad_numbers


class StepRecord:
    """Losses, terms and gradient norms of one step.

    A NaN or Inf stops the training: on the CPU before the optimizers see it, on a GPU at the end of the epoch, which is
    before any checkpoint is written.

    Args:
        cases: where the samples come from.
        epoch, step: when, for the message.
        known: values that were never on the device.

    Example:
        >>> record = StepRecord(["case"], 0, 0, weight=0.1)
        >>> record.add({"loss": torch.tensor(0.5)})
        >>> read([record])
        [{'weight': 0.1, 'loss': 0.5}]
    """

    def __init__(self, cases: list[str], epoch: int, step: int, **known: float) -> None:
        self.cases, self.epoch, self.step, self.known = cases, epoch, step, known
        self.tensors: dict[str, Tensor] = {}

    @property
    def values(self) -> dict[str, float]:
        """As numbers."""
        return read([self])[0]

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Scalars, on the device.

        Raises:
            InputError: one is not finite, and the host may look; names values, cases, epoch and iteration.
        """
        self.tensors.update(values)
        if all(host_may_look(value) for value in values.values()):
            numbers = _numbers(list(values.values())).tolist()
            stop_on_bad_numbers(dict(zip(values, numbers, strict=True)), self.cases, self.epoch, self.step)


def read(records: Sequence[StepRecord]) -> list[dict[str, float]]:
    """The values of the steps of an epoch, brought to the CPU in one transfer.

    Raises:
        InputError: one is not finite.
    """
    if not records:
        return []
    names = list(records[0].tensors)
    rows = torch.stack([_numbers([record.tensors[name] for name in names]) for record in records]).tolist()
    found = [dict(zip(names, row, strict=True)) for row in rows]
    for record, values in zip(records, found, strict=True):
        stop_on_bad_numbers(values, record.cases, record.epoch, record.step)
    return [{**record.known, **values} for record, values in zip(records, found, strict=True)]


def _numbers(values: Sequence[Tensor]) -> Tensor:
    return torch.stack([value.detach().double() for value in values])
