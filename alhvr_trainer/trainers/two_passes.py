"""The two passes of one nnU-Net U-Net, and the decoder feature map that CG-CPCL compares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from alhvr_trainer.errors import InputError
from alhvr_trainer.losses import TwoPasses
from alhvr_trainer.trainers.decoders import Tap, TappedDecoder, UNet, check_unet
from alhvr_trainer.trainers.samples import Outputs, full_resolution

FEATURE_STRIDE = 8
Perturb: TypeAlias = Callable[[list[Tensor]], list[Tensor]]


class TwoPass:
    """One network run twice: clean on all samples, then its decoder on perturbed features of the unlabeled ones alone.

    Both passes start from the same encoder output, so gradients of both reach the encoder. Without the labeled
    samples the perturbed pass gives the same numbers under per-sample norms (nnU-Net's InstanceNorm); under batch
    norm its statistics are those of the unlabeled samples, where the authors' code takes the whole batch.

    Args:
        network: in training or evaluation mode, deep supervision on or off.
        feature_stage: decoder stage of the feature tap, see :func:`default_feature_stage`.
        feature_tap: where in this stage, see :class:`TappedDecoder`.
        compiled: run encoder and decoder through ``torch.compile``; the perturbation between them stays eager.
        compile_options: of ``torch.compile``.

    Raises:
        InputError: no encoder and staged decoder, or no such decoder stage.
    """

    def __init__(
        self,
        network: UNet,
        feature_stage: int | None = None,
        feature_tap: Tap = "stage",
        compiled: bool = False,
        **compile_options: Any,
    ) -> None:
        check_unet(network)
        check_feature_stage(network, feature_stage)
        stage = default_feature_stage(network) if feature_stage is None else feature_stage
        self._decoder = network.decoder
        self._encode: Callable[[Tensor], list[Tensor]] = network.encoder
        self._decode: Callable[[list[Tensor]], tuple[Any, Tensor]] = TappedDecoder(network.decoder, stage, feature_tap)
        if compiled:  # static shapes: the two passes differ in batch size, and each gets a graph of its own
            options = {"dynamic": False, **compile_options}
            self._encode = torch.compile(self._encode, **options)
            self._decode = torch.compile(self._decode, **options)

    def __call__(self, data: Tensor, labeled: int, perturb: Perturb) -> tuple[Outputs, TwoPasses]:
        """Run both passes.

        Args:
            data: (L+U, channels, *S), labeled samples first.
            labeled: L; there must be at least one sample after them.
            perturb: maps the list of encoder outputs to perturbed ones, e.g. ``FeaturePerturbation``.

        Returns:
            The clean pass on all samples, and both passes on the unlabeled ones, at full resolution.
        """
        skips = self._encode(data)
        outputs, features = self._decode(skips)
        with _single_output(self._decoder):
            perturbed_logits, perturbed_features = self._decode(perturb([skip[labeled:] for skip in skips]))
        logits = full_resolution(outputs)[labeled:]
        return outputs, TwoPasses(logits, perturbed_logits, features[labeled:], perturbed_features)


def default_feature_stage(network: UNet) -> int:
    """Index of the decoder stage (0 = deepest) whose output feeds CG-CPCL.

    The authors tap their 2D U-Net before the second up-block (after a 1x1 convolution, signed) and their 3D V-Net
    after decoder block six (after ReLU): both 1/8 of the resolution per axis. nnU-Net's equivalent is the output of a
    decoder stage (after norm and LeakyReLU); we take the last one, counted from the bottleneck, that is still at 1/8
    or coarser along its most reduced axis, or the deepest one where the network never gets that coarse. With
    anisotropic strides the least reduced axes are then finer than 1/8.
    """
    strides = np.cumprod([np.broadcast_to(s, _dimensions(network)) for s in network.encoder.strides], axis=0)
    last = len(network.decoder.stages) - 1  # decoder stage i works at the resolution of encoder stage last - i
    coarse = [i for i in range(last + 1) if strides[last - i].max() >= FEATURE_STRIDE]
    return max(coarse, default=0)


def check_feature_stage(network: UNet, feature_stage: int | None) -> None:
    """A decoder stage of the settings is there.

    Raises:
        InputError: it is not.
    """
    stages = len(network.decoder.stages)
    if feature_stage is not None and feature_stage >= stages:
        raise InputError(
            f'"alhvr.feature_stage" is {feature_stage}, but the decoder has stages 0 (deepest) to {stages - 1}'
        )


def _dimensions(network: UNet) -> int:
    return 3 if issubclass(network.encoder.conv_op, nn.Conv3d) else 2


@contextmanager
def _single_output(decoder: Any) -> Iterator[None]:
    """Switch deep supervision off: the perturbed pass needs full resolution alone."""
    enabled = decoder.deep_supervision
    decoder.deep_supervision = False
    try:
        yield
    finally:
        decoder.deep_supervision = enabled
