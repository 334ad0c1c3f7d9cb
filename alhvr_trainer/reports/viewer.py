"""NiiVue in the page: its module as the wheel of ipyniivue ships it, the volumes, and what each overlay looks like.

The module is driven through the interface that anywidget defines (``initialize({model})``, ``render({model, el})``), by
``viewer.js.j2``. Everything lies in the page as text: a page opened as a file may fetch nothing.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from matplotlib.colors import to_rgb

from alhvr_trainer.bundle.scripts.uncertainty import ENTROPY
from alhvr_trainer.reports.cases import IMAGE, PREDICTION, REFERENCE, REGIONS_AT
from alhvr_trainer.reports.figures import REGION_COLORS, class_colors
from alhvr_trainer.reports.slices import REGION_NAMES, REGION_VOLUMES
from alhvr_trainer.reports.volumes import Volume, window

EXTRA = 'pip install "alhvr-trainer[report]"'
OVERLAYS = (REFERENCE, PREDICTION, ENTROPY, *REGION_VOLUMES)
SHOWN_AT_FIRST = (REFERENCE, PREDICTION, REGIONS_AT["late"])
LEAST_ENTROPY = 0.05
"""Less is not shown."""
PALE = 0.45
"""How much white is in the colors of the reference, to tell it from the prediction."""


def niivue_module() -> str | None:
    """NiiVue's module as base64 text of its gzipped source; None if ipyniivue is not installed."""
    found = find_spec("ipyniivue")  # not imported: that takes a second, and starts what a notebook needs
    if found is None or not found.submodule_search_locations:
        return None
    file = Path(found.submodule_search_locations[0], "static", "widget.js")
    if not file.is_file():
        return None
    return base64.b64encode(gzip.compress(file.read_bytes(), mtime=0)).decode()


def look(name: str, volume: Volume, classes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """How the viewer shows a volume: ``colormap`` or ``lut``, RGBA of the labels from 0, and the values of its ends.

    Args:
        name: one of the image and :data:`OVERLAYS`.
        volume: for the values.
        classes: name -> label values, of which a later one paints over earlier ones.
    """
    if name == IMAGE:
        low, high = window(volume)
        return {"colormap": "gray", "low": low, "high": high}
    if name == ENTROPY:
        return {"colormap": "inferno", "low": LEAST_ENTROPY, "high": 1.0}
    if name in REGION_VOLUMES:
        return _labels(REGION_COLORS, 0.0)
    colors = class_colors(list(classes))
    by_value = {value: colors[each] for each, values in classes.items() for value in values}
    return _labels(by_value, PALE if name == REFERENCE else 0.0)


def legend(name: str, classes: Mapping[str, Sequence[int]]) -> list[tuple[str, str]]:
    """Color and meaning of what an overlay shows."""
    if name == ENTROPY:
        return [("#fcffa4", "entropy 1, a guess"), ("#bc3754", "entropy 0.5"), ("#000004", f"entropy {LEAST_ENTROPY}")]
    if name in REGION_VOLUMES:
        return [(color, REGION_NAMES[region]) for region, color in REGION_COLORS.items()]
    white = PALE if name == REFERENCE else 0.0
    return [(_hex(color, white), f"{name}: {each}") for each, color in class_colors(list(classes)).items()]


def _mixed(color: str, white: float) -> list[int]:
    return [round(255 * (white + (1 - white) * part)) for part in to_rgb(color)]


def _hex(color: str, white: float) -> str:
    return "#" + "".join(f"{part:02x}" for part in _mixed(color, white))


def _labels(colors: Mapping[int, str], white: float) -> dict[str, Any]:
    """The table of the colors of labels; those without a color are transparent."""
    table = [[0, 0, 0, 0] for _ in range(max(colors, default=0) + 1)]
    for value, color in colors.items():
        table[value] = [*_mixed(color, white), 255 if value else 0]
    return {"lut": [part for row in table for part in row], "low": 0.0, "high": float(len(table) - 1)}
