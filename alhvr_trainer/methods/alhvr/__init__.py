"""ALHVR in pure torch: regions, DTCT, CG-CPCL, feature perturbation, ramp-up. Imports neither nnU-Net nor MONAI.

Lei et al., "Adaptive Learning of High-Value Regions for Semi-Supervised Medical Image Segmentation", ICCV 2025.
Equation numbers in this package are that paper's. Notation in all modules: ``U`` unlabelled samples, ``C`` classes,
``K`` feature channels, ``*S`` the image's spatial shape (2D or 3D), ``*s`` that of the feature map.
"""

from __future__ import annotations

from alhvr_trainer.methods.alhvr.channels import alhvr_channel_terms
from alhvr_trainer.methods.alhvr.perturbation import FeaturePerturbation
from alhvr_trainer.methods.alhvr.terms import ALHVRTerms, alhvr_terms
from alhvr_trainer.training.schedule import consistency_weight

__all__ = ["ALHVRTerms", "FeaturePerturbation", "alhvr_channel_terms", "alhvr_terms", "consistency_weight"]
