"""When the program may look at numbers: on the CPU at no cost, on a GPU only by waiting for it."""

from __future__ import annotations

from torch import Tensor

LOOKS = True
"""False: nothing is looked at on the CPU either, so that it runs what a GPU runs."""


def host_may_look(x: Tensor) -> bool:
    """Whether a decision on the values of ``x`` costs nothing.

    Example:
        >>> import torch
        >>> host_may_look(torch.zeros(1))
        True
    """
    return LOOKS and x.device.type == "cpu"
