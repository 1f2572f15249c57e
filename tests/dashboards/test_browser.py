"""The pages in a real browser: they update by themselves, obey their policy, fit a phone, and need no mouse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from automl.space.load import parse_space
from automl.sweep.run import run_sweep
from tests.dashboards.browsing import CHROMIUM, chromium, watch
from tests.dashboards.serving import Site, site
from tests.dashboards.test_api import SPACE, write_table
from tests.dashboards.test_pages import PAYLOADS, fill_with_payloads
from tests.databases import fresh_sqlite
from tests.report.studies import HOSTILE

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
PAGES = ("/", "/studies/topics", "/studies/topics/trials", "/studies/topics/layers", "/schedules/nightly", "/doctor")
PAGES += (f"/studies/{quote(HOSTILE, safe='')}", f"/compare?study=topics&study={quote(HOSTILE, safe='')}")

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine: apt-get install chromium")

# WCAG 2: relative luminance and contrast of every text with the nearest background that is not transparent.
_CONTRAST = """() => {
  const light = (c) => { const v = c / 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const lum = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
  const low = [];
  for (const each of document.querySelectorAll("main *, header *, footer *")) {
    if (![...each.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())) continue;
    if (each.closest("svg") || !each.getClientRects().length) continue;
    let behind = each, back = [0, 0, 0, 0];
    while (behind && (back[3] ?? 1) === 0) {
      back = parse(getComputedStyle(behind).backgroundColor);
      behind = behind.parentElement;
    }
    if ((back[3] ?? 1) === 0) back = [255, 255, 255];
    const [a, b] = [lum(parse(getComputedStyle(each).color)), lum(back)].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) low.push(each.outerHTML.slice(0, 120));
  }
  return low;
}"""


# Elements that our templates never make, and attributes that run or fetch something.
_FOREIGN = """() => [...document.querySelectorAll("*")].filter((each) =>
  ["IFRAME", "OBJECT", "EMBED", "IMG", "STYLE", "BASE", "VIDEO", "TEMPLATE", "MATH", "ANIMATE"].includes(
    each.tagName.toUpperCase()) ||
  (each.tagName === "SCRIPT" && !each.src.startsWith(location.origin + "/assets/")) ||
  (each.tagName === "META" && each.httpEquiv) ||
  [...each.attributes].some((given) => given.name.startsWith("on") || given.name === "style" ||
    (["href", "src", "action"].includes(given.name) && new URL(given.value, location).origin !== location.origin))
).map((each) => each.outerHTML.slice(0, 200))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


def opened(browser: Any, width: int = 1280, height: int = 900) -> tuple[Any, list[str]]:
    """A page, and what it complains about: errors, dialogs, breaches of the policy."""
    return watch(browser.new_page(viewport={"width": width, "height": height}))


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)], ids=["desk", "phone"])
def test_pages_fit_and_are_legible_and_nothing_is_run_from_data(
    browser: Any, served: Site, tmp_path: Path, width: int, height: int
) -> None:
    page, said = opened(browser, width, height)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for path in PAGES:
        page.goto(served.url + path)
        assert page.evaluate("document.documentElement.scrollWidth") == width, path
        assert page.evaluate(_CONTRAST) == [], path
        assert page.locator("h1").count() == 1, path
        page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert said == []
    assert [url for url in asked if not url.startswith(served.url)] == []
    page.close()


def test_no_payload_becomes_an_element_or_runs(browser: Any, tmp_path: Path) -> None:
    url = fresh_sqlite(tmp_path)
    fill_with_payloads(url, tmp_path)
    with site(url) as running:
        page, said = opened(browser)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        named = [quote(payload, safe="") for payload in PAYLOADS]
        for path in ("/", "/compare", *(f"/studies/{each}" for each in named[:20])):
            page.goto(running.url + path)
            assert page.evaluate(_FOREIGN) == [], path
        assert said == []
        assert [each for each in asked if not each.startswith(running.url)] == []
        page.close()


def test_the_keyboard_reaches_everything_and_shows_where_it_is(browser: Any, served: Site) -> None:
    page, _ = opened(browser)
    page.goto(f"{served.url}/studies/topics")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the contents"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        where = page.evaluate("document.activeElement.id || document.activeElement.getAttribute('href')")
        if where is not None:  # else beyond the end of the page
            reached.add(where)
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") in ("solid", "auto")
    assert {"live-pause", "scroll-best", "/studies/topics/layers", "/studies/topics/report"} <= reached
    page.close()


def test_a_study_page_follows_a_search_without_being_loaded_again(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = fresh_sqlite(tmp_path)
    monkeypatch.setenv("AUTOML_DB_URL", url)
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path)

    def search(trials: int) -> None:
        run_sweep(parse_space(SPACE.replace("TRIALS", str(trials)), "space.yaml", tmp_path), tmp_path / "cache")

    search(4)
    with site(url) as running:
        page, said = opened(browser)
        page.goto(f"{running.url}/studies/recorded")
        assert page.inner_text("#ended").startswith("4")
        page.evaluate("window.notLoadedAgain = true")
        page.focus("#scroll-best")
        search(12)
        page.locator("#ended", has_text="of 12").wait_for()
        assert page.evaluate("window.notLoadedAgain")
        assert page.evaluate("document.activeElement.id") == "scroll-best"
        page.check("#live-pause")
        assert page.inner_text("#live-status") == "updates are paused"
        assert said == []
        page.close()


def test_a_page_says_when_its_server_has_gone(browser: Any, filled: str) -> None:
    with site(filled) as running:
        page, _ = opened(browser)
        page.goto(f"{running.url}/studies/topics")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.locator("#live-status.problem").wait_for()
    page.close()


def test_without_javascript_the_pages_are_complete(browser: Any, served: Site) -> None:
    context = browser.new_context(java_script_enabled=False)
    page, _ = watch(context.new_page())
    page.goto(f"{served.url}/studies/topics")
    assert page.locator("svg path").count() >= 3
    assert not page.locator(".live-bar").is_visible()
    page.goto(f"{served.url}/studies/topics/trials")
    page.select_option("select[name=order]", "best")
    page.click("text=Show")
    assert "order=best" in page.url
    context.close()


def test_optunas_dashboard_opens_behind_the_same_guard(browser: Any, served: Site) -> None:
    pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed")
    page, said = opened(browser)
    page.goto(f"{served.url}/optuna")
    page.wait_for_selector("text=topics")
    assert said == []
    page.close()


def test_the_report_draws_in_its_sandbox(browser: Any, served: Site) -> None:
    page, said = opened(browser)
    page.goto(f"{served.url}/studies/topics/report")
    page.wait_for_selector(".js-plotly-plot .main-svg")
    assert said == []
    assert page.evaluate("self.origin") == "null"
    page.close()
