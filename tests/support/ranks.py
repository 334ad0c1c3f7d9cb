"""What the processes of test_distributed.py run: ``python ranks.py FOLDER`` under torchrun, gloo on the CPU."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from data_builders import write_json
from literal_method import TERMS, draw
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.loss import dice
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import distributed as dist

from alhvr_trainer.losses import FeaturePerturbation, alhvr_channel_terms, alhvr_terms
from alhvr_trainer.trainers.parallel import barrier, gather, get_rank, get_world_size, share

METHOD_CASES: dict[str, dict[str, Any]] = {
    "2d": {},
    "3d": {"kind": "3d"},
    "official_ce_broadcast": {"official_ce_broadcast": True},
    "detached": {"detach_teacher": True},
    "channels": {"function": alhvr_channel_terms},
    "padding": {"padding": True},
    "all regions": {"dtct_regions": ("omega1", "omega2", "omega3"), "cgcpcl_regions": ("omega2", "omega3")},
}
SAMPLES = 5
"""More than the ranks, and never a multiple of their number."""


@contextmanager
def double_precision() -> Iterator[None]:
    """Networks, data, losses and terms in float64, nnU-Net's Dice included, which names float32 outright.

    Where rounding is a billion times smaller than in float32, a difference is a fault. In float32, sharpening and norms
    over few voxels magnify it, by how much depends on the processor.
    """
    torch.set_default_dtype(torch.float64)
    try:
        with patch.object(dice, "torch", _TorchWithoutFloat32()):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


class _TorchWithoutFloat32:
    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def method_results(name: str, group: dist.ProcessGroup | None) -> dict[str, torch.Tensor]:
    """Terms and gradients of the whole batch; this rank computes those of its samples."""
    options = dict(METHOD_CASES[name])
    function = options.pop("function", alhvr_terms)
    whole = [torch.cat([x.detach(), x.detach().roll(1, dims=1)])[:SAMPLES] for x in draw(options.pop("kind", "2d"))]
    if len(whole[0]) < SAMPLES:
        whole = [torch.cat([x, 1.1 * x.roll(1, dims=1)])[:SAMPLES] for x in whole]
    valid = None
    if options.pop("padding", False):
        valid = torch.ones(SAMPLES, *whole[0].shape[2:], dtype=torch.bool)
        valid[1, :5] = False
        valid[4, :, 3:] = False
    mine = slice(None)
    if group is not None:
        numbers = share(SAMPLES, get_rank(), get_world_size())
        mine = slice(numbers.start, numbers.stop)
    inputs = [x[mine].clone().requires_grad_() for x in whole]
    local_valid = None if valid is None or bool(valid[mine].all()) else valid[mine]
    terms = function(*inputs, valid=local_valid, process_group=group, **options)
    terms.total.backward()
    gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in inputs]
    result = {key: torch.stack(gather(getattr(terms, key).detach())).sum(0) for key in TERMS}
    result |= {f"gradient {i}": torch.cat(gather(gradient)) for i, gradient in enumerate(gradients)}
    return result | {"gamma": terms.gamma, "omega3": torch.cat(gather(terms.omega3))}


def make_batch(trainer: Any, seed: int = 0) -> dict[str, Any]:
    """A whole batch as the loader gives it: L labeled samples, then U others, all scales of deep supervision."""
    generator = torch.Generator().manual_seed(seed)
    labeled, unlabeled = trainer.settings_batch
    patch = trainer.configuration_manager.patch_size
    manager = trainer.label_manager
    classes = len(manager.all_labels) + manager.has_ignore_label
    label = torch.randint(0, classes, (labeled + unlabeled, 1, *patch), generator=generator)
    if manager.has_ignore_label:
        label[0] = manager.ignore_label  # one sample nearly without annotation: ranks differ in annotated voxels
        label[0, :, :4] = 0
    if manager.has_regions:
        regions = [torch.isin(label, torch.tensor(region)) for region in manager.foreground_regions]
        ignored = [label == manager.ignore_label] if manager.has_ignore_label else []
        label = torch.cat([*regions, *ignored], dim=1)
    target = torch.cat((label, torch.ones(len(label), 1, *patch)), dim=1).short()
    target[-1, -1, :6] = 0  # padding, in one unlabeled sample
    scales = trainer._get_deep_supervision_scales()
    steps = [[round(1 / factor) for factor in scale] for scale in scales]
    targets = [target[(..., *(slice(None, None, step) for step in each))] for each in steps]
    data = torch.randn(labeled + unlabeled, 1, *patch, generator=generator)
    return {"data": data, "target": targets, "keys": [f"case{i}" for i in range(labeled + unlabeled)]}


def my_part(batch: dict[str, Any], labeled: int, unlabeled: int) -> dict[str, Any]:
    """This rank's labeled samples, then its unlabeled ones."""
    mine = [share(samples, get_rank(), get_world_size()) for samples in (labeled, unlabeled)]
    numbers = [*mine[0], *(labeled + i for i in mine[1])]
    return {
        "data": batch["data"][numbers],
        "target": [scale[numbers] for scale in batch["target"]],
        "keys": [batch["keys"][i] for i in numbers],
    }


