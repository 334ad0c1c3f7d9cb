"""Ramp-up of the unsupervised weight."""

from __future__ import annotations

import math


def consistency_weight(step: int, ramp_steps: float, maximum: float = 0.1) -> float:
    """Weight of the unsupervised terms at a training step.

    ``w(t) = maximum * exp(-5 * (1 - min(t, R) / R)^2)``

    Args:
        step: iterations done so far, t.
        ramp_steps: iterations until the maximum, R; 0 means the maximum from the start.
        maximum: weight after the ramp-up.

    Example:
        >>> round(consistency_weight(0, 1000), 6), consistency_weight(1000, 1000)
        (0.000674, 0.1)
    """
    if ramp_steps <= 0:
        return maximum
    remaining = 1.0 - min(step, ramp_steps) / ramp_steps
    return maximum * math.exp(-5.0 * remaining**2)
