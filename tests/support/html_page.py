"""A page for the tests: its tags, and what every page must fulfill."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path


class Page(HTMLParser):
    """Tags with their attributes, and the text of scripts by id."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.text = file.read_text(encoding="utf-8")
        self.inside = ""
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = str(dict(attrs).get("id")) if tag == "script" else ""

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.scripts[self.inside] = self.scripts.get(self.inside, "") + data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def links_elsewhere(self) -> list[str]:
        """What a page in one file must not have."""
        links = [each.get("src") or each.get("href") or each.get("srcset") for _, each in self.tags]
        styles = re.findall(r"url\([^)]*\)", self.text.split("</style>")[0])
        return [link for link in links if link and not link.startswith("data:")] + styles

    def check_accessible(self) -> None:
        """A language, alternatives to pictures, and headings in order."""
        assert self.all("html")[0]["lang"] == "en"
        assert all(each.get("alt") for each in self.all("img"))
        levels = [int(tag[1]) for tag, _ in self.tags if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1 and all(after - before <= 1 for before, after in pairwise(levels))
