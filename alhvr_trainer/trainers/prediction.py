"""Predictions of preprocessed cases during training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from alhvr_trainer.data.foreground import FOLDER, PredictedForeground, foreground_voxels
from alhvr_trainer.trainers.parallel import barrier, get_rank, get_world_size


class Predict(Protocol):
    """What :func:`predicting` gives."""

    def __call__(self, cases: nnUNetDatasetBlosc2, case: str) -> tuple[Tensor, dict[str, Any]]:
        """Logits (C, *S) on the CPU, on the voxels of the preprocessed case, and the properties of the case."""


@contextmanager
def predicting(trainer: nnUNetTrainer, mirroring: bool) -> Iterator[Predict]:
    """Let ``trainer.network`` predict whole cases inside the context, and put it back into training mode afterwards.

    Args:
        trainer: of the network.
        mirroring: whether to average over nnU-Net's mirrored copies.
    """
    predictor = nnUNetPredictor(
        use_mirroring=mirroring,
        perform_everything_on_device=trainer.device.type == "cuda",
        device=trainer.device,
        allow_tqdm=False,
    )
    # DistributedDataParallel would wait for all ranks to predict alike: it shares the buffers of batch normalization
    network = trainer.network
    predictor.manual_initialization(
        network.module if isinstance(network, DistributedDataParallel) else network,
        trainer.plans_manager,
        trainer.configuration_manager,
        None,
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )

    def predict(cases: nnUNetDatasetBlosc2, case: str) -> tuple[Tensor, dict[str, Any]]:
        data, _, previous, properties = cases.load_case(case)
        image = data[:]
        if previous is not None:
            labels = trainer.label_manager.foreground_labels
            image = np.vstack((image, convert_labelmap_to_one_hot(previous[:], labels, output_dtype=image.dtype)))
        return predictor.predict_sliding_window_return_logits(torch.from_numpy(image)).cpu(), properties

    training = trainer.network.training
    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    try:
        yield predict
    finally:
        trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
        trainer.network.train(training)


def predicted_foreground(trainer: Any, first: int) -> PredictedForeground | None:
    """The predicted foreground around which unlabeled patches are laid; None if the settings ask for none.

    Args:
        trainer: a semi-supervised one.
        first: number of the loader's first batch.
    """
    if not trainer.settings.unlabeled_foreground:
        return None
    folder = Path(trainer.output_folder) / FOLDER
    foreground = PredictedForeground(folder, trainer.num_epochs, trainer.num_iterations_per_epoch, first)
    if get_rank() == 0:
        foreground.forget_from(trainer.current_epoch)
    barrier()
    return foreground


def update_foreground(trainer: Any) -> None:
    """Predict the unlabeled cases, each rank its share, if batches of this epoch need predictions not yet made."""
    foreground = trainer.data.foreground if trainer.data is not None else None
    if foreground is None or not foreground.is_missing(trainer.current_epoch):
        return
    folder, cases = foreground.folder_of(trainer.current_epoch), trainer.data.unlabeled
    unfinished = folder.with_suffix(".unfinished")
    unfinished.mkdir(parents=True, exist_ok=True)
    with trainer.acting_on(trainer.predicts_with), predicting(trainer, mirroring=False) as predict:
        for case in cases.identifiers[get_rank() :: get_world_size()]:
            voxels: dict[str, Any] = foreground_voxels(predict(cases, case)[0], trainer.label_manager)
            np.savez(unfinished / f"{case}.npz", **voxels)
    barrier()
    if get_rank() == 0:
        unfinished.rename(folder)
    barrier()
    trainer.print_to_log_file(f"ALHVR: looked for foreground in {len(cases.identifiers)} unlabeled cases")
