"""Names, defaults and ranges of the ``alhvr`` block in a plans file. Imports no torch: CLI, planner and tests share it.

The block stands in a configuration of nnU-Net's plans and is inherited like everything else there::

    "configurations": {"2d": {..., "alhvr": {"unlabeled_batch_size": 8, "threshold_proportion": 0.8}}}
"""

from __future__ import annotations

from alhvr_trainer.config.names import (
    PLANNER_NAME,
    PLANS_NAME,
    SETTINGS_KEY,
    TRAINER_NAME,
    UNLABELED_FOLDER,
    UNLABELED_KEY,
    UNLABELED_SUFFIX,
)
from alhvr_trainer.config.rules import Choice, Flag, Number, Words, setting
from alhvr_trainer.config.settings import (
    METHODS,
    REGIONS,
    THRESHOLD_PROPORTION_2D,
    THRESHOLD_PROPORTION_3D,
    ALHVRSettings,
    CPSSettings,
    FixMatchSettings,
    MCNetSettings,
    MeanTeacherSettings,
    Settings,
    UAMTSettings,
    threshold_proportion,
)
from alhvr_trainer.config.settings_in_plans import (
    set_training_length,
    settings_from_plans,
    split_batch,
    without_strangers,
)

__all__ = [
    "METHODS",
    "PLANNER_NAME",
    "PLANS_NAME",
    "REGIONS",
    "SETTINGS_KEY",
    "THRESHOLD_PROPORTION_2D",
    "THRESHOLD_PROPORTION_3D",
    "TRAINER_NAME",
    "UNLABELED_FOLDER",
    "UNLABELED_KEY",
    "UNLABELED_SUFFIX",
    "ALHVRSettings",
    "CPSSettings",
    "Choice",
    "FixMatchSettings",
    "Flag",
    "MCNetSettings",
    "MeanTeacherSettings",
    "Number",
    "Settings",
    "UAMTSettings",
    "Words",
    "set_training_length",
    "setting",
    "settings_from_plans",
    "split_batch",
    "threshold_proportion",
    "without_strangers",
]
