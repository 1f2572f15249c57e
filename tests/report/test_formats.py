"""The page, the Markdown and the JSON: hostile text stays text, nothing is requested, the promises of size and keys."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from automl.report.figures import FIGURES
from automl.report.frames import StudyFrame
from automl.report.methods_chart import metric_by_cost
from automl.report.render import Report, render
from automl.report.squeeze_chart import squeeze_curve
from automl.report.write import study_frame
from automl.storage.sql import open_database
from tests.databases import fresh_sqlite
from tests.report.studies import HOSTILE, add_study, repeat_trials, space_of, squeeze_row, verification_result

_REQUESTING = {"src", "href", "action", "data", "poster", "background", "srcset", "formaction", "ping", "manifest"}


class Page(HTMLParser):
    """What a browser would find: elements with their attributes, scripts and styles with their text, visible text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.styles: list[str] = []
        self.visible = ""
        self._inside: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else None
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag == "style":
            self.styles.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif self._inside == "style":
            self.styles[-1] += data
        else:
            self.visible += data


@pytest.fixture(scope="module")
def report(hostile_frame: StudyFrame) -> Report:
    return render(hostile_frame)


@pytest.fixture(scope="module")
def page(report: Report) -> Page:
    return Page(report.texts["html"])


def test_nothing_in_the_page_asks_for_anything_outside(page: Page) -> None:
    links = [
        (tag, name, value)
        for tag, attributes in page.elements
        for name, value in attributes.items()
        if name in _REQUESTING and not (tag == "a" and (value or "").startswith("#"))
    ]
    assert links == []
    assert {tag for tag, _ in page.elements}.isdisjoint({"link", "iframe", "object", "embed", "img", "base", "form"})
    assert not any("url(" in style or "@import" in style for style in page.styles)


def test_hostile_text_is_shown_and_never_becomes_markup(page: Page) -> None:
    assert HOSTILE.split("`")[0] in page.visible
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    kinds = [attributes.get("type") for attributes, _ in page.scripts]
    assert kinds.count(None) == 2  # the library and ours; the rest is data
    assert set(kinds) == {None, "application/json"}


def test_only_our_two_scripts_may_run(page: Page) -> None:
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy") or ""
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    digests = {
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for attributes, text in page.scripts
        if "type" not in attributes
    }
    assert set(rules["script-src"].split()) == digests
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"


def test_every_chart_is_there_with_its_words_and_no_hostile_label(page: Page) -> None:
    charts = {attributes["data-for"]: json.loads(text) for attributes, text in page.scripts if "type" in attributes}
    assert set(charts) == {f"chart-{name}" for name in FIGURES}
    assert not re.search(r"<(script|img|a) ", json.dumps(charts))
    labels = [attributes.get("aria-label") for _, attributes in page.elements if attributes.get("role") == "img"]
    assert len(labels) == len(charts)
    assert all(labels)


def test_text_and_tables_need_no_script(report: Report) -> None:
    without = re.sub(r"<script.*?</script>", "", report.texts["html"], flags=re.DOTALL)
    visible = Page(without).visible
    for sentence in report.findings.sentences:
        assert sentence.split("`")[0] in visible
    for heading in ("Is the winner a winner?", "Which learning rate for which rank", "What went wrong"):
        assert heading in visible
    assert "no clear difference" in visible


def test_every_format_names_the_level_of_each_interval(report: Report, page: Page) -> None:
    comparisons = json.loads(report.texts["json"])["verification"]["comparisons"]
    assert [each["level"] for each in comparisons] == [0.98, 0.98, 0.96]
    assert "intervals at 96 % and 98 %" in page.visible
    assert "+0.330 to +0.390 | 98 % |" in report.texts["markdown"]
    assert not any("95 % interval" in text for text in report.texts.values())


def test_a_suggestion_is_unverified_until_a_verification_has_run(hostile_frame: StudyFrame) -> None:
    assert hostile_frame.suggestion is not None
    bare = replace(hostile_frame, suggestion=replace(hostile_frame.suggestion, status="not_run"))
    assert "UNVERIFIED" in render(bare, ("markdown",)).texts["markdown"]
    verified = render(hostile_frame, ("markdown",)).texts["markdown"]
    assert "UNVERIFIED" not in verified
    assert "no measurable gain over even ranks" in verified


def test_markdown_lets_no_hostile_text_become_markup(report: Report) -> None:
    text = re.sub(r"^(```+).*?^\1$|`[^`\n]*`", "", report.texts["markdown"], flags=re.DOTALL | re.MULTILINE)
    assert "<" not in text.replace("\\<", "")
    tables = [line for line in text.splitlines() if line.startswith("|")]
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in tables]
    assert tables
    assert all(width >= 3 for width in widths)


KEYS = """
automl baseline best counts database evidence failures findings forgetting ground made_at modules next_command
parameter_importance pareto provenance rank_gate rates_by_rank recipe schema search space spending spent squeeze
stop_reasons study suggestion targets_by_size trials verification warnings
"""
TRIAL_KEYS = """
adapter attempts checkpoint curve error examples forgetting metrics number params seconds state steps stop_reason tokens
trainable_params trained_rate value
"""
VERIFICATION_KEYS = """
advice arms beats_majority comparisons deploy done headline majority methods methods_text metric number optimism
optimism_high optimism_low optimism_step planned_seeds recommendation reference seeds started_at suggestion_status
"""


