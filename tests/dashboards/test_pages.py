"""The pages as text: nothing that comes from a database becomes an element, and the parts are where they belong."""

from __future__ import annotations

import threading
from collections import Counter
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import pytest

from automl.schedule.due import fire_due
from automl.storage.claims import Claimant
from automl.storage.sql import open_database
from automl.storage.submissions import submit
from dashboards.charts import Series, Spot, chart
from dashboards.recent import Recent
from dashboards.views import Views
from tests.dashboards.serving import Site, site
from tests.databases import fresh_sqlite
from tests.report.studies import HOSTILE, add_study, space_of
from tests.schedule.scheduling import HandClock, add_schedule

PAYLOADS = (
    "<script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg onload=alert(1)>",
    "javascript:alert(1)",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "{{ 7 * 7 }}{% raw %}",
    "</textarea><a href=javascript:alert(1)>x</a>",
    "<!--<img src=x onerror=alert(1)>-->",
    "&lt;script&gt;",
    "\u202e<b>",
    "a/../b?x=1#y",
    '" autofocus onfocus=alert(1) x="',
    "<style>*{display:none}</style>",
    "<base href=//evil.example>",
    "<meta http-equiv=refresh content=0;url=//evil.example>",
    "<ScRiPt>alert(1)</sCrIpT>",
    "<script/src=//evil.example/x.js></script>",
    "<script >alert(1)</script >",
    "<<script>alert(1)//<</script>",
    "<svg><script>alert(1)</script></svg>",
    "<svg><animate onbegin=alert(1) attributeName=x dur=1s>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
    "<object data=data:text/html,<script>alert(1)</script>>",
    "<embed src=javascript:alert(1)>",
    "<details open ontoggle=alert(1)>",
    "<video><source onerror=alert(1)>",
    "<input autofocus onfocus=alert(1)>",
    "<form action=//evil.example><button>x</button></form>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<template><script>alert(1)</script></template>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "]]><script>alert(1)</script>",
    "*/alert(1)/*",
    "';alert(1);//",
    "${alert(1)}`${alert(1)}",
    "\\u003cscript\\u003ealert(1)\\u003c/script\\u003e",
    "&#60;script&#62;alert(1)&#60;/script&#62;",
    "%3Cscript%3Ealert(1)%3C/script%3E",
    "data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==",
)
_ACTIVE = ("script", "iframe", "object", "embed", "img", "style", "base")


