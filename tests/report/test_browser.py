"""The page in a real browser: it draws, asks for nothing, obeys its own policy, and fits a desk, a phone and paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from automl.report.figures import FIGURES
from automl.report.frames import StudyFrame
from automl.report.render import render
from tests.dashboards.browsing import CHROMIUM, chromium, watch

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
_WIDTHS = "[...document.querySelectorAll('.chart .main-svg')].map(each => each.getBoundingClientRect().width)"

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def page_file(hostile_frame: StudyFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(render(hostile_frame, ("html",)).texts["html"], encoding="utf-8")
    return file


@pytest.mark.parametrize(("width", "height"), [(1200, 900), (390, 844)], ids=["desk", "phone"])
def test_the_page_draws_every_chart_within_its_width(
    browser: Any, page_file: Path, tmp_path: Path, width: int, height: int
) -> None:
    page, said = watch(browser.new_page(viewport={"width": width, "height": height}))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    page.wait_for_function(f"document.querySelectorAll('.js-plotly-plot .main-svg').length >= {3 * len(FIGURES)}")
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert said == []  # no alert, no error, no breach of the content security policy
    assert asked == [page_file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.close()


def test_on_paper_the_charts_fit_and_folded_text_is_open(browser: Any, page_file: Path, tmp_path: Path) -> None:
    page, _ = watch(browser.new_page(viewport={"width": 1400, "height": 900}))
    page.goto(page_file.as_uri())
    page.wait_for_function(f"document.querySelectorAll('.js-plotly-plot .main-svg').length >= {3 * len(FIGURES)}")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    widths = page.evaluate(_WIDTHS)
    assert max(widths) <= 700  # A4 within its margins has 690 CSS pixels
    assert page.evaluate("document.querySelector('details').open")
    assert page.pdf(path=tmp_path / "page.pdf", format="A4")[:4] == b"%PDF"
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    widths = page.evaluate(_WIDTHS)
    assert max(widths) > 700
    page.close()


def test_without_javascript_text_and_tables_are_complete(browser: Any, page_file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page, _ = watch(context.new_page())
    page.goto(page_file.as_uri())
    text = page.inner_text("body")
    assert "Charts need JavaScript" in text
    assert "no clear difference" in text
    assert page.locator("table").count() > 8
    context.close()