def test_json_keeps_its_keys(report: Report, hostile_frame: StudyFrame) -> None:
    document = json.loads(report.texts["json"])
    assert document["schema"] == "automl-report/1"
    assert sorted(document) == KEYS.split()
    assert sorted(document["trials"][0]) == TRIAL_KEYS.split()
    assert sorted(document["verification"]) == VERIFICATION_KEYS.split()
    assert document["study"] == HOSTILE
    assert len(document["trials"]) == len(hostile_frame.trials)
    assert document["space"] == hostile_frame.space_text


def test_the_keys_are_documented() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs/report.md").read_text(encoding="utf-8")
    assert [key for key in KEYS.split() if f"`{key}`" not in text] == []


def test_five_hundred_trials_stay_below_five_megabytes(tmp_path: Path) -> None:
    url = fresh_sqlite(tmp_path)
    spec = space_of(tmp_path, trials=500)
    with open_database(url, create=False) as database:
        add_study(database, spec, trials=50, importances=True)
    repeat_trials(Path(url.removeprefix("sqlite:///")), times=10)
    with open_database(url, create=False) as database:
        report = render(study_frame(database, spec))
    assert len(json.loads(report.texts["json"])["trials"]) == 500
    assert len(report.texts["html"].encode()) < 5_000_000
    assert len(report.texts["markdown"].encode()) < 100_000


def test_the_smaller_adapter_is_told_with_its_knee_and_its_limit(plain_frame: StudyFrame) -> None:
    frame = replace(plain_frame, squeeze=squeeze_row(), suggestion=None)
    said = render(frame, ("markdown",)).texts["markdown"]
    assert "Knee: 9,000 of 72,000 parameters (12.5%), accuracy 0.9050 after 30 steps of recovery against 0.9000" in said
    assert f"`automl squeeze {frame.study} -o FOLDER`" in said
    assert "It says nothing of training at a small rank" in said
    assert "| 9,000 | 1 | global | 0.895 | 0.905 | knee |" in said
    assert "| 9,000 | 1 | even | 0.700 | 0.710 |  |" in said
    whole = replace(frame, squeeze=squeeze_row(knee=72_000))
    assert "best kept whole" in render(whole, ("markdown",)).texts["markdown"]


def test_which_method_is_one_table_and_one_figure(
    plain_frame: StudyFrame, verified_frame: Callable[[Any], StudyFrame]
) -> None:
    frame = verified_frame(verification_result())
    said = render(frame, ("markdown",)).texts["markdown"]
    assert "## Which method" in said
    assert "| lora | 0.918 | 0.004 | – | – | – | 333,701 | 0.21 GiB | 12 s | 0.005 |" in said
    assert "| ia3 | 0.800 | 0.004 | −0.100 | −0.110 to −0.090 | worse | 30,000 | – | 12 s | 0.005 |" in said
    assert "Intervals at 98 % hold jointly." in said
    figure = metric_by_cost(frame)
    assert figure is not None
    assert [(trace.name, trace.x[0], trace.y[0]) for trace in figure.data[:2]] == [
        ("lora", 333_701, 0.918),
        ("full", 22_000_000, 0.9),
    ]
    assert [trace.x[0] for trace in figure.data[3:]] == [210, 600, None]  # of memory
    assert metric_by_cost(plain_frame) is None


def test_the_curve_marks_the_knee_and_shows_what_was_trained_smaller(plain_frame: StudyFrame) -> None:
    figure = squeeze_curve(replace(plain_frame, squeeze=squeeze_row()))
    assert figure is not None
    traces = {trace.name: trace for trace in figure.data}
    assert list(traces["cut globally"].x) == [4500, 9000, 36_000, 72_000]
    assert list(traces["cut evenly"].y) == [0.7, 0.9]
    assert list(traces["and 30 steps"].y) == [0.61, 0.905, 0.92]
    assert (list(traces["knee"].x), list(traces["knee"].y)) == ([9000], [0.905])
    assert figure.layout.xaxis.type == "log"
    assert squeeze_curve(plain_frame) is None


def test_what_a_newer_verification_knows_is_in_the_page(verified_frame: Callable[[Any], StudyFrame]) -> None:
    """And an older result, which lacks it, still reads: every other test here has one."""
    plain = verification_result()
    flattery = {**plain["selection_optimism"], "fresh": 0.92, "optimism": 0.01, "low": -0.002, "high": 0.022}
    told = {
        **plain,
        "selection_optimism": {**flattery, "level": 0.96},
        "deploy": {"arm": "trial-3", "text": "it whole"},
    }
    told["comparisons"] = [{**each, "row_error": 0.004} for each in plain["comparisons"]]
    page = render(verified_frame(told), ("markdown",)).texts["markdown"]
    assert "To deploy: it whole." in page
    assert "Selection optimism +0.010 (−0.002 to +0.022): by so much" in page
    assert "than fresh seeds of it on the same rows" in page
