"""Signs in the epoch means that training has collapsed, each with what to change.

Each sign must persist for several epochs: shares and losses vary from epoch to epoch, and users would learn to ignore a
warning that comes and goes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, pvariance

from alhvr_trainer.trainers.history import DISAGREEMENT, HistoryKeys, label_key, pseudo_label_key

History = Mapping[str, Sequence[float]]

IN_A_ROW = 5
"""Epochs in a row in which a class must be missing, or the networks alike."""
MISSING_BELOW = 0.01
"""A class is missing where its share among the pseudo-labels is below this part of its share in the labels.

Labeled patches are drawn around foreground and unlabeled ones anywhere, so a small structure is legitimately much rarer
in the latter.
"""
ALIKE_BELOW = 1e-3
"""The networks are alike where they differ on fewer voxels than this part of the foreground.

Good networks still differ along boundaries, on more than a hundredth of the foreground.
"""
LOSS_WINDOW = 10
"""Epochs over which losses are averaged before they are compared."""
LOSS_RISE = 0.05
"""By how much the supervised loss must have risen. Absolute: nnU-Net's loss runs from about 1 to -1, through 0."""
LOSS_FALL = 0.1
"""By which part of themselves the unsupervised terms, which are never negative, must have fallen."""
STANDARD_ERRORS = 4.0
"""A rise below so many standard errors is chance."""


def grace_epochs(num_epochs: int) -> int:
    """Epochs at the start in which a class may be missing: networks often predict background alone at first.

    Example:
        >>> grace_epochs(1000), grace_epochs(60)
        (50, 10)
    """
    return max(10, num_epochs // 20)


def collapse_warnings(history: History, classes: Mapping[int, str], keys: HistoryKeys, grace: int = 10) -> list[str]:
    """One line for each sign of collapse that the last epochs show: what was seen, and what to change.

    Args:
        history: epoch means by name; NaN where a value is unknown, which raises no warning.
        classes: names of the foreground classes, or regions, by number.
        keys: names in the history, of losses that fall together with the supervised one when all is well.
        grace: epochs at the start in which a class may be missing.

    Example:
        >>> keys = HistoryKeys(("a",), ("mse",), classes=(1,))
        >>> healthy = {name: [0.1] * 20 for name in keys.all()}
        >>> collapse_warnings(healthy, {1: "tumor"}, keys)
        []
        >>> collapse_warnings({**healthy, "pseudo_label_1": [0.0] * 20}, {1: "tumor"}, keys)[0][:64]
        'class 1 (tumor) has vanished from the pseudo-labels: in epochs '
    """
    signs = [_vanished(history, number, name, grace) for number, name in classes.items()]
    if keys.co_trained:
        signs.append(_identical(history, list(classes)))
    signs.append(_drifting_apart(history, keys))
    return [line for line in signs if line]


def _vanished(history: History, number: int, name: str, grace: int) -> str | None:
    pseudo, labels = history[pseudo_label_key(number)], history[label_key(number)]
    if len(pseudo) < grace + IN_A_ROW:
        return None
    last = list(zip(pseudo, labels, strict=True))[-IN_A_ROW:]
    if not all(share < MISSING_BELOW * expected for share, expected in last):  # false where no label shows the class
        return None
    return (
        f"class {number} ({name}) has vanished from the pseudo-labels: in {_epochs(history, IN_A_ROW)} it covers "
        f"{fmean(p for p, _ in last):.2%} of their voxels, {fmean(e for _, e in last):.2%} in the labels. Lower "
        '"alhvr.consistency_weight" or raise "alhvr.ramp_fraction"; give more labeled samples per step (lower '
        '"alhvr.unlabeled_batch_size" or raise "batch_size"); check that the labels of this class are right and that '
        "the unlabeled images show it"
    )


def _identical(history: History, numbers: Sequence[int]) -> str | None:
    different = history[DISAGREEMENT][-IN_A_ROW:]
    pseudo = [history[pseudo_label_key(number)][-IN_A_ROW:] for number in numbers]
    foreground = [sum(shares) for shares in zip(*pseudo, strict=True)]
    if len(different) < IN_A_ROW:
        return None
    # two networks that predict background alone agree, too: their classes have vanished, which is another warning
    if not all(d < ALIKE_BELOW * f for d, f in zip(different, foreground, strict=True)):
        return None
    return (
        f"the two networks have become identical: in {_epochs(history, IN_A_ROW)} they differ on "
        f"{fmean(different):.4%} of the voxels, with {fmean(foreground):.2%} foreground, so they have nothing left to "
        'teach each other. Start again with another "alhvr.seed"; lower "alhvr.consistency_weight" or raise '
        '"alhvr.ramp_fraction"; check that both networks do not start from the same weights'
    )


def _drifting_apart(history: History, keys: HistoryKeys) -> str | None:
    """The last window of epochs against the earlier one with the lowest supervised loss: slow drifts show as well."""
    supervised = [fmean(values) for values in zip(*(history[key] for key in keys.supervised), strict=True)]
    unsupervised = [sum(values) for values in zip(*(history[key] for key in keys.terms), strict=True)]
    now = len(supervised) - LOSS_WINDOW
    if now < LOSS_WINDOW:
        return None
    best = min(range(now - LOSS_WINDOW + 1), key=lambda start: fmean(_window(supervised, start)))
    before, after = _window(supervised, best), _window(supervised, now)
    rise = fmean(after) - fmean(before)
    error = math.sqrt((pvariance(before) + pvariance(after)) / LOSS_WINDOW)
    terms_before, terms_after = fmean(_window(unsupervised, best)), fmean(_window(unsupervised, now))
    if not (rise > max(LOSS_RISE, STANDARD_ERRORS * error) and terms_after < (1 - LOSS_FALL) * terms_before):
        return None
    return (
        f"the supervised loss rises while the unsupervised one falls: from epochs {best} to {best + LOSS_WINDOW - 1} "
        f"to {_epochs(history, LOSS_WINDOW)} the former went from {fmean(before):.3f} to {fmean(after):.3f}, the "
        f"latter from {terms_before:.3f} to {terms_after:.3f}: they agree with each other, not with the labels. "
        'Lower "alhvr.consistency_weight" or raise "alhvr.ramp_fraction"; give more labeled samples per step (lower '
        '"alhvr.unlabeled_batch_size" or raise "batch_size")'
    )


def _window(values: Sequence[float], start: int) -> Sequence[float]:
    return values[start : start + LOSS_WINDOW]


def _epochs(history: History, count: int) -> str:
    last = len(next(iter(history.values()))) - 1
    return f"epochs {last - count + 1} to {last}"
