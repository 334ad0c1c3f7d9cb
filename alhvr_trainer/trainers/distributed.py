"""DistributedTrainer: nnU-Net's trainer on any number of ranks."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainer_module
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import distributed as dist
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from alhvr_trainer.trainers.checkpoints import seed_everything
from alhvr_trainer.trainers.global_batch import global_batch_loss
from alhvr_trainer.trainers.ranks import rank


class DistributedTrainer(nnUNetTrainer):
    """nnU-Net's trainer on any number of ranks, GPUs (nccl) or CPUs (gloo), one or several machines.

    Rank 0 alone writes logs, checkpoints and plots; predictions of validation cases are written by the rank that made
    them, as in nnU-Net, so all machines need the same ``nnUNet_results``.
    """

    is_ddp: bool
    output_folder_base: str
    oversample_foreground_percent: float
    probabilistic_oversampling: bool
    seed: int | None = None

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's signature
    ):
        if rank() > 0:
            os.environ.update(nnUNet_wandb_enabled="0")  # each rank would start a run of its own
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.is_ddp:
            self.device = local_device(device)
            if self.device.type != "cuda":
                self.grad_scaler = None

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The ranks that share each batch; None in one process."""
        return dist.group.WORLD if self.is_ddp else None

    def initialize(self) -> None:
        with patch.object(trainer_module, "DDP", self.distributed):
            super().initialize()

    def distributed(self, network: nn.Module, device_ids: Any = None) -> nn.Module:
        """The network as nnU-Net expects it on several ranks; all start from rank 0's weights."""
        return DistributedDataParallel(network, device_ids=[self.device] if self.device.type == "cuda" else None)

    def _build_loss(self) -> nn.Module:
        loss = super()._build_loss()
        return global_batch_loss(loss, self.label_manager.ignore_label) if self.is_ddp else loss

    def _set_batch_size_and_oversample(self) -> None:
        """The plans' whole batch: nnU-Net's division over ranks knows one kind of sample."""
        distributed, self.is_ddp = self.is_ddp, False
        super()._set_batch_size_and_oversample()
        self.is_ddp = distributed

    def get_dataloaders(self):
        if self.is_ddp and self.seed is not None:
            seed_everything(self.seed + rank())  # so far the ranks drew alike
        return super().get_dataloaders()

    def on_train_start(self) -> None:
        with self._model_files_by_rank_0():
            super().on_train_start()

    @contextmanager
    def _model_files_by_rank_0(self) -> Iterator[None]:
        """nnU-Net's ranks all write plans.json and the like into one folder, at the same time."""
        if rank() == 0:
            yield
            return
        folder = self.output_folder_base
        with tempfile.TemporaryDirectory() as self.output_folder_base:
            yield
        self.output_folder_base = folder


def local_device(device: torch.device) -> torch.device:
    """This rank's device; torchrun's ``LOCAL_RANK`` counts the GPUs of each machine from 0."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank()))) if device.type == "cuda" else device


def unwrapped(network: nn.Module) -> nn.Module:
    """The network itself, out of nnU-Net's wrappers for several ranks and for ``torch.compile``."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    return network._orig_mod if isinstance(network, OptimizedModule) else network
