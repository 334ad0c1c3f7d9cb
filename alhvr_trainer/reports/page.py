"""The parts that all pages share: skeleton, styles, tables and pictures. A page is one file without references."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from alhvr_trainer.reports.figures import Figure, plt

TEMPLATES = Path(__file__).parent
"""``page.html.j2``, the skeleton, and ``parts.html.j2``, the macros ``table`` and ``picture``."""


def render(template: str, folder: Path = TEMPLATES, **values: Any) -> str:
    """A page as text.

    Args:
        template: name of a Jinja template, which extends ``page.html.j2``.
        folder: where it lies.
        values: what it shows; all text is escaped.

    Example:
        >>> render("report.html.j2", title="27, 2d, fold 0", **parts)[:15]     # doctest: +SKIP
        '<!doctype html>'
    """
    environment = Environment(loader=FileSystemLoader([folder, TEMPLATES]), autoescape=True, undefined=StrictUndefined)
    environment.policies["json.dumps_kwargs"] = {}  # by default sorted by key, and a case's image comes first
    return environment.get_template(template).render(values)


def encoded(figure: Figure, dpi: int = 90) -> str:
    """The figure as base64 text of a PNG, which needs no separate file. Closes it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()
