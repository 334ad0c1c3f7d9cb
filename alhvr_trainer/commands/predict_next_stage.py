"""``alhvr predict_next_stage`` as a Python function."""

from __future__ import annotations

from pathlib import Path

from alhvr_trainer.config.names import TRAINER_NAME
from alhvr_trainer.devices import check_device
from alhvr_trainer.errors import InputError


def predict_next_stage(
    dataset: int | str,
    configuration: str = "3d_lowres",
    fold: int | str = 0,
    *,
    plans: str | None = None,
    trainer: str = TRAINER_NAME,
    device: str = "cuda",
) -> list[str]:
    """Segment the unlabeled cases of a fold for the next stage of the cascade.

    Training does this at its end. Run it if unlabeled cases were added later, or files were lost.

    Args:
        dataset: id or name.
        configuration: the trained stage.
        fold: number of the fold, or "all".
        plans: plans identifier; default: that of the only such model, else ALHVRPlans.
        trainer: name of the trainer.
        device: "cuda", "cpu" or "mps".

    Returns:
        The next stages, which can now be trained.

    Raises:
        InputError: no finished training of that name, several folds, no next stage, no such device, or no unlabeled
            case.

    Example:
        alhvr predict_next_stage -d 27 -c 3d_lowres -f 0
    """
    import torch

    from alhvr_trainer.compatibility import nnunet_folder
    from alhvr_trainer.data.dataset import load_dataset_json
    from alhvr_trainer.models import find_model, one_fold
    from alhvr_trainer.trainers.cascade import save_next_stage
    from alhvr_trainer.trainers.variants import trainer_named

    number = one_fold(fold, "every fold predicts its own unlabeled cases")
    model = find_model(dataset, configuration, number, plans, trainer)
    stages = model.configuration_manager.next_stage_names
    if not stages:
        raise InputError(
            f'{configuration} of {model.plans_name} has no "next_stage": only the first stage of a cascade has one'
        )
    check_device(device)
    plans_of_training = {**model.plans, "continue_training": True}  # nnU-Net then keeps the folder as it is
    dataset_json = load_dataset_json(str(Path(nnunet_folder("nnUNet_preprocessed")) / model.dataset))
    trained = trainer_named(trainer)(plans_of_training, configuration, number, dataset_json, torch.device(device))
    trained.load_checkpoint(str(model.checkpoint_path(number)))
    save_next_stage(trained)
    return list(stages)
