"""The methods' losses in torch alone: this folder works wherever it is copied.

Each method has its formulas as functions, and one ``nn.Module`` in MONAI's form, ``ALHVRLoss(...)(a, b)``. On several
ranks, functions that take a process group return this rank's share: the sum over the ranks is the whole batch's term.
"""

from .aau import AAULoss
from .alhvr import ALHVRLoss, ALHVRTerms, TwoPasses, alhvr_channel_terms, alhvr_terms
from .cps import CPSLoss, cps_terms
from .fixmatch import FixMatchLoss
from .mcnet import MCNetLoss
from .mean_teacher import MeanTeacherLoss
from .mlrp import MLRPLoss, mlrp_terms
from .perturbation import FeaturePerturbation
from .schedules import average_decay, consistency_weight
from .uamt import UAMTLoss

__all__ = [
    "AAULoss",
    "ALHVRLoss",
    "ALHVRTerms",
    "CPSLoss",
    "FeaturePerturbation",
    "FixMatchLoss",
    "MCNetLoss",
    "MLRPLoss",
    "MeanTeacherLoss",
    "TwoPasses",
    "UAMTLoss",
    "alhvr_channel_terms",
    "alhvr_terms",
    "average_decay",
    "consistency_weight",
    "cps_terms",
    "mlrp_terms",
]
