"""Decoders of nnU-Net's U-Nets, run apart from their encoder, and the feature maps of their stages."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from alhvr_trainer.errors import InputError

UNet: TypeAlias = Any
"""nnU-Net's ``PlainConvUNet`` or ``ResidualEncoderUNet``: a module with an ``encoder`` and a staged ``decoder``."""

Tap = Literal["stage", "up-convolution"]


class TappedDecoder:
    """A decoder that also returns a feature map of one of its stages: ``(outputs, features)``.

    Args:
        decoder: of nnU-Net's U-Nets.
        stage: 0 is the deepest, -1 the one at full resolution, whose output the last segmentation layer reads.
        tap: "stage", its output, or "up-convolution", what the transposed convolution below it gives.

    The hook is there for good and acts only while this object calls: one that came and went with each call would be
    compiled anew every time.
    """

    def __init__(self, decoder: Any, stage: int, tap: Tap = "stage") -> None:
        self._decoder = decoder
        self._listening = False
        self._heard: Tensor | None = None
        tapped = decoder.stages if tap == "stage" else decoder.transpconvs
        tapped[stage].register_forward_hook(self._hear)

    def __call__(self, skips: list[Tensor]) -> tuple[Any, Tensor]:
        self._listening = True
        outputs = self._decoder(skips)
        self._listening = False
        features, self._heard = self._heard, None
        assert features is not None
        return outputs, features

    def _hear(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        if self._listening:
            self._heard = output


def check_unet(network: UNet) -> None:
    """Refuse networks whose encoder and decoder cannot be run apart.

    Raises:
        InputError: no encoder and staged decoder.
    """
    if not hasattr(getattr(network, "decoder", None), "stages") or not hasattr(network, "encoder"):
        raise InputError(
            f"the plans' architecture {type(network).__name__} has no encoder and staged decoder; the method needs "
            "nnU-Net's PlainConvUNet or ResidualEncoderUNet"
        )
