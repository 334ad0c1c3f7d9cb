"""UG-MCL: a mean teacher and a signed-distance head that agree with the segmentation where the teacher is certain.

Zhang et al., *Uncertainty-guided mutual consistency learning for semi-supervised medical image segmentation*,
Artificial Intelligence in Medicine 2023 (arXiv 2112.02508).
"""

from __future__ import annotations

from typing import Any

import torch
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from pydantic import Field
from torch import Tensor, nn

from alhvr_trainer.config.methods import method
from alhvr_trainer.losses.dice import soft_dice_loss
from alhvr_trainer.losses.precision import at_least_float32
from alhvr_trainer.losses.uamt import certain_voxels, entropy_threshold, predictive_entropy
from alhvr_trainer.losses.ugmcl import cross_task_term, inside_probability, intra_task_term
from alhvr_trainer.losses.voxels import class_targets
from alhvr_trainer.trainers.decoders import TappedDecoder, check_unet
from alhvr_trainer.trainers.partners import unwrapped
from alhvr_trainer.trainers.samples import Forward, Outputs, Predictions, Samples, annotated, first, full_resolution
from alhvr_trainer.trainers.uamt import UAMTSettings, UAMTTrainer


class DistanceHead(nn.Module):
    """Signed distances to the foreground classes, from -1 (inside) to 1: a 1x1 convolution and tanh.

    In float32 throughout: the factor k magnifies what half precision would round off.

    Args:
        layer: nnU-Net's segmentation layer of the same features.
        foreground: number of foreground classes or regions.

    Example:
        >>> DistanceHead(nn.Conv2d(8, 4, 1), foreground=3)(torch.zeros(1, 8, 5, 5)).shape
        torch.Size([1, 3, 5, 5])

    Source: the paper's head; in the authors' code the distance is tanh of the segmentation's own logits.
    """

    def __init__(self, layer: nn.Conv2d | nn.Conv3d, foreground: int) -> None:
        super().__init__()
        self.convolution = type(layer)(layer.in_channels, foreground, 1)
        InitWeights_He()(self.convolution)  # as nnU-Net initializes its segmentation layers

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return torch.tanh(self.convolution(at_least_float32(features)))


def foreground_masks(labels: Tensor, foreground: int, regions: bool) -> Tensor:
    """Masks of the foreground classes or regions, (L, K, *S) bool.

    Args:
        labels: (L, 1, *S), or with regions one channel each and, after these, that of the ignore label if there is one.
        foreground: K.
        regions: whether training is region-based.

    Example:
        >>> foreground_masks(torch.tensor([[[0, 2, 1]]]), 2, regions=False)
        tensor([[[False, False,  True],
                 [False,  True, False]]])
    """
    return labels[:, :foreground] > 0 if regions else class_targets(labels[:, 0], foreground + 1)[:, 1:]


class UGMCLSettings(UAMTSettings):
    """UG-MCL (Zhang et al., Artificial Intelligence in Medicine 2023)."""

    dropout: float = Field(0.3, ge=0.0, le=0.99)
    """Share of the channels dropped after the deepest encoder stage and after the last decoder stage."""
    distance_steepness: float = Field(1500.0, gt=0.0)
    """Factor on the signed distance before the sigmoid that makes a segmentation of it [k]."""


@method(
    "UG-MCL",
    "uncertainty-guided mutual consistency learning",
    summary="The network also predicts signed distances, which give a second segmentation. Where a teacher, the moving "
    "average of the network's weights, is certain under noise and dropout, the network learns to agree with it, and "
    "its two segmentations with each other. To predict, nnU-Net's own output is enough.",
    reference="Zhang Y. et al. Uncertainty-guided mutual consistency learning for semi-supervised medical image "
    "segmentation. Artificial Intelligence in Medicine 2023.",
)
class UGMCLTrainer(UAMTTrainer):
    """UG-MCL inside nnU-Net: ``nnUNetv2_train D C F -tr UGMCLTrainer``.

    ``loss = L_sup(student) + Dice(sigmoid(-k d), y) + w(t) (L_intra + L_cross)``, both terms on all samples. Teacher,
    noise, dropout and certainty are those of UA-MT; a head on the student's last decoder stage gives d. The student is
    what nnU-Net validates, saves and predicts with, without dropout and head.

    Source: Zhang et al., 2023; ``docs/methods.md`` lists the differences from paper and code.
    """

    settings_class = UGMCLSettings
    settings: UGMCLSettings
    supervised = ("a", "distance")
    terms = ("intra_task", "cross_task")
    compares_labeled = True
    trained_with_a = ("distance",)

    @property
    def foreground(self) -> int:
        """Foreground classes, or regions."""
        heads: int = self.label_manager.num_segmentation_heads
        return heads if self.label_manager.has_regions else heads - 1

    def build_partners(self) -> dict[str, nn.Module]:
        network: Any = unwrapped(self.network)
        check_unet(network)
        head = DistanceHead(network.decoder.seg_layers[-1], self.foreground)
        return {**super().build_partners(), "distance": head.to(self.device)}

    def initialize(self) -> None:
        super().initialize()
        network: Any = unwrapped(self.network)
        parts: tuple[Any, ...] = network.encoder, TappedDecoder(network.decoder, -1)
        if self._do_i_compile():
            parts = tuple(torch.compile(part, dynamic=False) for part in parts)
        self._encode, self._decode = parts

    def student(self, data: Tensor) -> tuple[Outputs, Tensor]:
        """Outputs of network a, and its signed distances, (B, K, *S)."""
        outputs, features = self._decode(self._encode(data))
        return outputs, self.partners["distance"](features)

    def forward(self, samples: Samples) -> Forward:
        outputs, distance = self.student(samples.data)
        with torch.no_grad():
            teacher = self.run("teacher", self.perturbed(samples.data))
            mean = self.mean_prediction(samples.data)
        return Forward(
            labeled={"a": first(outputs, samples.labeled)},
            logits={"a": full_resolution(outputs), "teacher": full_resolution(teacher)},
            maps={"distance": distance, "mean": mean},
        )

    def supervised_losses(self, forward: Forward, samples: Samples) -> dict[str, Tensor]:
        """nnU-Net's loss, and the Dice loss of what the distances call inside."""
        manager = self.label_manager
        inside = inside_probability(forward.maps["distance"][: samples.labeled], self.settings.distance_steepness)
        masks = foreground_masks(full_resolution(samples.labels), self.foreground, manager.has_regions)
        dice = soft_dice_loss(inside, masks, annotated(samples, manager), self.group)
        return {"a": self.loss(forward.labeled["a"], samples.labels), "distance": dice}

    def unsupervised(self, predictions: Predictions, samples: Samples) -> dict[str, Tensor]:
        student, teacher = predictions.logits["a"], predictions.logits["teacher"]
        mean, distance = predictions.maps["mean"], predictions.maps["distance"]
        if predictions.regions:  # each a two-class problem, one of which is foreground
            distance = distance.flatten(0, 1).unsqueeze(1)
        classes, group = mean.shape[1], predictions.group  # the function is kept, the maps must not be
        threshold = self.number("threshold", lambda: entropy_threshold(self.progress, classes))
        certain = certain_voxels(predictive_entropy(mean), threshold, predictions.valid)
        return {
            "intra_task": intra_task_term(student, teacher, certain, group),
            "cross_task": cross_task_term(student, distance, certain, self.settings.distance_steepness, group),
            "certain": predictions.mean(certain),
        }
