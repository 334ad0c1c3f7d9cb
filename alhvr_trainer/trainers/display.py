"""Training progress on the screen."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

QUIET_SECONDS = 300.0
"""Without a terminal, a line is printed at least this often."""


class Display:
    """One line per epoch with the remaining time, and a progress bar in a terminal or an occasional line elsewhere.

    Args:
        epochs: of the whole training.
        steps: of each epoch.
        done: epochs that an earlier part of the training did.

    Example:
        >>> display = Display(epochs=2, steps=1, done=0)
        >>> display.step()
        >>> display.epoch("loss 0.5000")  # doctest: +ELLIPSIS
        epoch 1/2: loss 0.5000; 00:00, 00:00 left
    """

    def __init__(self, epochs: int, steps: int, done: int) -> None:
        self.epochs, self.steps = epochs, steps
        self.first = self.now = done * steps
        self.started = self.epoch_started = self.spoke = time.monotonic()
        self.bar = tqdm(
            total=epochs * steps,
            initial=self.first,
            desc=self._name(),
            unit="step",
            smoothing=0,  # the mean over all steps: the last step of an epoch appears to take as long as validation
            leave=False,
            disable=not sys.stdout.isatty(),
            file=sys.stdout,
        )

    def restart(self) -> None:
        """Time starts now: what came before the first step says nothing about the next ones."""
        self.started = self.epoch_started = self.spoke = time.monotonic()

    def _name(self) -> str:
        return f"epoch {min(self.now // self.steps + 1, self.epochs)}/{self.epochs}"

    def left(self) -> str:
        """Remaining time, extrapolated from the steps so far."""
        each = (time.monotonic() - self.started) / max(1, self.now - self.first)
        return str(tqdm.format_interval(each * (self.epochs * self.steps - self.now)))

    def step(self) -> None:
        """One more training step is done."""
        self.now += 1
        self.bar.update()
        if self.bar.disable and time.monotonic() - self.spoke > QUIET_SECONDS and self.now % self.steps:
            self._say(f"{self._name()}: step {self.now % self.steps} of {self.steps}, {self.left()} left")

    def epoch(self, words: str) -> None:
        """An epoch is done, validation included."""
        took = time.monotonic() - self.epoch_started
        number = -(-self.now // self.steps)
        self._say(f"epoch {number}/{self.epochs}: {words}; {tqdm.format_interval(took)}, {self.left()} left")
        self.bar.set_description(self._name(), refresh=False)
        self.epoch_started = time.monotonic()

    def _say(self, line: str) -> None:
        self.spoke = time.monotonic()
        with tqdm.external_write_mode():  # above the bar
            print(line, flush=True)

    def close(self) -> None:
        self.bar.close()
