"""Peak memory of a training step, found by a dry run: torch's fake tensors have shapes and types, and no memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import SGD
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alhvr_trainer.losses import ALHVRLoss, TwoPasses, host

ALLOCATION = 512
"""CUDA's allocator of torch rounds up to this many bytes."""
FEATURE_STAGE = 3
"""Stage of 1/8 resolution, which CG-CPCL compares."""


def predicted_peak(
    architecture: dict[str, Any],
    patch_size: Sequence[int],
    input_channels: int,
    classes: int,
    labeled: int,
    unlabeled: int,
    co_training: bool = True,
    half_precision: bool = True,
) -> int:
    """Bytes that a training step takes at its peak: weights, momentum, gradients, feature maps, loss maps, all of it.

    Without what convolution libraries use inside, and without the memory that torch's allocator holds in reserve.

    Args:
        architecture: ``architecture`` of a configuration of the plans.
        patch_size: *S.
        input_channels: of the image.
        classes: background included.
        labeled, unlabeled: samples per step, L and U.
        co_training: ALHVR, the most expensive method: two networks, a second decoder pass, its terms. Otherwise
            nnU-Net's own step with L samples.
        half_precision: autocast, as on a GPU.

    Example:
        >>> from alhvr_trainer.config.files import read_object
        >>> plans = read_object("nnUNet_preprocessed/Dataset027_ACDC/ALHVRPlans.json")
        >>> architecture = plans["configurations"]["2d"]["architecture"]
        >>> predicted_peak(architecture, (256, 224), 1, 4, labeled=8, unlabeled=8) >> 20  # MiB; an H200 took 3 636
        3762
    """
    with _looking_at_nothing(), FakeTensorMode():
        networks = [network_of(architecture, input_channels, classes) for _ in range(2 if co_training else 1)]
        optimizers = [SGD(n.parameters(), 0.01, momentum=0.99, nesterov=True, foreach=True) for n in networks]
        step = _step(networks, optimizers, labeled, co_training, half_precision)
        data = torch.empty(labeled + unlabeled * co_training, input_channels, *patch_size)
        labels = [torch.empty(labeled, 1, *shape) for shape in output_shapes(architecture, patch_size)]
        step(data, labels)  # the optimizers' momentum is there from now on
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        momentum = [state["momentum_buffer"] for each in optimizers for state in each.state.values()]
        with PeakBytes([*_parameters(networks), *momentum, data, *labels]) as found:
            step(data, labels)
    return found.peak


@lru_cache(maxsize=32)
def relative_cost(dimensions: int, residual: bool, classes: int) -> float:
    """How many times the memory of nnU-Net's step ALHVR's takes, with as many samples; half of them unlabeled.

    It hardly depends on patch and depth, so that one small network of either kind stands for all.

    Args:
        dimensions: of the patch, 2 or 3.
        residual: encoder of residual blocks (nnU-Net's ResEnc presets).
        classes: background included.
    """
    architecture, patch = typical_architecture(dimensions, residual), (256,) * 2 if dimensions == 2 else (96,) * 3
    ours = predicted_peak(architecture, patch, 1, classes, labeled=2, unlabeled=2)
    return ours / predicted_peak(architecture, patch, 1, classes, labeled=4, unlabeled=0, co_training=False)


def typical_architecture(dimensions: int, residual: bool) -> dict[str, Any]:
    stages = 5
    blocks = {"n_blocks_per_stage": [1, 3, 4, 6, 6]} if residual else {"n_conv_per_stage": [2] * stages}
    kind = "ResidualEncoderUNet" if residual else "PlainConvUNet"
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{kind}",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [32, 64, 128, 256, 320],
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": [[3] * dimensions] * stages,
            "strides": [[1] * dimensions, *[[2] * dimensions] * (stages - 1)],
            **blocks,
            "n_conv_per_stage_decoder": [1 if residual else 2] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def network_of(architecture: dict[str, Any], input_channels: int, classes: int) -> Any:
    return get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        input_channels,
        classes,
        allow_init=False,
        deep_supervision=True,
    )


def output_shapes(architecture: dict[str, Any], patch_size: Sequence[int]) -> list[list[int]]:
    """Of the outputs of deep supervision, full resolution first."""
    strides = architecture["arch_kwargs"]["strides"][:-1]
    factors = np.cumprod([np.broadcast_to(stride, len(patch_size)) for stride in strides], axis=0)
    return [(np.array(patch_size) // factor).tolist() for factor in factors]


def _parameters(networks: Iterable[nn.Module]) -> list[Tensor]:
    return [parameter for network in networks for parameter in network.parameters()]


def nnunet_loss(levels: int) -> nn.Module:
    """nnU-Net's loss with so many outputs of deep supervision."""
    dice = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}
    of_scale = DC_and_CE_loss(dice, {}, weight_ce=1, weight_dice=1, dice_class=MemoryEfficientSoftDiceLoss)
    return DeepSupervisionWrapper(of_scale, [1 / 2**level for level in range(levels)])


def _step(
    networks: list[Any], optimizers: list[SGD], labeled: int, co_training: bool, half_precision: bool
) -> Callable[[Tensor, list[Tensor]], None]:
    def step(data: Tensor, labels: list[Tensor]) -> None:
        loss = nnunet_loss(len(labels))
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        # fake tensors on the CPU: those on a GPU need one for the backward pass
        with torch.autocast("cpu", torch.bfloat16, enabled=half_precision):
            found = [_passes(network, data, labeled, co_training) for network in networks]
            losses = [loss([output[:labeled] for output in outputs], labels) for outputs, _ in found]
        total = torch.stack(losses).sum()
        if co_training:
            total = total + ALHVRLoss()(*(passes for _, passes in found))
        del found
        total.backward()
        for network in networks:
            nn.utils.clip_grad_norm_(network.parameters(), 12)
        for optimizer in optimizers:
            optimizer.step()

    return step


def _passes(network: Any, data: Tensor, labeled: int, both: bool) -> tuple[list[Tensor], Any]:
    """The maps that ``trainers.two_passes.TwoPass`` makes."""
    skips = network.encoder(data)
    outputs = network.decoder(skips)
    if not both:
        return outputs, None
    perturbed = [skip[labeled:] * torch.ones_like(skip[0]) for skip in skips]
    network.decoder.deep_supervision = False
    again = network.decoder(perturbed)
    network.decoder.deep_supervision = True
    features = skips[min(FEATURE_STAGE, len(skips) - 1)][labeled:]
    return outputs, TwoPasses(outputs[0][labeled:], again, features, features)


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of all storages that are alive."""

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()
        self._alive: dict[int, Any] = {}
        self._now = self.peak = 0
        for tensor in held:
            self._see(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, Tensor):
                self._see(value)
        return made

    def _see(self, tensor: Tensor) -> None:
        storage: Any = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._alive:
            size = -(-storage.nbytes() // ALLOCATION) * ALLOCATION
            self._alive[key] = weakref.ref(storage, lambda _gone: self._forget(key, size))
            self._now += size
            self.peak = max(self.peak, self._now)

    def _forget(self, key: int, size: int) -> None:
        del self._alive[key]
        self._now -= size


@contextmanager
def _looking_at_nothing() -> Iterator[None]:
    """Fake tensors have no values."""
    before, host.LOOKS = host.LOOKS, False
    try:
        yield
    finally:
        host.LOOKS = before
