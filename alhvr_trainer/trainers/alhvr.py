"""ALHVRTrainer: two co-trained networks inside nnU-Net's training loop."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from alhvr_trainer.config.methods import method
from alhvr_trainer.config.settings import Settings
from alhvr_trainer.losses import FeaturePerturbation, TwoPasses, alhvr_channel_terms, alhvr_terms
from alhvr_trainer.losses.alhvr import TERMS
from alhvr_trainer.losses.regions import Region, paper_proportion
from alhvr_trainer.losses.voxels import valid_voxels
from alhvr_trainer.trainers.decoders import Tap
from alhvr_trainer.trainers.parallel import get_rank, get_world_size
from alhvr_trainer.trainers.partners import unwrapped
from alhvr_trainer.trainers.region_maps import forget_region_maps, write_region_maps
from alhvr_trainer.trainers.samples import Forward, Predictions, Samples, first
from alhvr_trainer.trainers.semi_supervised import SemiSupervisedTrainer
from alhvr_trainer.trainers.two_passes import TwoPass

REGION_MASKS = ("omega1", "omega2a", "omega2b", "omega3")


PAPER = {
    "consistency_weight": 0.1,
    "ramp_fraction": 1.0,
    "warm_up_fraction": 0.0,
    "decay_fraction": 0.0,
    "optimizer": "paper",
    "temperature": 0.1,
    "prototype_scale": 1.0,
    "detach_teacher": False,
    "feature_tap": "stage",
}
"""``"preset": "paper"``: the training of the paper and of its code, but for network, augmentation and patches."""
AUTHORS_SGD = {"momentum": 0.9, "nesterov": False, "weight_decay": 1e-4}


class ALHVRSettings(Settings):
    """ALHVR (Lei et al., ICCV 2025)."""

    preset: Literal["default", "paper"] = "default"
    """Defaults of the other keys: this package's, or those of the paper."""
    optimizer: Literal["nnU-Net", "paper"] = "nnU-Net"
    """SGD with nnU-Net's momentum 0.99, Nesterov and weight decay 3e-5, or with the authors' 0.9, none and 1e-4."""
    threshold_proportion: Annotated[float, Field(ge=0.01, le=1.0)] | None = None
    """Share of the least confident voxels whose mean is gamma [beta]; default 0.8 in 2D, 0.7 in 3D."""
    # below 0.02 the powers of the sharpening underflow in float32, above 1 its gradient at 0 is infinite
    temperature: float = Field(0.1, ge=0.02, le=1.0)
    """Sharpening temperature of the teacher [T]."""
    prototype_scale: float = Field(1.0, ge=0.001)
    """Factor on the cosine between features and prototypes."""
    dtct_regions: tuple[Region, ...] = ("omega3",)
    """Regions on which DTCT acts; empty switches it off."""
    cgcpcl_regions: tuple[Region, ...] = ("omega2",)
    """Regions on which CG-CPCL acts; empty switches it off."""
    detach_teacher: bool = False
    """Stop the gradient through DTCT's sharpened teacher."""
    official_ce_broadcast: bool = False
    """Compute CG-CPCL's cross-entropy with the mask broadcast of the authors' released code."""
    feature_stage: Annotated[int, Field(ge=0)] | None = None
    """Decoder stage whose output feeds CG-CPCL, 0 = deepest; default: the stage at 1/8 resolution."""
    feature_tap: Tap = "stage"
    """Where CG-CPCL taps this stage: its output, behind LeakyReLU, or that of its "up-convolution", which has both
    signs, as the authors' features have in 2D."""
    region_maps: int = Field(3, ge=0, le=20)
    """Of how many unlabeled cases the regions are written as images early, midway and late, for ``alhvr report``."""

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        return {**PAPER, **given} if isinstance(given, dict) and given.get("preset") == "paper" else given


