"""What changes with the training step: the unsupervised weight, the decay of a moving average."""

from __future__ import annotations

import math


def ramp_up(share: float) -> float:
    """``exp(-5 * (1 - share)^2)``, from nearly 0 to 1: the Gaussian ramp-up of Laine & Aila (ICLR 2017).

    Args:
        share: of the ramp that is done, from 0 to 1.

    Example:
        >>> round(ramp_up(0.0), 4), round(ramp_up(0.5), 4), ramp_up(1.0)
        (0.0067, 0.2865, 1.0)
    """
    return math.exp(-5.0 * (1.0 - share) ** 2)


def consistency_weight(step: float, ramp_steps: float, maximum: float = 0.1) -> float:
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
    return maximum * ramp_up(min(step, ramp_steps) / ramp_steps)


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
