"""Predictions of preprocessed cases in the course of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from torch import Tensor


class Predict(Protocol):
    """What :func:`predicting` gives."""

    def __call__(self, cases: nnUNetDatasetBlosc2, case: str) -> tuple[Tensor, dict[str, Any]]:
        """Logits (C, *S) on the CPU, on the voxels of the preprocessed case, and the properties of the case."""


@contextmanager
def predicting(trainer: nnUNetTrainer, mirroring: bool) -> Iterator[Predict]:
    """``trainer.network`` predicts whole cases while the context is open; then it trains on as before.

    Args:
        trainer: of the network.
        mirroring: whether to average over nnU-Net's mirrored copies.
    """
    predictor = nnUNetPredictor(
        use_mirroring=mirroring, perform_everything_on_device=True, device=trainer.device, allow_tqdm=False
    )
    predictor.manual_initialization(
        trainer.network,
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
