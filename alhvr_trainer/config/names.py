"""Names that users meet: of trainer, planner, plans, folders and keys."""

from __future__ import annotations

TRAINER_NAME = "ALHVRTrainer"
PLANNER_NAME = "ALHVRPlanner"
PLANS_NAME = "ALHVRPlans"
SETTINGS_KEY = "alhvr"
UNLABELED_FOLDER = "imagesTr_unlabeled"
UNLABELED_KEY = "unlabeled"
UNLABELED_SUFFIX = "_unlabeled"
WEIGHTS_FILE = "checkpoint_final.pth"
UNCERTAINTY_FOLDER = "uncertainty"
"""Below the folder of the segmentations."""
PREDICTED_BY = "predicted_by"
"""Key of a case's scores: the model's origin."""
JOURNAL = ".move_labeled.json"
"""In the raw dataset while ``alhvr move_labeled`` moves images."""
