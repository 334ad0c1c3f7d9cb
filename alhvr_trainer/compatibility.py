"""What differs inside the supported releases of nnU-Net, 2.7 and 2.8; nothing else in the package asks for a release.

- nnU-Net's folders: 2.7 reads the environment once, when it is imported, into text or None; 2.8 has objects that
  read it each time.
- Trainers by name: 2.7 looks for them in nnU-Net alone, where ``alhvr link`` puts ours; 2.8 also in the folders
  named in ``nnUNet_extTrainer``.

The two are told apart by what they have, not by version numbers, which a copy of nnU-Net on the path need not carry.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from alhvr_trainer.errors import InputError


def nnunet_folder_if_set(variable: str) -> str | None:
    """The folder as nnU-Net sees it, so that we never look elsewhere than it does; None if it is not set.

    Args:
        variable: ``nnUNet_raw``, ``nnUNet_preprocessed`` or ``nnUNet_results``.
    """
    from nnunetv2 import paths  # here, for the quick commands do without nnU-Net

    value = getattr(paths, variable)
    folder: str | None = value if value is None or isinstance(value, str) else value.get()
    return folder or None


def nnunet_folder(variable: str) -> str:
    """The folder as nnU-Net sees it.

    Raises:
        InputError: the variable is not set, or leads to a file.
    """
    folder = nnunet_folder_if_set(variable)
    if folder is None:
        raise InputError(
            f"environment variable {variable} is not set; set it to nnU-Net's folder of that name "
            f"(export {variable}=/path/to/{variable})"
        )
    if os.path.isfile(folder):
        raise InputError(f"environment variable {variable} is {folder}, which is a file; set it to a folder")
    return folder


def require_nnunet_folders(*variables: str) -> None:
    """:func:`nnunet_folder` of each, for its error: before anything else is done."""
    for variable in variables:
        nnunet_folder(variable)


def trainer_class(name: str) -> type | None:
    """nnU-Net's own look-up of a trainer by its name; None if it finds none."""
    import nnunetv2

    (package,) = map(Path, nnunetv2.__path__)
    if reads_external_trainers(package):
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

        try:
            found: type | None = recursive_find_trainer_class_by_name(name)
        except RuntimeError:
            return None
        return found
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    folder = package / "training" / "nnUNetTrainer"
    found = recursive_find_python_class(str(folder), name, "nnunetv2.training.nnUNetTrainer")
    return found


def reads_external_trainers(package: Path) -> bool:
    """Whether the nnU-Net in this folder looks for trainers in ``nnUNet_extTrainer``. Imports nothing."""
    return (package / "utilities" / "find_objects.py").is_file()


@contextmanager
def replaced(module: ModuleType, **names: Any) -> Iterator[None]:
    """While the context is open, names in one of nnU-Net's modules mean our classes.

    For methods of nnU-Net that name the classes they build: all else that they set up stays in nnU-Net's hands.

    Raises:
        AttributeError: the module has no such name.
    """
    stock = {name: getattr(module, name) for name in names}
    vars(module).update(names)
    try:
        yield
    finally:
        vars(module).update(stock)
