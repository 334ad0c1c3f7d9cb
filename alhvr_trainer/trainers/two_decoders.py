"""TwoDecodersTrainer: one encoder and two decoders that differ in how they upsample feature maps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import nn

from alhvr_trainer.trainers.decoders import check_unet
from alhvr_trainer.trainers.partners import follow_loaded_weights, unwrapped
from alhvr_trainer.trainers.samples import Forward, Samples
from alhvr_trainer.trainers.semi_supervised import SemiSupervisedTrainer

Transposed: TypeAlias = "nn.ConvTranspose2d | nn.ConvTranspose3d"
Decoder: TypeAlias = Callable[[Any], Any]


class TwoDecodersTrainer(SemiSupervisedTrainer):
    """Network a is nnU-Net's; a second decoder, the auxiliary one, reads the features of a's encoder.

    The two decoders and the encoder are one model with one optimizer and one gradient norm. Weights given with
    ``-pretrained_weights`` go to both decoders, except for upsampling and segmentation layers. Network a is what
    nnU-Net validates, saves and predicts with. A method says how the auxiliary decoder upsamples, and what its terms
    are.
    """

    supervised = ("a", "auxiliary")
    co_trained = True
    compares_labeled = True
    trained_with_a = ("auxiliary",)

    @abstractmethod
    def upsampling(self, transposed: Transposed) -> nn.Module:
        """What the auxiliary decoder has in place of a transposed convolution of nnU-Net's."""

    def called(self, decoder: Any) -> Decoder:
        """How a decoder is called with the encoder's outputs; a method may have it return more than logits."""
        found: Decoder = decoder
        return found

    def build_partners(self) -> dict[str, nn.Module]:
        network: Any = unwrapped(self.network)
        check_unet(network)
        spare: Any = unwrapped(self.build_network())
        auxiliary = make_auxiliary(spare.decoder, self.upsampling).to(self.device)
        follow_loaded_weights(network.decoder.stages, auxiliary.stages)  # what the two decoders have in common
        return {"auxiliary": auxiliary}

    def initialize(self) -> None:
        super().initialize()
        network: Any = unwrapped(self.network)
        decoders = {"a": network.decoder, "auxiliary": self.partners["auxiliary"]}
        parts = {"encoder": network.encoder, **{name: self.called(each) for name, each in decoders.items()}}
        if self._do_i_compile():
            parts = {name: torch.compile(part, dynamic=False) for name, part in parts.items()}
        self._parts = parts

    def forward(self, samples: Samples) -> Forward:
        """The encoder and both decoders on all samples."""
        return self.sorted_outputs(self.decode(samples), samples)

    def decode(self, samples: Samples) -> dict[str, Any]:
        """What both decoders give for all samples, after one pass of the encoder."""
        features = self._parts["encoder"](samples.data)
        return {name: self._parts[name](features) for name in self.supervised}


def make_auxiliary(decoder: Any, upsampling: Callable[[Transposed], nn.Module]) -> Any:
    """Turn a decoder of nnU-Net into an auxiliary decoder, in place; returns it.

    Args:
        decoder: ``UNetDecoder`` of a network built for this alone: its encoder, which every decoder of nnU-Net carries
            along without using it, is taken out, so that it is neither trained nor saved.
        upsampling: makes the layer in place of a transposed convolution.
    """
    decoder.encoder = None
    for index, transposed in enumerate(decoder.transpconvs):
        decoder.transpconvs[index] = upsampling(transposed)
    return decoder


def convolution_in_place_of(transposed: Transposed, size: int) -> nn.Module:
    """A convolution with the channels and the bias of a transposed one, initialized as nnU-Net does; it keeps sizes.

    Args:
        transposed: of nnU-Net's decoder.
        size: of the kernel, odd.
    """
    convolution: Any = nn.Conv3d if isinstance(transposed, nn.ConvTranspose3d) else nn.Conv2d
    made: nn.Module = convolution(
        transposed.in_channels, transposed.out_channels, size, padding=size // 2, bias=transposed.bias is not None
    )
    InitWeights_He()(made)
    return made
