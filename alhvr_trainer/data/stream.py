"""The unlabeled cases that a training draws from: found, checked, preprocessed where missing, opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class, nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from alhvr_trainer.data.dataset import Dataset, Fold
from alhvr_trainer.data.preprocessing import missing_cases, preprocess_unlabeled, unlabeled_folder
from alhvr_trainer.data.splits import SPLITS_FILE, is_in_file
from alhvr_trainer.data.workers import default_processes
from alhvr_trainer.errors import InputError


def labeled_fold(
    dataset: Dataset, number: int | str, train: list[str], validation: list[str], log: Callable[[str], None]
) -> Fold:
    """The fold of nnU-Net's split, without hidden cases if ``splits_final.json`` does not hold it.

    For fold "all", and for folds beyond the file, nnU-Net takes every preprocessed case, including those whose labels
    training must not see. Folds in the file list their training cases.

    Args:
        dataset: of the training.
        number: of the fold.
        train, validation: as nnU-Net's ``do_split`` gives them.
        log: gets a line if cases stay hidden.

    Raises:
        InputError: no labeled case is left for training or validation.
    """
    fold = dataset.fold(number, train, validation)
    hidden = set() if is_in_file(dataset.splits, number) else set(fold.hidden)
    if not hidden:
        return fold
    kept = {
        name: [case for case in cases if case not in hidden]
        for name, cases in (("training", train), ("validation", validation))
    }
    for name, cases in kept.items():
        if not cases:
            raise InputError(
                f"fold {number} is not in {SPLITS_FILE}, and nnU-Net's split of it holds hidden cases alone for {name};"
                f" train one of the folds 0 to {len(dataset.splits) - 1}"
            )
    log(f"ALHVR: {len(hidden)} cases stay unlabeled: no fold of {SPLITS_FILE} trains on them")
    return dataset.fold(number, kept["training"], kept["validation"])


def unlabeled_dataset(
    fold: Fold,
    plans: PlansManager,
    configuration: ConfigurationManager,
    labeled_folder: str,
    log: Callable[[str], None],
    previous_stage_folder: str | None = None,
) -> nnUNetDatasetBlosc2:
    """nnU-Net data set of the fold's unlabeled cases; preprocesses what is missing, and says so.

    Args:
        fold: with its labeled cases.
        plans: nnU-Net's, of the training.
        configuration: of the plans; the cases are preprocessed for it.
        labeled_folder: nnU-Net's folder of preprocessed labeled cases.
        log: gets a line on what was found and done.
        previous_stage_folder: in a cascade, the segmentations of the previous stage.

    Raises:
        InputError: no unlabeled case, one that is also in train or val, or an image that cannot be used.
    """
    dataset = fold.dataset
    folder = unlabeled_folder(str(Path(dataset.preprocessed) / configuration.data_identifier))
    if dataset.raw is None:
        cases = _preprocessed_cases(fold, folder, labeled_folder)
        log(f"ALHVR: {len(cases)} unlabeled cases, from {folder} (the raw data are not here)")
        return nnUNetDatasetBlosc2(folder, cases, previous_stage_folder)
    files = fold.unlabeled
    missing = missing_cases(folder, files, plans, configuration)
    if missing:
        log(f"ALHVR: preprocessing {len(missing)} unlabeled cases into {folder}")
        cases_to_do = {case: files[case] for case in missing}
        preprocess_unlabeled(cases_to_do, plans, configuration, dataset.dataset_json, folder, default_processes())
    log(f"ALHVR: {len(files)} unlabeled cases")
    return nnUNetDatasetBlosc2(folder, sorted(files), previous_stage_folder)


def _preprocessed_cases(fold: Fold, folder: str, labeled_folder: str) -> list[str]:
    """Without the raw data (a cluster that got preprocessed data only): what lies preprocessed, under the same rules.

    The folder also holds hidden cases of other folds; those have a labeled twin in nnU-Net's own folder.
    """
    present = set(nnUNetDatasetBlosc2.get_identifiers(folder)) if Path(folder).is_dir() else set()
    labeled = set(infer_dataset_class(labeled_folder).get_identifiers(labeled_folder))
    cases = sorted((present - labeled) | set(fold.hidden))
    problems = {
        f"are listed in {SPLITS_FILE} but not preprocessed": set(cases) - present,
        "are also training or validation cases": set(cases) & {*fold.train, *fold.validation},
    }
    for problem, names in problems.items():
        if names:
            raise InputError(f"unlabeled cases {', '.join(sorted(names))} {problem} (folder {folder})")
    if not cases:
        raise InputError(f"no unlabeled case: {folder} is empty and the raw data are not here (nnUNet_raw)")
    return cases


def evenly(names: Sequence[str], count: int) -> list[str]:
    """As many names, evenly spread over all of them: a fixed rule instead of a choice.

    Example:
        >>> evenly("abcde", 3), evenly("ab", 3)
        (['a', 'c', 'e'], ['a', 'b'])
    """
    if count >= len(names) or count < 1:
        return list(names) if count else []
    steps = max(1, count - 1)
    return [names[round(number * (len(names) - 1) / steps)] for number in range(count)]
