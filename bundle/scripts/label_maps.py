"""Which classes are measured in label maps, and which values these may have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Labels:
    """What ``dataset.json`` says of the labels."""

    classes: dict[str, tuple[int, ...]]
    """Name -> values, without the background; several values make a region, and regions may overlap."""
    ignore: int | None
    """Marks unannotated voxels of references."""

    @property
    def values(self) -> set[int]:
        """All values that a reference may have."""
        ignored = set() if self.ignore is None else {self.ignore}
        return {0, *ignored, *(value for values in self.classes.values() for value in values)}


def labels_of(entries: Mapping[str, int | Sequence[int]]) -> Labels:
    """``labels`` of a ``dataset.json``; there are no classes if it has the background alone.

    Example:
        >>> labels_of({"background": 0, "whole": [1, 2], "core": 2, "ignore": 3})
        Labels(classes={'whole': (1, 2), 'core': (2,)}, ignore=3)
    """
    values = {name: (value,) if isinstance(value, int) else tuple(value) for name, value in entries.items()}
    ignore = values.pop("ignore", None)
    classes = {name: of_class for name, of_class in values.items() if of_class != (0,)}
    return Labels(classes, None if ignore is None else ignore[0])


def unknown_values(array: np.ndarray, labels: Labels, name: object) -> str | None:
    """Values of a label map that are not labels, as one line; None if there are none."""
    unknown = sorted(set(np.unique(array).tolist()) - labels.values)
    if not unknown:
        return None
    return (
        f"{name} has values that are not labels of dataset.json: {listed(f'{value:g}' for value in unknown)}; "
        f"labels are {', '.join(str(value) for value in sorted(labels.values))}"
    )


def listed(names: Iterable[str], most: int = 10) -> str:
    """Names as a message shows them, in order; of many only the first."""
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
