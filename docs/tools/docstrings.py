"""A Griffe extension: the package's docstrings, in which Sphinx's roles and literal blocks occur, as Markdown."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, GriffeLoader, Module, Object

ROLE = re.compile(r":[a-z]+:`(?:~(?:[^`]*\.)?)?([^`]+)`")
EXAMPLE = re.compile(r"^Example:\n((?:(?: {4}.*)?\n)*(?: {4}.*)?)", re.MULTILINE)


class AsMarkdown(Extension):
    """Changes the docstring of every object that is loaded, and finds the bundle's modules beside the package."""

    def on_package(self, *, pkg: Module, loader: GriffeLoader, **_: Any) -> None:
        # alhvr_trainer.bundle, as setup.cfg installs it
        if pkg.name == "alhvr_trainer" and "bundle" not in pkg.members:
            pkg.set_member("bundle", loader.load("bundle"))

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring: str) -> str:
    """Roles as code, literal blocks and examples as blocks of code.

    Example:
        >>> as_markdown("As :func:`~a.b.c` and :class:`a.D`, see::")
        'As `c` and `a.D`, see:'
    """
    text = ROLE.sub(r"`\1`", docstring)
    text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
    return EXAMPLE.sub(lambda found: _examples(found[1]), text)


def _examples(lines: str) -> str:
    """Google's section of examples; what is no Python session is for a shell."""
    if ">>>" in lines:
        return f"Examples:\n{lines}"
    return f"Examples:\n    ```bash\n{lines.rstrip()}\n    ```\n"
