"""``alhvr predict_next_stage`` as a Python function."""

from __future__ import annotations

from pathlib import Path

import torch

from alhvr_trainer.compatibility import nnunet_folder
from alhvr_trainer.errors import InputError
from alhvr_trainer.export.models import find_model, parse_folds
from alhvr_trainer.methods.variants import trainer_named
from alhvr_trainer.settings import PLANS_NAME, TRAINER_NAME
from alhvr_trainer.training.cascade import save_next_stage
from alhvr_trainer.unlabeled.dataset import load_dataset_json


def predict_next_stage(
    dataset: int | str,
    configuration: str = "3d_lowres",
    fold: int | str = 0,
    plans: str = PLANS_NAME,
    trainer: str = TRAINER_NAME,
    device: str = "cuda",
) -> None:
    """Segment the unlabelled cases of a fold for the next stage of the cascade.

    A training does this at its end. Run it when unlabelled cases were added later, or files got lost.

    Args:
        dataset: id or name.
        configuration: the trained stage.
        fold: number of the fold, or "all".
        plans: plans identifier.
        trainer: name of the trainer.
        device: "cuda", "cpu" or "mps".

    Raises:
        InputError: no finished training of that name, several folds, no next stage, no such device, or no unlabelled
            case.

    Example:
        alhvr predict_next_stage -d 27 -c 3d_lowres -f 0
    """
    if len(parse_folds(fold)) > 1:
        raise InputError(f"fold is {fold!r}; name one: every fold predicts its own unlabelled cases")
    model = find_model(dataset, configuration, fold, plans, trainer)
    if not model.configuration_manager.next_stage_names:
        raise InputError(f'{configuration} of {plans} has no "next_stage": only the first stage of a cascade has one')
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("there is no CUDA device here: use --device cpu")
    plans_of_training = {**model.plans, "continue_training": True}  # nnU-Net then keeps the folder as it is
    dataset_json = load_dataset_json(str(Path(nnunet_folder("nnUNet_preprocessed")) / model.dataset))
    number = model.folds[0]
    trained = trainer_named(trainer)(plans_of_training, configuration, number, dataset_json, torch.device(device))
    trained.load_checkpoint(str(model.checkpoint_path(number)))
    save_next_stage(trained)
