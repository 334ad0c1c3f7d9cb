"""The folders that ship with the package: inside it when installed, beside it in a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _shipped(name: str) -> Path:
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def plans_folder() -> Path:
    """Ready plans (``plans/*.json``)."""
    return _shipped("plans")


def bundle_folder() -> Path:
    """Source of the exported MONAI bundles."""
    return _shipped("bundle")


def ext_trainer_folder() -> Path:
    """Folder for nnU-Net's ``nnUNet_extTrainer``: it holds nothing but one shim module."""
    return _PACKAGE / "ext_trainer"
