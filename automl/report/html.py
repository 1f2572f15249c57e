"""One HTML file that opens anywhere, offline: text, tables and charts with the library that draws them inside.

Every value is escaped by Jinja2. A content security policy lets only the two scripts of this page run (by their
digests) and forbids every request. plotly-cartesian.min.js is plotly.js 4.1.1 (MIT) without 3D, maps and WebGL.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup, escape

import automl
from automl.report.answers import spending
from automl.report.blocks import Chart, Section
from automl.report.figures import FIGURES
from automl.report.findings import Evidence, Findings
from automl.report.frames import StudyFrame
from automl.report.wording import duration, moment, number, percent, score

_TONES: Mapping[Evidence, str] = {Evidence.VERIFIED: "good", Evidence.NOTHING: "problem", Evidence.MAJORITY: "problem"}
_CODE = re.compile(r"`([^`]+)`")
# Inside <script>, these characters could end it or open a comment; JSON may write them as escapes anywhere in a string.
_IN_SCRIPT = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


class _Drawn(NamedTuple):
    json: Markup
    height: int


def render_html(frame: StudyFrame, found: Findings, sections: tuple[Section, ...]) -> str:
    """The whole page."""
    charts = _draw(frame, sections)
    scripts = (_asset("plotly-cartesian.min.js"), _asset("report.js")) if charts else ()
    return _template().render(
        title=frame.study,
        evidence=found.evidence.value,
        tone=_TONES.get(found.evidence, "caution"),
        warnings=found.warnings,
        sentences=found.sentences,
        next_command=found.next_command,
        tiles=_tiles(frame),
        sections=sections,
        charts=charts,
        policy=_policy(scripts),
        style=Markup(_asset("report.css")),  # noqa: S704  # our own file
        plotly=Markup(_asset("plotly-cartesian.min.js")),  # noqa: S704  # our own file
        script=Markup(_asset("report.js")),  # noqa: S704  # our own file
        version=automl.__version__,
        made_at=moment(datetime.now(UTC)),
        database=frame.database,
    )


def content_policy() -> str:
    """The content security policy of every page, for whoever serves one: what its own `meta` element says."""
    return _policy((_asset("plotly-cartesian.min.js"), _asset("report.js")))


def _tiles(frame: StudyFrame) -> list[tuple[str, str]]:
    costs = spending(frame)
    best = frame.best
    return [
        (f"best {frame.metric}, validation", score(best.value if best else None)),
        ("without training", score(frame.baseline)),
        ("trials ended", f"{frame.counts['COMPLETE'] + frame.counts['PRUNED']:,} of {frame.planned_trials:,}"),
        ("training time", duration(costs.total.seconds)),
        ("steps saved", percent(costs.share)),
        ("trainable, best", number(best.trainable_params if best else None)),
    ]


def _draw(frame: StudyFrame, sections: tuple[Section, ...]) -> dict[str, _Drawn]:
    wanted = [block.name for section in sections for block in section.blocks if isinstance(block, Chart)]
    charts = {}
    for name in wanted:
        figure = FIGURES[name](frame)
        if figure is not None:
            charts[name] = _Drawn(Markup(_json(figure.to_json())), int(figure.layout.height))  # noqa: S704  # escaped
    return charts


def _json(text: str) -> str:
    """JSON that can stand inside a script element."""
    return json.dumps(json.loads(text), separators=(",", ":"), allow_nan=False).translate(_IN_SCRIPT)


def _policy(scripts: tuple[str, ...]) -> str:
    digests = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts
    )
    return (
        f"default-src 'none'; script-src {digests or chr(39) + 'none' + chr(39)}; style-src 'unsafe-inline';"
        " img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _inline(text: str) -> Markup:
    """Escaped text with `code` marked up."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))  # noqa: S704  # escaped before


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["inline"] = _inline
    return environment.from_string(_asset("report.html.jinja"))


@cache
def _asset(name: str) -> str:
    return resources.files("automl.report").joinpath("page", name).read_text(encoding="utf-8")