def train_steps(
    plans: dict, dataset_json: dict, method: str = "ALHVRTrainer", steps: int = 2
) -> dict[str, torch.Tensor]:
    """Losses, and gradients and weights of all networks, after a few steps on given batches."""
    from alhvr_trainer.config.settings import split_batch
    from alhvr_trainer.trainers.partners import unwrapped
    from alhvr_trainer.trainers.variants import trainer_named

    trainer: Any = trainer_named(method)(
        plans | {"continue_training": False}, "2d", 0, dataset_json, torch.device("cpu")
    )
    trainer.initialize()
    trainer.settings_batch = split_batch(
        trainer.configuration_manager.batch_size, trainer.settings.unlabeled_batch_size
    )
    # the draws are shared by the samples of a batch; ranks draw their own, here all must draw as one process does
    trainer.perturbations = {"a": FeaturePerturbation(1), "b": FeaturePerturbation(2)}
    for parameter in [p for partner in trainer.partners.values() for p in partner.parameters() if not p.requires_grad]:
        parameter *= 1.5  # a teacher that agrees with its student, or is as unsure as an untrained one, teaches nothing
    for loss in [value for value in vars(trainer).values() if isinstance(value, DeepSupervisionWrapper)]:
        if trainer.is_ddp:  # nnU-Net gives the coarsest output the weight 1e-6 there, for its wrapper of several ranks
            weights = [*loss.weight_factors[:-1], 0.0]
            loss.weight_factors = [weight / sum(weights) for weight in weights]
        for module in loss.modules():  # nnU-Net gives it a float32 target, and torch computes in the target's type
            if isinstance(module, torch.nn.BCEWithLogitsLoss):
                module.register_forward_pre_hook(lambda _, tensors: (tensors[0], tensors[1].to(tensors[0])))
    trainer.set_deep_supervision_enabled(True)
    trainer.on_train_epoch_start()
    result = {}
    for step in range(steps):
        batch = make_batch(trainer, step)
        if method in ("FixMatchTrainer", "CutMixTrainer"):  # their loaders give every patch in two views
            batch["data"] = torch.cat((batch["data"], batch["data"].flip(0)), dim=1)
        values = trainer.train_step(my_part(batch, *trainer.settings_batch))["record"].values
        result |= {f"{step} {key}": torch.tensor(value) for key, value in values.items()}
    for network, module in trainer.networks().items():
        for name, parameter in unwrapped(module).named_parameters():
            result[f"{network} {name}"] = parameter.detach()
            if parameter.grad is not None:
                result[f"gradient {network} {name}"] = parameter.grad
    return result


def baseline(plans: dict, dataset_json: dict) -> dict[str, list]:
    """Of every rank of the supervised baseline, and what its loaders force to show foreground; a draw after set-up."""
    from alhvr_trainer.trainers.supervised import SupervisedTrainer

    trainer: Any = SupervisedTrainer(plans | {"continue_training": False}, "2d", 0, dataset_json, torch.device("cpu"))
    trainer.initialize()
    training, validation = (loader.data_loader for loader in trainer.get_dataloaders())
    sizes = trainer.batch_size, training.batch_size, validation.batch_size
    mine = sizes, training.draws.forced, validation.draws.forced, torch.rand(()).item()
    names = ("samples", "forced", "forced in validation", "draws")
    return dict(zip(names, map(list, zip(*gather(mine), strict=True)), strict=True))


def main(folder: str) -> None:
    """All cases; rank 0 writes what they gave."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {f"method {name}": method_results(name, dist.group.WORLD) for name in METHOD_CASES}
    for file in sorted(Path(folder).glob("trainer_*.json")):
        content = json.loads(file.read_text())
        barrier()
        if get_rank() == 0:
            write_json(Path(nnUNet_preprocessed).parent, "dataset.json", content["dataset_json"])
        barrier()
        with double_precision():
            found[file.stem] = train_steps(content["plans"], content["dataset_json"], content["method"])
    found["baseline"] = baseline(content["plans"], content["dataset_json"])
    if get_rank() == 0:
        torch.save(found, Path(folder) / f"found_{get_world_size()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
