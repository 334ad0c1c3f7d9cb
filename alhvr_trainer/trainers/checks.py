"""What must hold before a training starts, and in each of its steps; each failure is one clear line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from alhvr_trainer.config.files import read_object
from alhvr_trainer.config.names import PLANNER_NAME, SETTINGS_KEY
from alhvr_trainer.data.dataset import Dataset
from alhvr_trainer.data.fingerprint import FINGERPRINT_FILE, LABELED_CASES
from alhvr_trainer.data.splits import NNUNET_FOLDS, SPLITS_FILE, hidden_cases, is_in_file, split_for_few_cases
from alhvr_trainer.errors import InputError
from alhvr_trainer.trainers.parallel import gather


def check_plans_fit_dataset(trainer: nnUNetTrainer) -> None:
    """The plans were made for the dataset whose ``dataset.json`` the trainer got.

    Raises:
        InputError: the plans name another dataset, or it is not preprocessed.
    """
    plans = trainer.plans_manager
    theirs = Path(trainer.preprocessed_dataset_folder_base) / "dataset.json"
    if not theirs.is_file() or load_json(str(theirs)) != trainer.dataset_json:
        raise InputError(
            f'the plans "{plans.plans_name}" were made for another dataset: their "dataset_name" is '
            f"{plans.dataset_name}, whose dataset.json differs from the one of the dataset that you train on; plan "
            "again with alhvr plan_and_preprocess, or use nnUNetv2_move_plans_between_datasets"
        )
    if not Path(trainer.preprocessed_dataset_folder).is_dir():
        raise InputError(
            f"{trainer.preprocessed_dataset_folder} does not exist: preprocess first with alhvr plan_and_preprocess "
            f"-d {plans.dataset_name} -c {trainer.configuration_name} (or nnUNetv2_preprocess for stock plans)"
        )


def check_split(dataset: Dataset, fold: int | str, present: list[str]) -> None:
    """The fold's training and validation cases are preprocessed; nnU-Net would notice only in the middle of training.

    Args:
        dataset: of the training.
        fold: its number, or "all".
        present: preprocessed labeled cases.

    Raises:
        InputError: ``splits_final.json`` has the wrong form, or names a case that is not there.
    """
    splits = dataset.splits or split_for_few_cases(present) or []
    if not is_in_file(splits, fold):
        if fold != "all" and len(present) < NNUNET_FOLDS:
            raise InputError(
                f"there is no fold {fold}: with {len(present)} labeled cases the folds are "
                f"{', '.join(map(str, range(len(splits))))}"
            )
        return
    for key in ("train", "val"):
        missing = sorted(set(splits[int(fold)][key]) - {*present})
        if missing or not splits[int(fold)][key]:
            found = f'names "{missing[0]}", which is not preprocessed' if missing else "is empty"
            raise InputError(f'"{key}" of fold {fold} in {Path(dataset.preprocessed) / SPLITS_FILE} {found}')


def preprocessed_cases(trainer: nnUNetTrainer) -> list[str]:
    """nnU-Net's own, labeled cases of the configuration."""
    folder = trainer.preprocessed_dataset_folder
    return sorted(infer_dataset_class(folder).get_identifiers(folder))


def hidden_intensities(dataset: Dataset, plans: dict[str, Any]) -> str | None:
    """A warning if the plans hold foreground intensities of cases whose labels training must not see, else None.

    nnU-Net's planner takes them from every case of ``imagesTr``; ours leaves out those hidden when it ran.
    """
    file, planner = Path(dataset.preprocessed) / FINGERPRINT_FILE, plans.get("experiment_planner_used")
    hidden = set(hidden_cases(dataset.splits, "all"))
    if not hidden:  # the file holds every unlabeled case
        return None
    fingerprint = read_object(file) if file.is_file() else {}
    seen = hidden if not str(planner).startswith(PLANNER_NAME) else hidden & set(fingerprint.get(LABELED_CASES, []))
    if not seen:
        return None
    return (
        f"the plans {plans['plans_name']} hold foreground intensities of {len(seen)} cases whose labels are hidden "
        f"(made by {planner}); alhvr plan_and_preprocess -d {plans['dataset_name']} plans without them"
    )


def check_batch_fits_ranks(labeled: int, unlabeled: int, ranks: int) -> None:
    """Every rank (GPU) gets a labeled and an unlabeled sample.

    Raises:
        InputError: more ranks than labeled or unlabeled samples in a batch.
    """
    if min(labeled, unlabeled) < ranks:
        raise InputError(
            f"a batch of {labeled} labeled + {unlabeled} unlabeled samples cannot be spread over {ranks} processes: "
            f'start at most {min(labeled, unlabeled)}, or raise "batch_size" in the plans (and, if it is set, '
            f'"{SETTINGS_KEY}.unlabeled_batch_size")'
        )


def stop_on_bad_numbers(values: Mapping[str, float], cases: list[str], epoch: int, step: int) -> None:
    """A NaN or Inf stops training before the optimizers see it; the last checkpoint stays as it is.

    Args:
        values: of the whole batch, so the same on all ranks.
        cases: where this rank's samples come from.
        epoch, step: when, for the message.

    Raises:
        InputError: names the bad values and the cases of all ranks.
    """
    bad = [key for key, value in values.items() if not math.isfinite(value)]
    if bad:
        everywhere = ", ".join(case for of_rank in gather(cases) for case in of_rank)
        raise InputError(
            f"epoch {epoch}, iteration {step}: {', '.join(bad)} not finite, with cases {everywhere}; look at these "
            "images, or lower the learning rate"
        )
