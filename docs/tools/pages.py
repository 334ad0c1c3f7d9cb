"""MkDocs hooks: the repository's Markdown files as pages, unchanged and under their own paths, and an API generated.

All files keep their places relative to each other, so that links which lead somewhere on a code host do so on the site.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

from alhvr_trainer import __all__ as public_names
from alhvr_trainer.commands import COMMANDS

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOK = REPOSITORY / "docs" / "tutorial.ipynb"
LINK = re.compile(r"\]\(([^)\s#]+)")
ROLE = re.compile(r":[a-z]+:<code>")
FOLDER_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s#]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """What the navigation names, what that links to, and so on; the theme's files stay."""
    docs = Path(config.docs_dir)
    found = Files([file for file in files if not file.src_dir or Path(file.src_dir) != docs])
    named = list(_leaves(config.nav))
    for uri, make in GENERATED.items():
        found.append(File.generated(config, uri, content=make()))
    for path in linked_files([NOTEBOOK, *(REPOSITORY / uri for uri in named if uri not in GENERATED)]):
        uri = path.relative_to(REPOSITORY).as_posix()
        found.append(File(uri, str(REPOSITORY), config.site_dir, config.use_directory_urls))
    return found


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Links that a site cannot follow, and lists in the way of Python-Markdown."""
    folder = (REPOSITORY / page.file.src_uri).parent
    if page.file.src_uri not in GENERATED:
        markdown = markdown.replace("tutorial.ipynb)", "tutorial.md)")
    return four_spaces(without_folder_links(markdown, folder))


def on_page_content(html: str, page: Page, **_: object) -> None:
    """A warning, with which a strict build fails, where docstrings.py left a role of Sphinx."""
    for role in ROLE.findall(html):
        logging.getLogger("mkdocs").warning(f"{page.file.src_uri} shows a role of Sphinx: {role}")


def _leaves(nav: object) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, (list, dict)):
        for each in nav.values() if isinstance(nav, dict) else nav:
            yield from _leaves(each)


def linked_files(start: list[Path]) -> list[Path]:
    """Files that can be reached from these by relative links, themselves included."""
    found, waiting = set(start), list(start)
    while waiting:
        file = waiting.pop()
        if file.suffix != ".md":
            continue
        links = LINK.findall(without_code(file.read_text(encoding="utf-8")))
        targets = {(file.parent / link).resolve() for link in links if "://" not in link}
        new = {target for target in targets if target.is_file()} - found
        found |= new
        waiting += new
    return sorted(found)


def without_code(markdown: str) -> str:
    """Without blocks of code, in which brackets are no links."""
    return re.sub(r"```.*?```", "", markdown, flags=re.DOTALL)


def without_folder_links(markdown: str, folder: Path) -> str:
    """A link to a folder becomes its text: a site has no page for it."""

    def shown(link: re.Match[str]) -> str:
        text, target = link.groups()
        return text if (folder / target).is_dir() else link[0]

    return FOLDER_LINK.sub(shown, markdown)


def four_spaces(markdown: str) -> str:
    """What belongs to an item of a list, indented by two spaces, as Python-Markdown wants it: by four.

    Example:
        >>> four_spaces("- item\\n\\n  more of it")
        '- item\\n\\n    more of it'
    """
    lines: list[str] = []
    in_code = False
    for line in markdown.split("\n"):
        in_code ^= line.startswith("```")
        if lines and lines[-1].strip() == "```" and line.startswith("- "):
            lines.append("")  # else the item would belong to the code
        lines.append(f"  {line}" if line.startswith("  ") and not in_code else line)
    return "\n".join(lines)


def tutorial() -> str:
    """The notebook as a page, not executed."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    text, _ = MarkdownExporter().from_notebook_node(notebook)
    title, _, rest = text.lstrip().partition("\n")
    return f"{title}\n\nThis page is a notebook without its outputs: [tutorial.ipynb](tutorial.ipynb).\n{rest}"


def api() -> str:
    """What ``from alhvr_trainer import ...`` gives: the commands in their usual order, then the rest."""
    rest = [name for name in public_names if name not in COMMANDS and name != "__version__"]
    return "\n\n".join(
        [
            "# API",
            "What `from alhvr_trainer import …` gives. The modules of `alhvr_trainer.losses` have [their own page]"
            "(api_losses.md).",
            "## Commands",
            'Each is a command of `alhvr` as well: `train(27, "2d", fold=0)` is `alhvr train -d 27 -c 2d -f 0`.',
            *(f"::: alhvr_trainer.{name}" for name in COMMANDS),
            "## The method",
            *(f"::: alhvr_trainer.{name}" for name in rest),
        ]
    )


def api_losses() -> str:
    """The modules of the losses, ALHVR's first."""
    names = sorted(file.stem for file in (REPOSITORY / "alhvr_trainer" / "losses").glob("[!_]*.py"))
    names.sort(key=lambda name: name != "alhvr")
    return "\n\n".join(
        [
            "# API of the losses",
            "The methods' formulas in PyTorch alone. What they mean, and how they differ from the papers: "
            "[methods](methods.md).",
            *(_module(f"alhvr_trainer.losses.{name}") for name in names),
        ]
    )


def _module(name: str) -> str:
    return f"::: {name}\n    options:\n      heading_level: 2\n      show_root_full_path: true"


GENERATED: dict[str, Callable[[], str]] = {
    "docs/tutorial.md": tutorial,
    "docs/api.md": api,
    "docs/api_losses.md": api_losses,
}
"""Pages that are no files; the others do not link to them, for on a code host they are missing."""