@method(
    "ALHVR",
    "adaptive learning of high-value regions",
    summary="Two networks of the same architecture train together from different initial weights, on labeled images "
    "with nnU-Net's own loss. On unlabeled images each predicts from clean and from perturbed features, and "
    "its confidence sorts the voxels into regions: where both networks are sure there is nothing to learn, "
    "where one is sure it teaches the other through class prototypes of its features, and where both are unsure "
    "the more confident prediction of each voxel teaches both. To predict, one network is enough.",
    reference="Lei T. et al. Adaptive Learning of High-Value Regions for Semi-Supervised Medical Image Segmentation. "
    "ICCV 2025.",
)
class ALHVRTrainer(SemiSupervisedTrainer):
    """Semi-supervised nnU-Net: ``nnUNetv2_train D C F -tr ALHVRTrainer``.

    Two networks of the plans' architecture, ``self.network`` (a) and a partner (b), start from different weights and
    train together on L labeled and U unlabeled samples per step:

    ``loss = sum over networks n of  L_sup_n + w(t) * (L_dtct_n + L_cgcpcl_n)``

    with nnU-Net's own loss as L_sup. Network a is what nnU-Net validates, saves and predicts with. Settings come from
    the ``alhvr`` block of the plans (:class:`ALHVRSettings`). With ``-pretrained_weights`` both
    start from these, each with random segmentation layers of its own.

    Source: Lei et al., ICCV 2025. The authors train with SGD, momentum 0.9 and a constant rate; here nnU-Net's
    optimizer and polynomial schedule hold, for each network separately.

    Raises:
        InputError: the plans, the dataset or the unlabeled cases do not allow training (before it starts).
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
            name: TwoPass(
                unwrapped(network),
                self.settings.feature_stage,
                self.settings.feature_tap,
                compiled=self._do_i_compile(),
            )
            for name, network in self.networks().items()
        }
        self.perturbations = {
            name: FeaturePerturbation(self.seed + 2 * get_rank() + number, self.device)
            for number, name in enumerate(self.passes)
        }
        terms = alhvr_channel_terms if self.label_manager.has_regions else alhvr_terms
        compiled = self._do_i_compile() and not self.is_ddp
        self.method_terms = torch.compile(terms, dynamic=False) if compiled else terms
        dimensions = len(self.configuration_manager.patch_size)
        self.threshold_proportion = self.settings.threshold_proportion or paper_proportion(dimensions)

    def configure_optimizers(self):
        optimizer, schedule = super().configure_optimizers()
        if self.settings.optimizer == "paper":
            for group in optimizer.param_groups:
                group.update(AUTHORS_SGD)
        return optimizer, schedule

    def on_train_start(self) -> None:
        super().on_train_start()
        forget_region_maps(self)

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        write_region_maps(self)

    def forward(self, samples: Samples) -> Forward:
        """Each network twice: on all samples, and its decoder on perturbed features of the unlabeled ones."""
        found = {
            name: run(samples.data, samples.labeled, self.perturbations[name]) for name, run in self.passes.items()
        }
        return Forward(
            labeled={name: first(outputs, samples.labeled) for name, (outputs, _) in found.items()},
            logits={name: passes.logits for name, (_, passes) in found.items()},
            maps={
                f"{key}_{name}": value for name, (_, passes) in found.items() for key, value in passes._asdict().items()
            },
        )

    def unsupervised(self, predictions: Predictions, samples: Samples) -> dict[str, Tensor]:
        """DTCT and CG-CPCL of both networks (Eq. 5-6 and 11-25), gamma and the regions' shares of the voxels."""
        settings, valid, group = self.settings, samples.unlabeled_valid, predictions.group
        maps = predictions.maps
        a, b = ([maps[f"{key}_{name}"] for key in TwoPasses._fields] for name in "ab")
        terms = self.method_terms(
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
        values["gamma"] = terms.gamma.mean() / get_world_size()  # the same on all ranks
        return values | {f"share_{region}": getattr(terms, region).sum() / voxels for region in REGION_MASKS}

    def observed_in_words(self) -> list[str]:
        gamma, unsure = self.monitor.history["gamma"][-1], self.monitor.history["share_omega3"][-1]
        split = self.monitor.history["share_omega2a"][-1] + self.monitor.history["share_omega2b"][-1]
        return [f"gamma {gamma:.3f}", f"of the voxels both unsure {unsure:.1%}", f"one {split:.1%}"]

    def generators(self) -> list[torch.Generator]:
        return [perturb.generator for perturb in self.perturbations.values()]

    def rank_state(self) -> dict[str, Any]:
        return {"perturbation": [perturb.state_dict() for perturb in self.perturbations.values()]}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        for perturb, generators in zip(self.perturbations.values(), state["perturbation"], strict=True):
            perturb.load_state_dict(generators)
