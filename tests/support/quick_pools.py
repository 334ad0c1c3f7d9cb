"""nnU-Net's pools without the seconds that each of their processes spends on importing nnU-Net.

nnU-Net spawns processes: each starts an interpreter and imports torch and nnU-Net, about 3 s of CPU, and a tiny
training with its validation and a prediction spawns a dozen. Here they are forked from a server instead, a process
that was spawned once, imported the modules and did nothing else: the same clean start. Tests that call nnU-Net's and
our commands in processes of their own are not touched by this and run with spawned pools, as users do.
"""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.context import BaseContext, ForkServerContext, ForkServerProcess
from typing import Any

MODULES = [
    "alhvr_trainer.commands.uncertainty_maps",
    "nnunetv2.evaluation.evaluate_predictions",
    "nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor",
    "nnunetv2.inference.data_iterators",
    "nnunetv2.inference.export_prediction",
    "nnunetv2.preprocessing.preprocessors.default_preprocessor",
]
"""What the functions that run in nnU-Net's pools need."""


class _Process(ForkServerProcess):
    """With the environment variables of the process that starts it, not of the server."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._environment = dict(os.environ)

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self._environment)
        super().run()


class _Context(ForkServerContext):
    Process = _Process  # type: ignore[assignment]


def share_imports() -> None:
    """From here on ``multiprocessing.get_context("spawn")`` forks from the server, on systems that have it."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return
    stock = multiprocessing.get_context
    context = _Context()
    context.set_forkserver_preload(MODULES)

    def get_context(method: str | None = None) -> BaseContext:
        return context if method == "spawn" else stock(method)

    multiprocessing.get_context = get_context  # type: ignore[assignment]
