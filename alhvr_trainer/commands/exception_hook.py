"""Lets bad input end nnU-Net's own commands with one line, as it ends ``alhvr``, instead of a traceback."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from alhvr_trainer.errors import InputError

_HOOK = "_of_alhvr_trainer"


def show_input_errors_in_one_line() -> None:
    """Let an :class:`InputError` that nobody catches end this process with its message alone. Safe to repeat.

    All other errors go to the previous hook. The traceback goes to the log file of the training.
    """
    before = sys.excepthook
    if hasattr(before, _HOOK):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        shown = _input_error(error)
        if shown is None:
            before(kind, error, trace)
            return
        print("alhvr:", *str(shown).splitlines(), file=sys.stderr)
        frames = [frame for frame, _ in traceback.walk_tb(trace)]
        trainers: list[Any] = [frame.f_locals.get("self") for frame in reversed(frames)]
        log_file = next((trainer.log_file for trainer in trainers if getattr(trainer, "log_file", None)), None)
        if log_file:
            with suppress(OSError), open(log_file, "a", encoding="utf-8") as log:
                traceback.print_exception(kind, error, trace, file=log)

    setattr(hook, _HOOK, True)
    sys.excepthook = hook


def _input_error(error: BaseException) -> InputError | None:
    """The error if it is ours; for missing plans, ours in place of nnU-Net's."""
    if isinstance(error, InputError):
        return error
    if isinstance(error, FileNotFoundError) and error.filename:
        from alhvr_trainer.compatibility import nnunet_folder_if_set
        from alhvr_trainer.config.lookup import no_such_plans

        file, folder = Path(os.fsdecode(error.filename)), nnunet_folder_if_set("nnUNet_preprocessed")
        if folder and file.suffix == ".json" and file.parent.parent == Path(folder):
            return no_such_plans(file)
    return None
