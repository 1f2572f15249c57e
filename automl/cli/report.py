"""`automl report`: what a study found, as a page to read, send or print."""

from __future__ import annotations

import webbrowser
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from automl.cli import console
from automl.cli.study_argument import DatabaseOption, JsonOption, StudyArgument, opened, recorded_spec
from automl.errors import ConfigError, Problem


class Format(StrEnum):
    """What `--format` may be."""

    HTML = "html"
    JSON = "json"
    MARKDOWN = "markdown"
    ALL = "all"


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: automl report bbc-topics --open")
    def report(
        study: StudyArgument = None,
        url: DatabaseOption = None,
        output: Annotated[
            Path | None,
            typer.Option("--output", "-o", help="File to write. Default: STUDY-report.html here.", metavar="FILE"),
        ] = None,
        kind: Annotated[
            Format | None,
            typer.Option("--format", "-f", help="Default: by the file's ending, else html; all writes three files."),
        ] = None,
        open_it: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
        as_json: JsonOption = False,
    ) -> None:
        """Write what a study found as one self-contained page (or JSON, or Markdown). Works while a search runs."""
        from automl.durable import disk_errors_named, replace_file
        from automl.report.render import FORMATS, render
        from automl.report.write import study_frame

        with opened(study, url) as (database, name):
            frame = study_frame(database, recorded_spec(database, name))
        files = _files(name, output, kind, FORMATS)
        made = render(frame, tuple(files))
        for wanted, path in files.items():
            with disk_errors_named(path):
                replace_file(path, made.texts[wanted].encode())
        if as_json:
            found = made.findings
            written = {wanted: str(path) for wanted, path in files.items()}
            answer = {"evidence": found.evidence, "findings": found.sentences, "files": written}
            console.result_json(answer)
        else:
            console.results(f"report: {path}" for path in files.values())
            console.results(made.findings.sentences)
        if open_it and "html" in files:
            webbrowser.open(files["html"].resolve().as_uri())


def _files(name: str, output: Path | None, kind: Format | None, formats: Mapping[str, str]) -> dict[str, Path]:
    """Which file to write in which format. Raises ConfigError for an ending that contradicts or says nothing."""
    by_ending = {ending: wanted for wanted, ending in formats.items()}
    base = output or Path(f"{name}-report.html")
    if kind is Format.ALL:
        return {wanted: base.with_suffix(ending) for wanted, ending in formats.items()}
    if kind is not None:
        return {str(kind): output or base.with_suffix(formats[kind])}
    if base.suffix not in by_ending:
        known = ", ".join(by_ending)
        message = f"{base.suffix or base.name!r} is no known ending; it may be {known}, or add --format"
        raise ConfigError([Problem(str(base), 0, 0, "--output", message)])
    return {by_ending[base.suffix]: base}
