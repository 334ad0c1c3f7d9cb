"""What changes with the training step: the unsupervised weight, the decay of a moving average."""

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


def average_decay(step: int, decay: float) -> float:
    """Decay of the moving average of a network's weights, ``min(1 - 1 / (t + 1), alpha)``.

    At first the average is the plain mean of all weights since the first step, so the random initial weights leave no
    trace even in short trainings.

    Args:
        step: iterations done before this one, t.
        decay: alpha, in force from t = alpha / (1 - alpha) on.

    Source: not in the papers. The released code of Mean Teacher (PyTorch) and of UA-MT does so; the former counts from
    t = 1, so that half of the first average are the initial weights. FixMatch's code has alpha from the start.

    Example:
        >>> average_decay(0, 0.99), average_decay(1, 0.99), average_decay(1000, 0.99)
        (0.0, 0.5, 0.99)
    """
    return min(1.0 - 1.0 / (step + 1), decay)
