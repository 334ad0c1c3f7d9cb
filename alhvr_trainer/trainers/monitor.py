"""What a training records about each epoch: the history, its line in the log, warnings of collapse, and the plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.collate_outputs import collate_outputs

from alhvr_trainer.config.names import SETTINGS_KEY
from alhvr_trainer.trainers.collapse import collapse_warnings, grace_epochs
from alhvr_trainer.trainers.history import History, HistoryKeys, foreground_names, summary_line
from alhvr_trainer.trainers.history_plot import Panels, all_panels, plot_history


class Monitor:
    """Epoch means of what the training steps return.

    Args:
        trainer: a semi-supervised one; says which losses, terms and classes there are.
    """

    history: History

    def __init__(self, trainer: Any) -> None:
        self.class_names = foreground_names(trainer.dataset_json["labels"], trainer.label_manager.has_regions)
        classes = tuple(self.class_names)
        self.keys = HistoryKeys(trainer.supervised, trainer.terms, trainer.observed, trainer.co_trained, classes)
        self.panels: Panels = all_panels(self.keys, trainer.panels)
        self.history = {key: [] for key in self.keys.all()}

    def record(self, outputs: list[dict[str, float]], epoch: int, loggers: list[Any]) -> str:
        """Add an epoch to the history and to nnU-Net's other loggers (Weights & Biases); return its line for the log.

        Args:
            outputs: what each training step returned.
            epoch: its number.
            loggers: nnU-Net's, if any is switched on.
        """
        collated = collate_outputs(outputs)
        for key, values in self.history.items():
            values.append(float(np.mean(collated[key])))
            for logger in loggers:
                logger.log(f"{SETTINGS_KEY}/{key}", values[-1], epoch)
        return summary_line(self.history, self.class_names)

    def warnings(self, num_epochs: int) -> list[str]:
        """Signs of collapse in the last epochs of a training of this length."""
        return collapse_warnings(self.history, self.class_names, self.keys, grace_epochs(num_epochs))

    def plot(self, folder: str | Path, warnings: list[str]) -> Path:
        """Write the curves, with the warnings above them, into the fold's folder."""
        return plot_history(self.history, folder, self.panels, self.class_names, warnings)

    def resume(self, history: History, epochs: int) -> None:
        """Go on from a checkpoint's history; those of version 0.1.0 held fewer values."""
        unknown = [float("nan")] * epochs
        self.history = {key: list(history.get(key, unknown)) for key in self.keys.all()}
