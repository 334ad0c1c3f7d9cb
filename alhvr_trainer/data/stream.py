"""The unlabeled cases that a training draws from: found, checked, preprocessed where missing, opened."""

from __future__ import annotations

from pathlib import Path

from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from alhvr_trainer.compatibility import nnunet_folder_if_set
from alhvr_trainer.data.cases import (
    SPLITS_FILE,
    is_in_file,
    load_splits,
    split_unlabeled_cases,
    unlabeled_cases_of_fold,
)
from alhvr_trainer.data.preprocessing import missing_cases, preprocess_unlabeled, unlabeled_folder
from alhvr_trainer.data.workers import default_processes
from alhvr_trainer.errors import InputError


def labeled_cases(
    trainer: nnUNetTrainer, train_cases: list[str], validation_cases: list[str]
) -> tuple[list[str], list[str]]:
    """nnU-Net's split of a fold, without hidden cases where the fold is not in ``splits_final.json``.

    For fold "all", and for folds beyond the file, nnU-Net takes every case that it finds preprocessed, so also those
    whose labels training must not see. Folds of the file say themselves what they train on.

    Args:
        trainer: says which dataset and fold.
        train_cases, validation_cases: as nnU-Net's ``do_split`` gives them.

    Raises:
        InputError: no labeled case is left for training or validation.
    """
    splits = _splits(trainer)
    hidden = set() if is_in_file(splits, trainer.fold) else set(split_unlabeled_cases(splits, trainer.fold))
    if not hidden:
        return train_cases, validation_cases
    train, validation = ([case for case in cases if case not in hidden] for cases in (train_cases, validation_cases))
    for name, cases in (("training", train), ("validation", validation)):
        if not cases:
            raise InputError(
                f"fold {trainer.fold} is not in {SPLITS_FILE}, and nnU-Net's split of it holds hidden cases alone for "
                f"{name}; train one of the folds 0 to {len(splits) - 1}"
            )
    trainer.print_to_log_file(f"ALHVR: {len(hidden)} cases stay unlabeled: no fold of {SPLITS_FILE} trains on them")
    return train, validation


def unlabeled_dataset(
    trainer: nnUNetTrainer,
    train_cases: list[str],
    validation_cases: list[str],
    previous_stage_folder: str | None = None,
    configuration_name: str | None = None,
) -> nnUNetDatasetBlosc2:
    """nnU-Net data set of the fold's unlabeled cases; preprocesses what is missing, and says so.

    Args:
        trainer: says which dataset, plans and fold.
        train_cases, validation_cases: labeled cases of the fold, as ``do_split`` gives them.
        previous_stage_folder: in a cascade, the segmentations of the previous stage.
        configuration_name: another configuration of the plans than the trainer's.

    Raises:
        InputError: no unlabeled case, one that is also in train or val, or an image that cannot be used.
    """
    configuration = trainer.plans_manager.get_configuration(configuration_name or trainer.configuration_name)
    folder = unlabeled_folder(str(Path(trainer.preprocessed_dataset_folder_base) / configuration.data_identifier))
    raw_folder, splits = _raw_folder(trainer), _splits(trainer)
    if raw_folder is None:
        cases = _preprocessed_cases(trainer, folder, splits, train_cases, validation_cases)
        return nnUNetDatasetBlosc2(folder, cases, previous_stage_folder)
    files = unlabeled_cases_of_fold(
        raw_folder, trainer.dataset_json, splits, trainer.fold, train_cases, validation_cases
    )
    missing = missing_cases(folder, files, trainer.plans_manager, configuration)
    if missing:
        trainer.print_to_log_file(f"ALHVR: preprocessing {len(missing)} unlabeled cases into {folder}")
        preprocess_unlabeled(
            {case: files[case] for case in missing},
            trainer.plans_manager,
            configuration,
            trainer.dataset_json,
            folder,
            default_processes(),
        )
    trainer.print_to_log_file(f"ALHVR: {len(files)} unlabeled cases")
    return nnUNetDatasetBlosc2(folder, sorted(files), previous_stage_folder)


def _raw_folder(trainer: nnUNetTrainer) -> str | None:
    """The raw dataset, or None on a machine that has preprocessed data only."""
    raw = nnunet_folder_if_set("nnUNet_raw")
    folder = None if raw is None else Path(raw) / trainer.plans_manager.dataset_name
    return str(folder) if folder is not None and folder.is_dir() else None


def _splits(trainer: nnUNetTrainer) -> list[dict]:
    preprocessed = trainer.preprocessed_dataset_folder_base
    return load_splits(_raw_folder(trainer) or preprocessed, preprocessed)


def _preprocessed_cases(
    trainer: nnUNetTrainer, folder: str, splits: list[dict], train_cases: list[str], validation_cases: list[str]
) -> list[str]:
    """Without the raw data (a cluster that got preprocessed data only): what lies preprocessed, under the same rules.

    The folder also holds split-key cases of other folds; those have a labeled twin in nnU-Net's own folder.
    """
    present = set(nnUNetDatasetBlosc2.get_identifiers(folder)) if Path(folder).is_dir() else set()
    labeled = set(trainer.dataset_class.get_identifiers(trainer.preprocessed_dataset_folder))
    cases = sorted((present - labeled) | set(split_unlabeled_cases(splits, trainer.fold)))
    problems = {
        "are listed in splits_final.json but not preprocessed": set(cases) - present,
        "are also training or validation cases": set(cases) & {*train_cases, *validation_cases},
    }
    for problem, names in problems.items():
        if names:
            raise InputError(f"unlabeled cases {', '.join(sorted(names))} {problem} (folder {folder})")
    if not cases:
        raise InputError(f"no unlabeled case: {folder} is empty and the raw data are not here (nnUNet_raw)")
    trainer.print_to_log_file(f"ALHVR: {len(cases)} unlabeled cases, from {folder} (the raw data are not here)")
    return cases
