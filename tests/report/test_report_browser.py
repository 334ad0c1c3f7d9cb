"""The page in headless Chromium: it loads without errors, NiiVue draws, the controls act.

Playwright's own Chromium is taken, or one that is installed.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

pytest_plugins = ["report_page"]
pytestmark = pytest.mark.any_nnunet

WITHOUT_GPU = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox"]
INSTALLED = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with api.sync_playwright() as playwright:
        browser = None
        for file in (None, *filter(None, map(shutil.which, INSTALLED))):
            with suppress(api.Error):
                browser = playwright.chromium.launch(executable_path=file, args=WITHOUT_GPU)
                break
        if browser is None:
            pytest.skip("there is no Chromium here: python -m playwright install chromium")
        yield browser
        browser.close()


class Opened:
    """The page, and what went wrong in it."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.page = browser.new_page(viewport={"width": 1100, "height": 1000}, **options)
        self.wrong: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda said: self.wrong.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())

    def wait_for(self, text: str) -> None:
        status = "document.getElementById('viewer-status').textContent"
        self.page.wait_for_function(f"text => {status}.includes(text)", arg=text)

    def canvas(self) -> np.ndarray:
        """(rows, columns, 3) of what the viewer shows, once it has drawn."""
        self.page.wait_for_timeout(500)
        found: np.ndarray = imread(io.BytesIO(self.page.locator("#viewer canvas").screenshot()))[..., :3]
        return found

    def switch(self, name: str) -> Any:
        return self.page.get_by_role("checkbox", name=name, exact=True)


@pytest.fixture
def opened(chromium: Any, page_once: Path) -> Iterator[Opened]:
    opened = Opened(chromium, page_once)
    opened.wait_for("Overlays: ")
    yield opened
    opened.page.close()


def colors(picture: np.ndarray) -> int:
    return len(np.unique(picture.reshape(-1, 3), axis=0))


def colored(picture: np.ndarray) -> int:
    """Pixels that are not gray: those of overlays, and of the cross."""
    return int(np.count_nonzero(np.ptp(picture, axis=2) > 0.1))


def test_page_loads_and_the_viewer_draws(opened: Opened, page_once: Path):
    opened.wait_for("case_002, mean Dice")
    assert colors(opened.canvas()) > 50
    assert opened.wrong == []
    assert {url for url in opened.requests if not url.startswith(("data:", "blob:"))} == {page_once.as_uri()}
    label = opened.page.locator("#viewer canvas").get_attribute("aria-label")
    assert label.startswith("Case case_002, mean Dice") and label.endswith("Overlays: reference, prediction.")


def test_switches_act_by_keyboard(opened: Opened):
    with_both = colored(opened.canvas())
    opened.switch("reference").press("Space")
    opened.wait_for("Overlays: prediction.")
    with_one = colored(opened.canvas())
    opened.switch("prediction").press("Space")
    opened.wait_for("Overlays: none.")
    without = colored(opened.canvas())
    assert with_both > with_one > 1.5 * without
    opened.switch("prediction").press("Space")
    opened.wait_for("Overlays: prediction.")
    assert colored(opened.canvas()) == pytest.approx(with_one, rel=0.02)
    assert opened.switch("entropy").is_disabled() and opened.switch("regions").is_disabled()
    assert opened.wrong == []


def test_another_case_has_other_overlays(opened: Opened):
    chooser = opened.page.get_by_label("Case", exact=True)
    chooser.select_option(index=2)
    opened.wait_for("expected Dice")
    opened.wait_for("Overlays: prediction.")
    assert opened.switch("reference").is_disabled()
    opened.switch("prediction").uncheck()
    gray = opened.canvas()
    for name in ("entropy", "regions"):
        opened.switch(name).check()
        opened.wait_for(f"Overlays: {name}.")
        assert colored(opened.canvas()) > 2 * colored(gray)
        opened.switch(name).uncheck()
    chooser.select_option(index=0)
    opened.wait_for("case_002, mean Dice")
    assert opened.switch("reference").is_enabled()
    assert opened.wrong == []


def test_button_of_a_case_shows_it(opened: Opened):
    opened.page.get_by_role("button", name="Show case_001 in 3D").click()
    opened.wait_for("case_001, mean Dice")
    assert opened.page.evaluate("document.activeElement.id") == "viewer-case"


def test_position_and_view_change_the_picture(opened: Opened):
    before = opened.canvas()
    slider = opened.page.get_by_label("bottom to top")
    slider.focus()
    for _ in range(6):
        opened.page.keyboard.press("ArrowRight")
    moved = opened.canvas()
    assert float(slider.input_value()) == 53 and np.any(moved != before)
    opened.page.get_by_label("View", exact=True).select_option("sagittal")
    assert np.any(opened.canvas() != moved)
    assert opened.wrong == []


def test_regions_over_time_are_switched_on_one_after_the_other(opened: Opened):
    opened.page.get_by_label("Case", exact=True).select_option(index=4)
    opened.wait_for("scan_000, Ω3, late 0.")
    opened.wait_for("Overlays: regions, late.")
    late = opened.canvas()
    opened.switch("regions, late").uncheck()
    opened.switch("regions, early").check()
    opened.wait_for("Overlays: regions, early.")
    early = opened.canvas()
    assert colored(early) > 0 and np.any(early != late)
    assert opened.switch("prediction").is_disabled()
    assert opened.wrong == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault(scheme: str, chromium: Any, page_once: Path):
    """Names, roles, contrast, order and focus, as the Web Content Accessibility Guidelines ask for."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    opened = Opened(chromium, page_once, color_scheme=scheme)
    opened.wait_for("Overlays: ")
    found = axe.Axe().run(opened.page)
    assert found.violations_count == 0, found.generate_report()
    assert len(found.response["passes"]) > 20
    opened.page.close()


def test_screen_readers_are_told_of_everything(opened: Opened):
    """Chromium's accessibility tree, which is what they read."""
    tree = opened.page.locator("main").aria_snapshot()
    for line in (
        'region "Cases in 3D"',
        'combobox "Case"',
        'checkbox "reference" [checked]',
        'checkbox "entropy" [disabled]',
        'slider "bottom to top"',
        'list "Colors: regions"',
        'img "Case case_002, mean Dice',
        'button "Show scan_001 in 3D"',
        "caption: Validation cases, lowest Dice first",
    ):
        assert line in tree, tree


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_follows_the_color_scheme(scheme: str, chromium: Any, page_once: Path):
    page = Opened(chromium, page_once, color_scheme=scheme).page
    style = "getComputedStyle(document.body)"
    background, text = (page.evaluate(f"{style}.{name}") for name in ("backgroundColor", "color"))
    brightness = [sum(map(int, color[4:-1].split(","))) for color in (background, text)]
    assert brightness == sorted(brightness, reverse=scheme == "light") and abs(np.diff(brightness)[0]) > 400
    source = page.locator("picture").first.locator("img").evaluate("image => image.currentSrc")
    dark = page.locator("picture source").first.get_attribute("srcset")
    assert (source == dark) == (scheme == "dark")
    page.close()


def test_without_webgl_the_pictures_remain(chromium: Any, page_once: Path):
    page = chromium.new_page()
    page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    page.goto(page_once.as_uri())
    page.get_by_text("This browser has no WebGL 2").wait_for()
    assert page.get_by_label("Case", exact=True).is_disabled()
    assert page.locator("img").count() == 7
    page.close()
