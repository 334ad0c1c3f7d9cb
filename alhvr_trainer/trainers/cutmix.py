"""CutMix: a network learns an averaged teacher's labels on strong views into which labeled patches are pasted.

The parts are known, the recipe is this package's own: the teacher of Mean Teacher (Tarvainen & Valpola, NeurIPS
2017), the views of FixMatch (Sohn et al., NeurIPS 2020), CutMix for segmentation (French et al., BMVC 2020), here of
labeled with unlabeled images (as in Bai et al., CVPR 2023), and what practitioners do with pseudo-labels in nnU-Net:
train on labeled cases first, then with nnU-Net's own kind of loss.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from alhvr_trainer.augmentation.cutmix import boxes, mixed
from alhvr_trainer.config.methods import method
from alhvr_trainer.config.settings import Share
from alhvr_trainer.losses.cutmix import pseudo_label_loss
from alhvr_trainer.trainers.parallel import get_rank
from alhvr_trainer.trainers.samples import Forward, Predictions, Samples, annotated, first, full_resolution
from alhvr_trainer.trainers.two_views import TwoViewSettings, TwoViewTrainer


class CutMixSettings(TwoViewSettings):
    """CutMix with an averaged teacher."""

    consistency_weight: float = Field(1.0, ge=0.0)
    """Weight of the unsupervised term."""
    ramp_fraction: Share = 0.0
    """Share of all training iterations over which the weight ramps up."""
    warm_up_fraction: Share = 0.4
    """Share of all training iterations in which labeled samples alone teach: until the teacher is good enough."""
    ema_decay: Share = 0.99
    """Decay of the moving average of the weights, which is the teacher and predicts."""
    cutout: Share = 0.0
    """Edge of the box that the strong view lacks, as a share of the patch; 0: none."""
    confidence_threshold: Share = 0.0
    """Voxels outside of the boxes teach where the average's probability of their label is at least this."""
    cutmix: Share = 1.0
    """Probability that a box of an unlabeled patch shows a labeled one."""
    cutmix_end: Share = 1.0
    """Share of all training iterations after which there are no more boxes: whole scans have none."""


@method(
    "CutMix",
    "an averaged teacher, and boxes of labeled patches",
    summary="The network trains on labeled images first. Then the moving average of its weights labels weakly "
    "augmented unlabeled images, and the network learns these labels on strongly augmented ones, into which boxes of "
    "labeled images are pasted with their labels. The average predicts.",
    reference="French G. et al. Semi-Supervised Semantic Segmentation Needs Strong, Varied Perturbations. BMVC 2020.",
)
class CutMixTrainer(TwoViewTrainer):
    """Pseudo-labels on CutMix inside nnU-Net: ``nnUNetv2_train D C F -tr CutMixTrainer``.

    ``loss = L_sup + w l(network(mix(strong)), mix(labels of the average on the weak view))``, with
    :func:`~alhvr_trainer.losses.cutmix.pseudo_label_loss`, and w = 0 in the first 40 % of the training. The box in
    unlabeled patch i shows the labeled patch i of the batch (on several ranks: of the rank's part), counted again from
    the first one where there are fewer, and holds its labels.

    Source: this package; ``docs/methods.md`` says what was taken from where.
    """

    settings_class = CutMixSettings
    settings: CutMixSettings
    terms = ("pseudo_label",)

    def initialize(self) -> None:
        super().initialize()
        self.generator = torch.Generator(self.device).manual_seed(self.seed + get_rank())

    def cutmix(self) -> float:
        """Today's probability of a box."""
        return self.settings.cutmix if self.progress < self.settings.cutmix_end else 0.0

    def forward(self, samples: Samples) -> Forward:
        weak, second = self.views(samples.data)
        labeled, strong = second[: samples.labeled], second[samples.labeled :]
        probability = self.number("cutmix", self.cutmix)
        inside = boxes(len(strong), strong.shape[2:], probability, self.generator)
        outputs = self.run("a", torch.cat((labeled, mixed(strong, repeated(labeled, len(strong)), inside))))
        with torch.no_grad():
            targets = self.run("average", weak[samples.labeled :])
        return Forward(
            labeled={"a": first(outputs, samples.labeled)},
            logits={"weak": full_resolution(targets), "strong": full_resolution(outputs)[samples.labeled :]},
            maps={"inside": inside},
        )

    def unsupervised(self, predictions: Predictions, samples: Samples) -> dict[str, Tensor]:
        inside, strong = predictions.maps["inside"], predictions.logits["strong"]
        unlabeled, channels = len(inside), len(strong) // len(inside)  # with regions, several channels
        pseudo = predictions.logits["weak"].max(dim=1).indices.unflatten(0, (unlabeled, channels))
        true = full_resolution(samples.labels)[:, :channels].long()
        labels = mixed(pseudo, repeated(true, unlabeled), inside).flatten(0, 1)
        known, valid = annotated(samples, self.label_manager), samples.unlabeled_valid
        counted = None
        if known is not None or valid is not None:
            everywhere = torch.ones_like(inside)
            known = everywhere if known is None else repeated(known, unlabeled)
            counted = mixed(everywhere if valid is None else valid, known, inside).repeat_interleave(channels, dim=0)
            labels = labels.masked_fill(~counted, 0)  # the ignore label is no class
        if self.settings.confidence_threshold:
            sure = predictions.logits["weak"].softmax(dim=1).amax(dim=1) >= self.settings.confidence_threshold
            sure = sure | inside.repeat_interleave(channels, dim=0)
            counted = sure if counted is None else counted & sure
        return {"pseudo_label": pseudo_label_loss(strong, labels, counted, predictions.group)}

    def generators(self) -> list[torch.Generator]:
        return [self.generator]

    def rank_state(self) -> dict[str, Tensor]:
        return {"cutmix": self.generator.get_state()}

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        if state["cutmix"].numel() == self.generator.get_state().numel():  # a CPU's state is none of a GPU
            self.generator.set_state(state["cutmix"].cpu())


def repeated(samples: Tensor, number: int) -> Tensor:
    """So many samples: as they are, and again from the first one."""
    return samples[torch.arange(number, device=samples.device) % len(samples)]
