"""nnU-Net's loaders, such that a batch depends on the seed and its number alone, whichever worker makes it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader


@dataclass(frozen=True)
class Draws:
    """How one rank draws its batches; its loader finds this in ``data.draws``."""

    seed: tuple[int, ...]
    """Of all its batches: other numbers on every rank, and for training and validation."""
    first: int
    """Number of the first batch."""
    forced: tuple[float, ...]
    """For each sample of a batch the probability that its patch is laid around foreground."""


def forced_foreground(samples: int, batch: int, percent: float) -> tuple[float, ...]:
    """Probabilities of being laid around foreground, so that the samples have the share that nnU-Net's batch has.

    nnU-Net forces the last ``b - round(b * (1 - percent))`` of its b patches: one of two by default. The same share of
    fewer samples is not a whole number: the last ones are forced always, and one more in some of the batches.

    Args:
        samples: labeled ones in a batch, L.
        batch: all of them, b = L + U.
        percent: nnU-Net's ``oversample_foreground_percent``, 0 to 1.

    Example:
        >>> forced_foreground(1, 2, 0.33), forced_foreground(2, 2, 0.33), forced_foreground(3, 4, 0.33)
        ((0.5,), (0.0, 1.0), (0.0, 0.0, 0.75))
    """
    expected = samples * (batch - round(batch * (1 - percent))) / batch
    return tuple(min(1.0, max(0.0, expected - after)) for after in reversed(range(samples)))


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed NumPy and torch (CPU) inside the context, and restore their states afterwards.

    Example:
        >>> with seeded(1, 2):
        ...     first = torch.rand(1)
        >>> with seeded(1, 2):
        ...     print(torch.equal(first, torch.rand(1)))
        True
    """
    of_numpy, of_torch = np.random.get_state(), torch.get_rng_state()
    words = np.random.SeedSequence(numbers).generate_state(6)
    np.random.seed(words[:4])
    torch.default_generator.manual_seed(int(words[4]) << 32 | int(words[5]))  # torch.manual_seed takes in the GPUs
    try:
        yield
    finally:
        np.random.set_state(of_numpy)
        torch.set_rng_state(of_torch)


class NumberedLoader(nnUNetDataLoader):
    """nnU-Net's loader; every batch has a ``number``, and is drawn from that and the seed.

    Workers share the counter, so a slow one simply makes fewer batches.
    """

    def __init__(self, data: Any, batch_size: int, *args: Any, **kwargs: Any) -> None:
        self.draws: Draws = data.draws
        super().__init__(data, len(self.draws.forced), *args, **kwargs)
        self.get_do_oversample = self._is_forced
        self._next = multiprocessing.Value("q", self.draws.first)
        self.number = self.draws.first

    def _is_forced(self, sample_idx: int) -> bool:
        return bool(np.random.uniform() < self.draws.forced[sample_idx])

    def generate_train_batch(self) -> dict[str, Any]:
        with self._next.get_lock():
            self.number = self._next.value
            self._next.value += 1
        with seeded(*self.draws.seed, self.number):
            return {**super().generate_train_batch(), "number": self.number}


class InOrder(NonDetMultiThreadedAugmenter):
    """nnU-Net's pool of workers, with batches in the order of their numbers instead of the order of completion."""

    def __init__(self, data_loader: NumberedLoader, *args: Any, **kwargs: Any) -> None:
        super().__init__(data_loader, *args, **kwargs)
        self._due = data_loader.draws.first
        self._early: dict[int, dict[str, Any]] = {}

    def __next__(self) -> dict[str, Any]:
        while self._due not in self._early:
            batch = super().__next__()
            self._early[batch["number"]] = batch
        self._due += 1
        return self._early.pop(self._due - 1)
