"""CPS, cross pseudo supervision: two networks, each trained on the other's hard pseudo-labels.

Chen et al., "Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision", CVPR 2021 (arXiv 2106.01226).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from alhvr_trainer.config.methods import method
from alhvr_trainer.config.settings import Settings
from alhvr_trainer.losses.cps import CPSTerms, cps_terms
from alhvr_trainer.losses.regions import REGIONS, Region, paper_proportion
from alhvr_trainer.trainers.samples import Predictions, Samples
from alhvr_trainer.trainers.semi_supervised import SemiSupervisedTrainer


class CPSSettings(Settings):
    """CPS (Chen et al., CVPR 2021), on all voxels or in some of ALHVR's regions."""

    cps_samples: Literal["all", "unlabeled"] = "all"
    """Samples that the networks teach each other on: "all" [L_cps^l + L_cps^u], or "unlabeled" [L_cps^u]."""
    cps_regions: tuple[Region, ...] = Field(REGIONS, min_length=1)
    """Regions on which they teach each other; all three are CPS itself."""
    threshold_proportion: Annotated[float, Field(ge=0.01, le=1.0)] | None = None
    """Share of the least confident voxels whose mean parts the regions [beta]; default 0.8 in 2D, 0.7 in 3D."""


@method(
    "CPS",
    "cross pseudo supervision",
    summary="Two networks of the same architecture train together from different initial weights, on labeled images "
    "with nnU-Net's own loss. Each learns the other's pseudo-labels. To predict, one network is enough.",
    reference="Chen X. et al. Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision. CVPR 2021.",
)
class CPSTrainer(SemiSupervisedTrainer):
    """Cross pseudo supervision inside nnU-Net: ``nnUNetv2_train D C F -tr CPSTrainer``.

    ``loss = L_sup_a + L_sup_b + w(t) (L_cps^l + L_cps^u)`` with nnU-Net's own loss as L_sup. The two networks start
    from different weights; network a is what nnU-Net validates, saves and predicts with.

    Source: Eq. 4-6. The paper adds the means over labeled and over unlabeled samples; the authors' code takes one
    mean over both, half as much with equal numbers of them. Their weight is constant, 1.5 (VOC) or 6 (Cityscapes), for
    networks pretrained on ImageNet; here it ramps up to 0.1 as in SSL4MIS, whose CPS has no L_cps^l (``cps_samples``).
    """

    settings_class = CPSSettings
    settings: CPSSettings
    supervised = ("a", "b")
    terms = ("cps_a", "cps_b")
    co_trained = True
    compares_labeled = True

    def build_partners(self) -> dict[str, nn.Module]:
        return {"b": self.another_network()}

    def unsupervised(self, predictions: Predictions, samples: Samples) -> dict[str, Tensor]:
        """L_cps^u of each network, and L_cps^l unless the settings leave it out; each has regions of its own."""
        rows_per_sample = len(predictions.logits["a"]) // len(samples.data)  # with regions, one per channel
        labeled = samples.labeled * rows_per_sample
        terms = self._terms(predictions, slice(labeled, None))
        if self.settings.cps_samples == "unlabeled":
            return {"cps_a": terms.a, "cps_b": terms.b}
        of_labeled = self._terms(predictions, slice(labeled))
        return {"cps_a": terms.a + of_labeled.a, "cps_b": terms.b + of_labeled.b}

    def _terms(self, predictions: Predictions, rows: slice) -> CPSTerms:
        dimensions = len(self.configuration_manager.patch_size)
        return cps_terms(
            predictions.logits["a"][rows],
            predictions.logits["b"][rows],
            valid=None if predictions.valid is None else predictions.valid[rows],
            group=predictions.group,
            regions=self.settings.cps_regions,
            threshold_proportion=self.settings.threshold_proportion or paper_proportion(dimensions),
        )
