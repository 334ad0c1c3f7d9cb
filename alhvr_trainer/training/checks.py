"""What must hold before a training starts; each failure is one clear line."""

from __future__ import annotations

from pathlib import Path

from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from alhvr_trainer.errors import InputError
from alhvr_trainer.settings import SETTINGS_KEY
from alhvr_trainer.unlabeled.cases import SPLITS_FILE, is_in_file, load_splits


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


def check_split(trainer: nnUNetTrainer) -> None:
    """The fold's training and validation cases are preprocessed; nnU-Net would find out in the midst of training.

    Raises:
        InputError: ``splits_final.json`` has the wrong form, or names a case that is not there.
    """
    folder = trainer.preprocessed_dataset_folder_base
    splits = load_splits(folder, folder)
    if not is_in_file(splits, trainer.fold):
        return
    present = set(
        infer_dataset_class(trainer.preprocessed_dataset_folder).get_identifiers(trainer.preprocessed_dataset_folder)
    )
    for key in ("train", "val"):
        missing = sorted(set(splits[int(trainer.fold)][key]) - present)
        if missing or not splits[int(trainer.fold)][key]:
            found = f'names "{missing[0]}", which is not preprocessed' if missing else "is empty"
            raise InputError(f'"{key}" of fold {trainer.fold} in {Path(folder) / SPLITS_FILE} {found}')


def check_batch_fits_ranks(labeled: int, unlabeled: int, ranks: int) -> None:
    """Every rank (GPU) gets a labelled and an unlabelled sample.

    Raises:
        InputError: more ranks than labelled or unlabelled samples in a batch.
    """
    if min(labeled, unlabeled) < ranks:
        raise InputError(
            f"a batch of {labeled} labelled + {unlabeled} unlabelled samples cannot be spread over {ranks} processes: "
            f'start at most {min(labeled, unlabeled)}, or raise "batch_size" in the plans (and, if it is set, '
            f'"{SETTINGS_KEY}.unlabeled_batch_size")'
        )
