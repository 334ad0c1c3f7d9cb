"""ALHVRTrainer: two co-trained networks inside nnU-Net's training loop."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from alhvr_trainer.config import ALHVRSettings, threshold_proportion
from alhvr_trainer.losses import FeaturePerturbation, alhvr_channel_terms, alhvr_terms
from alhvr_trainer.losses.alhvr import TERMS
from alhvr_trainer.losses.voxels import valid_voxels
from alhvr_trainer.trainers.distributed import unwrapped
from alhvr_trainer.trainers.ranks import rank, ranks
from alhvr_trainer.trainers.samples import Forward, Predictions, Samples, first
from alhvr_trainer.trainers.semi_supervised import SemiSupervisedTrainer
from alhvr_trainer.trainers.two_passes import TwoPass

REGION_MASKS = ("omega1", "omega2a", "omega2b", "omega3")


class ALHVRTrainer(SemiSupervisedTrainer):
    """Semi-supervised nnU-Net: ``nnUNetv2_train D C F -tr ALHVRTrainer``.

    Two networks of the plans' architecture, ``self.network`` (a) and a partner (b), start from different weights and
    train together on L labelled and U unlabelled samples per step:

    ``loss = sum over networks n of  L_sup_n + w(t) * (L_dtct_n + L_cgcpcl_n)``

    with nnU-Net's own loss as L_sup. Network a is what nnU-Net validates, saves and predicts with. Settings come from
    the ``alhvr`` block of the plans (:class:`alhvr_trainer.config.ALHVRSettings`). With ``-pretrained_weights`` both
    start from these, each with random segmentation layers of its own.

    Source: Lei et al., ICCV 2025. The authors train with SGD, momentum 0.9 and a constant rate; here nnU-Net's
    optimiser and polynomial schedule hold, for each network separately.

    Raises:
        InputError: the plans, the dataset or the unlabelled cases do not allow training (before it starts).
    """

    settings_class = ALHVRSettings
    settings: ALHVRSettings
    supervised = ("a", "b")
    terms = TERMS
    observed = ("gamma", *(f"share_{region}" for region in REGION_MASKS))
    co_trained = True
    panels = (
        ("DTCT", ("dtct_a", "dtct_b")),
        ("CG-CPCL cross-entropy", ("ce_a", "ce_b")),
        ("CG-CPCL cosine", ("cos_a", "cos_b")),
        ("confidence threshold gamma", ("gamma",)),
        ("share of voxels, Omega1", ("share_omega1",)),
        ("share of voxels, Omega2 and Omega3", ("share_omega2a", "share_omega2b", "share_omega3")),
    )

    def build_partners(self) -> dict[str, nn.Module]:
        return {"b": self.another_network()}

    def initialize(self) -> None:
        super().initialize()
        self.passes = {
            name: TwoPass(unwrapped(network), self.settings.feature_stage, compiled=self._do_i_compile())
            for name, network in self.networks().items()
        }
        self.perturbations = {
            name: FeaturePerturbation(self.seed + 2 * rank() + number, self.device)
            for number, name in enumerate(self.passes)
        }
        self.threshold_proportion = threshold_proportion(self.settings, len(self.configuration_manager.patch_size))

    def forward(self, samples: Samples) -> Forward:
        """Each network twice: on all samples, and its decoder on perturbed features of the unlabelled ones."""
        found = {
            name: run(samples.data, samples.labeled, self.perturbations[name]) for name, run in self.passes.items()
        }
        return Forward(
            labeled={name: first(outputs, samples.labeled) for name, (outputs, _) in found.items()},
            logits={name: passes.logits for name, (_, passes) in found.items()},
            extra=[passes for _, passes in found.values()],
        )

    def unsupervised(self, predictions: Predictions, samples: Samples) -> dict[str, Tensor]:
        """DTCT and CG-CPCL of both networks (Eq. 5-6 and 11-25), gamma and the regions' shares of the voxels."""
        settings, valid, group = self.settings, samples.unlabeled_valid, predictions.group
        a, b = predictions.extra
        method = alhvr_channel_terms if self.label_manager.has_regions else alhvr_terms
        terms = method(
            *a,
            *b,
            threshold_proportion=self.threshold_proportion,
            temperature=settings.temperature,
            prototype_scale=settings.prototype_scale,
            detach_teacher=settings.detach_teacher,
            official_ce_broadcast=settings.official_ce_broadcast,
            valid=valid,
            dtct_regions=settings.dtct_regions,
            cgcpcl_regions=settings.cgcpcl_regions,
            process_group=group,
        )
        voxels = valid_voxels(terms.omega1, valid, group)  # with regions, of all channels
        values = {name: getattr(terms, name) for name in self.terms}
        values["gamma"] = terms.gamma.mean() / ranks()  # the same on all ranks
        return values | {f"share_{region}": getattr(terms, region).sum() / voxels for region in REGION_MASKS}

    def observed_in_words(self) -> list[str]:
        gamma, unsure = self.history["gamma"][-1], self.history["share_omega3"][-1]
        split = self.history["share_omega2a"][-1] + self.history["share_omega2b"][-1]
        return [f"gamma {gamma:.3f}", f"of the voxels both unsure {unsure:.1%}", f"one {split:.1%}"]

    def rank_state(self) -> dict[str, Any]:
        return {"perturbation": [perturb.state_dict() for perturb in self.perturbations.values()]}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        for perturb, generators in zip(self.perturbations.values(), state["perturbation"], strict=True):
            perturb.load_state_dict(generators)
