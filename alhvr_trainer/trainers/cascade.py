"""The cascade: segmentations of the previous stage, which the next stage takes as input, for unlabeled cases.

nnU-Net keeps those of labeled cases in ``<model>/predicted_next_stage/<next stage>``; each comes from the fold that
validates the case. Unlabeled cases are in no validation set, so every fold predicts its own, into
``<model>/fold_X/predicted_next_stage_unlabeled/<next stage>``, and the same fold of the next stage reads them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.export_prediction import resample_and_save
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from tqdm import tqdm

from alhvr_trainer.config.names import UNLABELED_SUFFIX
from alhvr_trainer.data.stream import unlabeled_dataset
from alhvr_trainer.errors import InputError
from alhvr_trainer.trainers.parallel import barrier, get_rank, get_world_size, rank_0_first
from alhvr_trainer.trainers.prediction import predicting

FOLDER = f"predicted_next_stage{UNLABELED_SUFFIX}"


def previous_stage_folder(trainer: nnUNetTrainer) -> str | None:
    """Where a cascade's trainer finds the segmentations of its unlabeled cases; None outside a cascade."""
    labeled = trainer.folder_with_segs_from_previous_stage
    if labeled is None:
        return None
    model = Path(labeled).parents[1]
    return str(model / f"fold_{trainer.fold}" / FOLDER / trainer.configuration_name)


def check_previous_stage(trainer: nnUNetTrainer, labeled: Iterable[str], unlabeled: Iterable[str]) -> None:
    """Every case has a segmentation of the previous stage.

    Raises:
        InputError: names the first that has none, and the command that makes it.
    """
    if not trainer.is_cascaded:
        return
    stage, plans = trainer.configuration_manager.previous_stage_name, trainer.plans_manager
    model = f"{plans.dataset_name} -c {stage} -p {plans.plans_name} -tr {type(trainer).__name__}"
    train = f"nnUNetv2_train {plans.dataset_name} {stage} FOLD -p {plans.plans_name} -tr {type(trainer).__name__}"
    remedies = {
        trainer.folder_with_segs_from_previous_stage: (
            labeled,
            f"it is predicted by the fold of {stage} that validates it: {train} (with --val if that is trained)",
        ),
        previous_stage_folder(trainer): (
            unlabeled,
            f"train fold {trainer.fold} of {stage}, or, if that is done: alhvr predict_next_stage -d {model} "
            f"-f {trainer.fold}",
        ),
    }
    for folder, (cases, remedy) in remedies.items():
        missing = [case for case in cases if not (Path(folder) / f"{case}.b2nd").is_file()]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise InputError(f'case "{missing[0]}"{more} has no segmentation of {stage} in {folder}: {remedy}')


def save_next_stage(trainer: Any) -> None:
    """Predict the fold's unlabeled cases with ``trainer.network`` for all next stages of the plans, if there are any.

    The segmentations are resampled to the voxels of the next stage, for which missing cases are preprocessed.
    """
    stages = trainer.configuration_manager.next_stage_names or []
    if not stages:
        return
    fold, plans = trainer.dataset.fold(trainer.fold, *trainer.do_split()), trainer.plans_manager
    labeled_folder, log = trainer.preprocessed_dataset_folder, trainer.print_to_log_file
    with rank_0_first():
        own = plans.get_configuration(trainer.configuration_name)
        cases = unlabeled_dataset(fold, plans, own, labeled_folder, log, previous_stage_folder(trainer))
        targets = {
            stage: unlabeled_dataset(fold, plans, plans.get_configuration(stage), labeled_folder, log)
            for stage in stages
        }
    threads = torch.get_num_threads()
    mine = cases.identifiers[get_rank() :: get_world_size()]
    with predicting(trainer, mirroring=True) as predict:
        for case in tqdm(mine, desc=f"Segmentations of unlabeled cases for {', '.join(stages)}"):
            logits, properties = predict(cases, case)
            for stage, target in targets.items():
                folder = Path(trainer.output_folder) / FOLDER / stage
                folder.mkdir(parents=True, exist_ok=True)
                resample_and_save(
                    logits,
                    target.load_case(case)[0].shape[1:],
                    str(folder / case),
                    trainer.plans_manager,
                    trainer.configuration_manager,
                    properties,
                    trainer.dataset_json,
                    threads,
                )
    barrier()
