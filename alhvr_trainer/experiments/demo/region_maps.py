"""The regions of ALHVR on unlabeled scans, computed from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from alhvr_trainer.config.names import SETTINGS_KEY
from alhvr_trainer.config.plans import build_network
from alhvr_trainer.config.settings import settings_from_plans
from alhvr_trainer.experiments.demo.figures import REGIONS
from alhvr_trainer.losses import FeaturePerturbation, alhvr_terms
from alhvr_trainer.losses.regions import paper_proportion
from alhvr_trainer.trainers.alhvr import ALHVRSettings
from alhvr_trainer.trainers.two_passes import TwoPass

PERTURBATION_SEED = 0


def middle_slices(folder: Path, count: int) -> tuple[np.ndarray, list[str]]:
    """Middle slices (count, channels, rows, columns) of the first preprocessed cases, and their names."""
    dataset = nnUNetDatasetBlosc2(str(folder))
    names = sorted(dataset.identifiers)[:count]
    volumes = [dataset.load_case(name)[0][:] for name in names]
    return np.stack([volume[:, volume.shape[1] // 2] for volume in volumes]), names


def regions_of(checkpoint: dict[str, Any], slices: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
    """What a training step would make of these slices as its unlabeled batch, without augmentation.

    Args:
        checkpoint: written by ``ALHVRTrainer``.
        slices: (U, channels, rows, columns), preprocessed.

    Returns:
        Region -> (U, rows, columns) bool, and gamma.
    """
    arguments = checkpoint["init_args"]
    plans = PlansManager(arguments["plans"])
    configuration = plans.get_configuration(arguments["configuration"])
    settings = settings_from_plans(configuration.configuration, ALHVRSettings)
    data, valid = _padded(slices, configuration.pool_op_kernel_sizes)
    inputs: list[torch.Tensor] = []
    both = checkpoint["network_weights"], checkpoint[SETTINGS_KEY]["network_b_weights"]
    for offset, weights in enumerate(both):
        network = build_network(plans, arguments["configuration"], arguments["dataset_json"])
        network.load_state_dict(weights)
        perturb = FeaturePerturbation(PERTURBATION_SEED + offset, torch.device("cpu"))
        with torch.no_grad():
            _, passes = TwoPass(network, settings.feature_stage, settings.feature_tap)(data, 0, perturb)
        inputs += passes
    beta = settings.threshold_proportion or paper_proportion(len(configuration.patch_size))
    terms = alhvr_terms(*inputs, threshold_proportion=beta, valid=valid)
    rows, columns = slices.shape[2:]
    maps = {name: getattr(terms, name)[:, :rows, :columns].numpy() for name in REGIONS}
    return maps, float(terms.gamma)


def _padded(slices: np.ndarray, strides: list) -> tuple[torch.Tensor, torch.Tensor]:
    """Slices padded so that every pooling of the network comes out even, and the mask of what is image."""
    step = np.prod(np.array(strides), axis=0)
    missing = [int(-size % factor) for size, factor in zip(slices.shape[2:], step, strict=True)]
    data = np.pad(slices, [(0, 0), (0, 0), (0, missing[0]), (0, missing[1])])
    valid = torch.zeros((len(data), *data.shape[2:]), dtype=torch.bool)
    valid[:, : slices.shape[2], : slices.shape[3]] = True
    return torch.from_numpy(data).float(), valid
