"""ALHVR for nnU-Net: semi-supervised medical image segmentation with nnU-Net v2 and MONAI bundles.

Importing the package is cheap; what needs torch or nnU-Net is imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["ALHVRPlanner", "ALHVRTrainer", "InputError", "__version__", "alhvr_channel_terms", "alhvr_terms"]

_HOMES = {
    "ALHVRPlanner": "alhvr_trainer.planning.planner",
    "ALHVRTrainer": "alhvr_trainer.methods.alhvr.trainer",
    "InputError": "alhvr_trainer.errors",
    "alhvr_channel_terms": "alhvr_trainer.methods.alhvr.channels",
    "alhvr_terms": "alhvr_trainer.methods.alhvr.terms",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
