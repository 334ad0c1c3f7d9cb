"""The unlabelled cases that a training draws from: found, checked, preprocessed where missing, opened."""

from __future__ import annotations

from pathlib import Path

from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from alhvr_trainer.compatibility import nnunet_folder_if_set
from alhvr_trainer.errors import InputError
from alhvr_trainer.unlabeled.cases import load_splits, split_unlabeled_cases, unlabeled_cases_of_fold
from alhvr_trainer.unlabeled.preprocessing import missing_cases, preprocess_unlabeled, unlabeled_folder
from alhvr_trainer.unlabeled.workers import default_processes


def unlabeled_dataset(
    trainer: nnUNetTrainer,
    train_cases: list[str],
    validation_cases: list[str],
    previous_stage_folder: str | None = None,
    configuration_name: str | None = None,
) -> nnUNetDatasetBlosc2:
    """nnU-Net data set of the fold's unlabelled cases; preprocesses what is missing, and says so.

    Args:
        trainer: says which dataset, plans and fold.
        train_cases, validation_cases: labelled cases of the fold, as ``do_split`` gives them.
        previous_stage_folder: in a cascade, the segmentations of the previous stage.
        configuration_name: another configuration of the plans than the trainer's.

    Raises:
        InputError: no unlabelled case, one that is also in train or val, or an image that cannot be used.
    """
    configuration = trainer.plans_manager.get_configuration(configuration_name or trainer.configuration_name)
    folder = unlabeled_folder(str(Path(trainer.preprocessed_dataset_folder_base) / configuration.data_identifier))
    raw = nnunet_folder_if_set("nnUNet_raw")
    raw_folder = None if raw is None else str(Path(raw) / trainer.plans_manager.dataset_name)
    if raw_folder is None or not Path(raw_folder).is_dir():
        splits = load_splits(trainer.preprocessed_dataset_folder_base, trainer.preprocessed_dataset_folder_base)
        cases = _preprocessed_cases(trainer, folder, splits, train_cases, validation_cases)
        return nnUNetDatasetBlosc2(folder, cases, previous_stage_folder)
    splits = load_splits(raw_folder, trainer.preprocessed_dataset_folder_base)
    files = unlabeled_cases_of_fold(
        raw_folder, trainer.dataset_json, splits, trainer.fold, train_cases, validation_cases
    )
    missing = missing_cases(folder, files, trainer.plans_manager, configuration)
    if missing:
        trainer.print_to_log_file(f"ALHVR: preprocessing {len(missing)} unlabelled cases into {folder}")
        preprocess_unlabeled(
            {case: files[case] for case in missing},
            trainer.plans_manager,
            configuration,
            trainer.dataset_json,
            folder,
            default_processes(),
        )
    trainer.print_to_log_file(f"ALHVR: {len(files)} unlabelled cases")
    return nnUNetDatasetBlosc2(folder, sorted(files), previous_stage_folder)


def _preprocessed_cases(
    trainer: nnUNetTrainer, folder: str, splits: list[dict], train_cases: list[str], validation_cases: list[str]
) -> list[str]:
    """Without the raw data (a cluster that got preprocessed data only): what lies preprocessed, under the same rules.

    The folder also holds split-key cases of other folds; those have a labelled twin in nnU-Net's own folder.
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
            raise InputError(f"unlabelled cases {', '.join(sorted(names))} {problem} (folder {folder})")
    if not cases:
        raise InputError(f"no unlabelled case: {folder} is empty and the raw data are not here (nnUNet_raw)")
    trainer.print_to_log_file(f"ALHVR: {len(cases)} unlabelled cases, from {folder} (the raw data are not here)")
    return cases
