"""Make nnU-Net's own commands find ALHVR: ``alhvr link``, ``alhvr unlink``, ``alhvr trainer_path``.

nnU-Net looks for trainers and planners by name, with ``hasattr``, in all modules below two of its folders.
So one small module in each, a copy of ``ext_trainer/alhvr.py``, is enough; it imports ALHVR only when asked
for one of its names.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from alhvr_trainer.commands.exception_hook import show_input_errors_in_one_line
from alhvr_trainer.compatibility import reads_external_trainers
from alhvr_trainer.config.files import replacing
from alhvr_trainer.errors import InputError
from alhvr_trainer.resources import ext_trainer_folder

SHIM_NAME = "alhvr_link.py"
SHIM_FOLDERS = ("training/nnUNetTrainer", "experiment_planning/experiment_planners")
EXTERNAL_TRAINERS = "nnUNet_extTrainer"
NO_EXTERNAL_TRAINERS = (
    "the installed nnU-Net does not read nnUNet_extTrainer; use alhvr link, or update it: nnunetv2>=2.8"
)


def link() -> list[Path]:
    """Make nnU-Net's own commands find ALHVR's trainers and planner.

    Writes one small module, ``alhvr_link.py``, into two folders of the installed nnU-Net. Safe to repeat;
    repeat it after reinstalling nnU-Net. ``alhvr unlink`` removes the modules again.

    Returns:
        The files written.

    Raises:
        InputError: nnU-Net is not installed or not writable, or a file of that name is not ours.

    Example:
        alhvr link
        nnUNetv2_train 27 2d 0 -tr ALHVRTrainer -p ALHVRPlans
    """
    files = _shim_files()
    for file in files:
        try:
            with replacing(file) as part:  # a training that starts meanwhile must not read half a module
                part.write_text(_shim_source(), encoding="utf-8")
        except OSError as error:
            remedy = "install nnU-Net where you may write, or version 2.8 or newer, which needs no linking"
            if reads_external_trainers(_package()):
                remedy = f'leave nnU-Net as it is and use instead: export {EXTERNAL_TRAINERS}="$(alhvr trainer_path)"'
            raise InputError(f"cannot write into {file.parent} ({error.strerror}); {remedy}") from error
        print(f"linked: {file}")
    return files


def unlink() -> list[Path]:
    """Take ``alhvr link`` back: remove its modules from the installed nnU-Net. Safe to repeat.

    Returns:
        The files removed.

    Raises:
        InputError: nnU-Net is not installed or not writable, or a file of that name is not ours.

    Example:
        alhvr unlink
    """
    files = [file for file in _shim_files() if file.exists()]
    for file in files:
        try:
            file.unlink()
        except OSError as error:
            raise InputError(f"cannot remove {file}: {error.strerror}; remove it by hand") from error
        print(f"removed: {file}")
    if not files:
        print("nothing to remove: nnU-Net is not linked")
    return files


def trainer_path() -> Path:
    """The folder for ``nnUNet_extTrainer``, for those who do not want to touch their nnU-Net installation.

    nnU-Net's commands then find the trainers; the planner is found by ``alhvr plan_and_preprocess`` alone.

    Raises:
        InputError: nnU-Net is not installed, or is older than 2.8 and does not read that variable.

    Example:
        export nnUNet_extTrainer="$(alhvr trainer_path)"
    """
    if not reads_external_trainers(_package()):
        raise InputError(NO_EXTERNAL_TRAINERS)
    return ext_trainer_folder()


def check_nnunet_finds_us() -> None:
    """nnU-Net's commands can find ALHVR's trainers, given the right ``nnUNet_extTrainer``.

    Raises:
        InputError: nnU-Net is not installed, or does not read that variable and is not linked.
    """
    if not reads_external_trainers(_package()) and not all(file.exists() for file in _shim_files()):
        raise InputError(NO_EXTERNAL_TRAINERS)


def let_nnunet_find_us() -> None:
    """nnU-Net in this process finds ALHVR's trainers, and those of the user's ``nnUNet_extTrainer`` as before.

    Raises:
        InputError: as :func:`check_nnunet_finds_us`.
    """
    check_nnunet_finds_us()
    folders = [*os.environ.get(EXTERNAL_TRAINERS, "").split(os.pathsep), str(ext_trainer_folder())]
    os.environ[EXTERNAL_TRAINERS] = os.pathsep.join(dict.fromkeys(filter(None, folders)))


def class_named(name: str) -> type:
    """The trainer or planner called ``name``.

    Raises:
        AttributeError: there is none (what nnU-Net's look-up expects).

    Example:
        >>> class_named("ALHVRTrainer_5epochs").__name__
        'ALHVRTrainer_5epochs'
    """
    show_input_errors_in_one_line()  # whoever looks us up by name is one of nnU-Net's commands
    if "Planner" in name:
        found: type = getattr(import_module("alhvr_trainer.planning.planner"), name)
        return found
    from alhvr_trainer.trainers.variants import trainer_named

    return trainer_named(name)


def _shim_source() -> str:
    return (ext_trainer_folder() / "alhvr.py").read_text(encoding="utf-8")


def _shim_files() -> list[Path]:
    """Where the copies go; InputError if another file has that name."""
    files = [_package() / folder / SHIM_NAME for folder in SHIM_FOLDERS]
    first_line = _shim_source().splitlines()[0].encode()
    for file in files:
        if file.exists() and not file.read_bytes().startswith(first_line):
            raise InputError(f"{file} was not written by alhvr link; move it away first")
    return files


def _package() -> Path:
    """Folder of the installed nnU-Net. Does not import it."""
    spec = find_spec("nnunetv2")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"nnunetv2 is not installed for {sys.executable}; install it first: pip install nnunetv2")
    return Path(next(iter(spec.submodule_search_locations)))