class Elements(HTMLParser):
    """Counts elements, and collects what could act."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.acting: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found[tag] += 1
        for name, value in attrs:
            if name.startswith("on") or name == "style" or (name in ("href", "src") and ":" in (value or "")):
                self.acting.append(f"{tag} {name}={value}")


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    assert len(PAYLOADS) == 40
    url = fresh_sqlite(tmp_path)
    fill_with_payloads(url, tmp_path)
    with site(url) as running:
        pages = ["/", "/live?page=1", "/compare", "/doctor"]
        for payload in PAYLOADS:
            named = quote(payload, safe="")
            pages += [f"/studies/{named}", f"/studies/{named}/live", f"/studies/{named}/trials"]
            pages += [f"/studies/{named}/layers", f"/compare?study={named}"]
        for page in pages:
            answer = running.ask(page)
            elements = Elements(answer.text)
            assert answer.status == 200, page
            assert elements.acting == [], page
            expected = {} if "/live" in page else {"script": 1}
            assert {tag: elements.found[tag] for tag in _ACTIVE if elements.found[tag]} == expected, page


def fill_with_payloads(url: str, folder: Path) -> None:
    """Each payload as name of a study, name of its data file, error of a trial, and label of who submitted it."""
    with open_database(url, create=False) as database:
        for payload in PAYLOADS:
            spec = space_of(folder, study=payload, data=payload)
            add_study(database, spec, trials=1, failed=1, error=payload)
            submit(database, payload, spec.text, payload)


def test_everything_from_a_study_is_escaped(served: Site) -> None:
    named = quote(HOSTILE, safe="")
    for page in ("/", f"/studies/{named}", f"/studies/{named}/trials", "/schedules/nightly", f"/compare?study={named}"):
        answer = served.ask(page)
        elements = Elements(answer.text)
        assert (answer.status, elements.acting, elements.found["script"], elements.found["img"]) == (200, [], 1, 0), (
            page
        )
        assert "alert" in answer.text, page  # it is shown


def test_the_overview_says_what_matters(served: Site) -> None:
    text = served.ask("/").text
    for expected in (
        "topics",
        "24 of 30",
        "verified",
        "nightly",
        "regression",
        "0.700",
        "0.850",
        "No scheduler is at work",
    ):
        assert expected in text, expected


def test_an_unchanged_fragment_is_not_sent_again(served: Site) -> None:
    first = served.ask("/studies/topics/live")
    again = served.ask("/studies/topics/live", If_None_Match=first.headers["etag"])
    assert (again.status, again.text) == (304, "")


def test_the_report_is_sandboxed_under_its_own_policy(served: Site) -> None:
    answer = served.ask("/studies/topics/report")
    policy = answer.headers["content-security-policy"]
    assert answer.status == 200
    assert "sandbox allow-scripts" in policy
    assert "allow-same-origin" not in policy
    assert "sha256-" in policy
    assert "connect-src" not in policy  # default-src 'none'
    assert "LoRA search report" in answer.text


def test_simultaneous_askers_share_one_answer() -> None:
    recent = Recent(lambda: 0.0)
    asked: list[int] = []
    start = threading.Barrier(4)

    def ask() -> None:
        start.wait()
        recent.get("question", 1.0, lambda: asked.append(1))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked == [1]


def test_an_answer_grows_old_and_a_failure_is_not_kept() -> None:
    now = [0.0]
    recent = Recent(lambda: now[0])
    assert recent.get("x", 1.0, lambda: 1) == 1
    assert recent.get("x", 1.0, lambda: 2) == 1
    now[0] = 1.0
    with pytest.raises(ZeroDivisionError):
        recent.get("x", 1.0, lambda: 1 // 0)
    assert recent.get("x", 1.0, lambda: 3) == 3


def test_a_chart_stays_within_its_frame_and_names_round_numbers() -> None:
    spots = [Spot(number, 1 / (1 + number)) for number in range(200)]
    drawn = chart("t", [Series(label="a", points=[*spots, Spot(200, 1e6)], kind="marks")], x_label="x", y_label="y")
    assert drawn is not None
    (series,) = drawn.series
    assert all(drawn.left <= x <= drawn.right and drawn.top <= y <= drawn.bottom for x, y in series.marks)
    assert [tick.label for tick in drawn.x_ticks] == ["0", "50", "100", "150", "200"]
    assert chart("t", [Series(label="a", points=[])], x_label="x", y_label="y") is None


# One night of a schedule beside a day of another one's minutes.
def test_a_rare_schedule_is_shown_beside_a_frequent_one(tmp_path: Path) -> None:
    with open_database(fresh_sqlite(tmp_path), create=False) as database:
        clock = HandClock(datetime(2026, 8, 3, 12, tzinfo=UTC))
        claimant = Claimant(database, clock=clock)
        add_schedule(claimant, tmp_path, "rare", timezone="UTC")
        add_schedule(claimant, tmp_path, "frequent", cron="* * * * *", timezone="UTC")
        clock.forward(hours=14)
        fire_due(claimant)
        clock.forward(hours=10)
        fire_due(claimant)
        lines = {line.name: line for line in Views(database).schedules()}
        assert {name: line.last.slot for name, line in lines.items() if line.last} == {
            "rare": datetime(2026, 8, 4, 2, tzinfo=UTC),
            "frequent": clock.time,
        }
        assert len(Views(database).schedule("frequent").nights) == 120
        assert len(Views(database).schedule("rare").nights) == 1
