"""nnU-Net as its commands see it, for tests with any of the supported releases."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import nnunetv2
import pytest
from nnunetv2 import paths

from alhvr_trainer.compatibility import reads_external_trainers

PACKAGE = Path(nnunetv2.__path__[0])
SUPPORT = Path(__file__).parent
"""For ``sys.path`` of processes that tests start."""

needs_external_trainers = pytest.mark.skipif(
    not reads_external_trainers(PACKAGE), reason="this nnU-Net does not read nnUNet_extTrainer"
)


def set_nnunet(monkeypatch: pytest.MonkeyPatch, **folders: Path | None) -> None:
    """Set nnU-Net's environment variables (None: unset), as if nnU-Net were started with them.

    nnU-Net 2.7 reads them when it is imported, and each of its modules keeps a copy: these are replaced as well.
    """
    for variable, folder in folders.items():
        value = None if folder is None else os.fspath(folder)
        if value is None:
            monkeypatch.delenv(variable)
        else:
            monkeypatch.setenv(variable, value)
        if not hasattr(getattr(paths, variable), "get"):
            for name, module in list(sys.modules.items()):
                if name.split(".")[0] == nnunetv2.__name__ and variable in vars(module):
                    monkeypatch.setattr(module, variable, value)


def find_trainer(name: str) -> type | None:
    """nnU-Net's own look-up of a trainer by its name; None if there is none."""
    if reads_external_trainers(PACKAGE):
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

        with suppress(RuntimeError):
            return recursive_find_trainer_class_by_name(name)
        return None
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    folder = PACKAGE / "training" / "nnUNetTrainer"
    return recursive_find_python_class(str(folder), name, "nnunetv2.training.nnUNetTrainer")
