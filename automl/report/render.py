"""A study's frame in every format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from automl.report.document import document
from automl.report.findings import Findings, findings
from automl.report.frames import StudyFrame
from automl.report.html import render_html
from automl.report.markdown import render_markdown
from automl.report.sections import sections

FORMATS: Mapping[str, str] = {"html": ".html", "json": ".json", "markdown": ".md"}
"""Formats and the endings of their files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A report's findings and its text by format."""

    findings: Findings
    texts: Mapping[str, str]


def render(frame: StudyFrame, formats: tuple[str, ...] = tuple(FORMATS)) -> Report:
    """Write the report in these formats."""
    found = findings(frame)
    contents = sections(frame, found)
    texts = {}
    for name in formats:
        if name == "html":
            texts[name] = render_html(frame, found, contents)
        elif name == "markdown":
            texts[name] = render_markdown(frame, found, contents)
        else:
            texts[name] = json.dumps(document(frame, found), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return Report(findings=found, texts=texts)
