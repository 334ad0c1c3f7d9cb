"""The registry of methods: each trainer's own file declares its name, paper and settings."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

TRAINERS_PACKAGE = "alhvr_trainer.trainers"
AnyTrainer = TypeVar("AnyTrainer", bound=type)


@dataclass(frozen=True)
class Method:
    """A method as command line, benchmarks and model cards name it."""

    trainer: Any
    """The class; ``settings_class`` is its settings."""
    name: str
    long_name: str
    summary: str
    """What it does with unlabeled images; empty for baselines, which do not use them."""
    reference: str


_METHODS: dict[str, Method] = {}


def method(
    name: str, long_name: str = "", summary: str = "", reference: str = ""
) -> Callable[[AnyTrainer], AnyTrainer]:
    """Declare a trainer: ``@method("CPS", "cross pseudo supervision", summary=..., reference=...)``."""

    def register(trainer: AnyTrainer) -> AnyTrainer:
        _METHODS[trainer.__name__] = Method(trainer, name, long_name, summary, reference)
        return trainer

    return register


@lru_cache(maxsize=1)
def methods() -> dict[str, Method]:
    """All methods by the name of their trainer, sorted; imports every trainer, and so torch and nnU-Net."""
    folder = Path(__file__).resolve().parents[1] / "trainers"
    for module in pkgutil.iter_modules([str(folder)]):
        import_module(f"{TRAINERS_PACKAGE}.{module.name}")
    return dict(sorted(_METHODS.items()))  # not in the order in which the modules were imported


def method_of(trainer: str) -> Method | None:
    """The method behind a trainer or a variant of it; None for trainers that are not this package's.

    Example:
        >>> method_of("CPSTrainer_5epochs").name, method_of("nnUNetTrainer")
        ('CPS', None)
    """
    return next((found for name, found in methods().items() if trainer.startswith(name)), None)


def semi_supervised_method_of(trainer: str) -> Method | None:
    """As :func:`method_of`, but None for the baselines, which see no unlabeled image."""
    found = method_of(trainer)
    return found if found and found.summary else None


def settings_of_all_methods() -> Iterator[Any]:
    """The settings classes, each once."""
    return iter(dict.fromkeys(each.trainer.settings_class for each in methods().values()))
