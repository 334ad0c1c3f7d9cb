"""The methods' losses in torch alone: this folder works wherever it is copied.

Each method has its formulas as functions, and one ``nn.Module`` in MONAI's form, ``ALHVRLoss(...)(a, b)``. On several
ranks, functions that take a process group return this rank's share: the sum over the ranks is the whole batch's term.
"""

from .aau import AAULoss
from .acmt import ACMTLoss
from .alhvr import ALHVRLoss, ALHVRTerms, TwoPasses, alhvr_channel_terms, alhvr_terms
from .cps import CPSLoss, cps_terms
from .cutmix import CutMixLoss
from .evil import EVILLoss, evidential_uncertainty
from .fixmatch import FixMatchLoss
from .mcf import MCFLoss
from .mcnet import MCNetLoss
from .mean_teacher import MeanTeacherLoss
from .mlrp import MLRPLoss, mlrp_terms
from .perturbation import FeaturePerturbation
from .schedules import average_decay, consistency_weight
from .uamt import UAMTLoss
from .ugmcl import UGMCLLoss

__all__ = [
    "AAULoss",
    "ACMTLoss",
    "ALHVRLoss",
    "ALHVRTerms",
    "CPSLoss",
    "CutMixLoss",
    "EVILLoss",
    "FeaturePerturbation",
    "FixMatchLoss",
    "MCFLoss",
    "MCNetLoss",
    "MLRPLoss",
    "MeanTeacherLoss",
    "TwoPasses",
    "UAMTLoss",
    "UGMCLLoss",
    "alhvr_channel_terms",
    "alhvr_terms",
    "average_decay",
    "consistency_weight",
    "cps_terms",
    "evidential_uncertainty",
    "mlrp_terms",
]
