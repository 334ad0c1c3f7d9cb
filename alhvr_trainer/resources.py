"""The folders that ship with the package: inside it when installed, beside it in a checkout."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

_PACKAGE = Path(__file__).resolve().parent
SCRIPTS_NAME = "alhvr_bundle_scripts"  # not "scripts": bundles of others have a package of that name


def _shipped(name: str) -> Path:
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def plans_folder() -> Path:
    """Ready plans (``plans/*.json``)."""
    return _shipped("plans")


def bundle_folder() -> Path:
    """Source of the exported MONAI bundles."""
    return _shipped("bundle")


def bundle_script(name: str) -> ModuleType:
    """A module of the package ``scripts`` of the exported bundles, which runs without this package.

    Example:
        >>> bundle_script("checksums").CHECKSUMS_FILE
        'checksums.sha256'
    """
    if SCRIPTS_NAME not in sys.modules:
        folder = bundle_folder() / "scripts"
        spec = spec_from_file_location(SCRIPTS_NAME, folder / "__init__.py", submodule_search_locations=[str(folder)])
        assert spec is not None and spec.loader is not None
        sys.modules[SCRIPTS_NAME] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[SCRIPTS_NAME])
    return import_module(f"{SCRIPTS_NAME}.{name}")


def ext_trainer_folder() -> Path:
    """Folder for nnU-Net's ``nnUNet_extTrainer``: it holds nothing but one shim module."""
    return _PACKAGE / "ext_trainer"
