"""The only place that writes to a terminal: results to stdout, progress and notes to stderr, colours if it is one."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDTH_OF_FILES = 200

out = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else _WIDTH_OF_FILES)
err = Console(stderr=True, soft_wrap=True, highlight=False)

_quiet = False
_json_lines = False
_shown = time.monotonic()
_drawn = False


def set_quiet(quiet: bool) -> None:
    """Suppress progress and notes; results, warnings and errors still appear."""
    global _quiet  # one process, one terminal
    _quiet = quiet


def seconds_of_silence() -> float:
    """How long nothing was shown; 0 while something is drawn in place."""
    return 0.0 if _drawn else time.monotonic() - _shown


@contextmanager
def drawn_in_place() -> Iterator[None]:
    """Inside the block the terminal shows a picture that changes by itself."""
    global _drawn  # one process, one terminal
    _drawn = True
    try:
        yield
    finally:
        _drawn = False


def _showing() -> None:
    global _shown  # one process, one terminal
    _shown = time.monotonic()


def result(text: str = "") -> None:
    """A line of the command's result, to stdout. Printed literally: no markup is interpreted."""
    _showing()
    out.print(Text(text))


def results(lines: Iterable[str]) -> None:
    """Several result lines."""
    for line in lines:
        result(line)


def result_json(value: Any) -> None:
    """The command's result as one JSON document on stdout. Non-finite numbers are refused."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=str))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on stdout. A column whose name begins with `>` is aligned to the right."""
    drawn = Table(title=Text(title) if title else None, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        drawn.add_column(
            Text(column.lstrip(">")), justify="right" if column.startswith(">") else "left", overflow="fold"
        )
    for row in rows:
        drawn.add_row(*(Text(str(cell)) for cell in row))
    out.print(drawn)


def note(text: str) -> None:
    """A line about what is going on, to stderr."""
    _showing()
    if _json_lines:
        _json_line(logging.INFO, text)
    elif not _quiet:
        err.print(Text(text))


def warning(text: str) -> None:
    """A line a person should read, to stderr, even when quiet."""
    _showing()
    if _json_lines:
        _json_line(logging.WARNING, text)
    else:
        err.print(Text(f"warning: {text}", style="yellow"))


def error(text: str) -> None:
    """What went wrong, to stderr. Several lines (several problems) stay several lines."""
    _showing()
    if _json_lines:
        _json_line(logging.ERROR, text)
    else:
        err.print(Text(text, style="red"))


def _json_line(level: int, text: str, name: str = "automl.cli") -> None:
    """One JSON object on one line of stderr: time (UTC, RFC 3339), level, logger, message, pid."""
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "level": logging.getLevelName(level),
        "logger": name,
        "message": text,
        "pid": os.getpid(),
    }
    print(json.dumps(line, ensure_ascii=False), file=sys.stderr, flush=True)


def is_terminal() -> bool:
    """Whether progress may be drawn in place."""
    return err.is_terminal and not _quiet and not _json_lines


class LogHandler(logging.Handler):
    """Shows the library's log records: notes with their time for INFO, warnings above. Secrets are masked."""

    def emit(self, record: logging.LogRecord) -> None:
        if _json_lines:
            _json_line(record.levelno, redact(record.getMessage()), record.name)
        elif record.levelno >= logging.ERROR:
            error(redact(record.getMessage()))
        elif record.levelno >= logging.WARNING:
            warning(redact(record.getMessage()))
        else:
            note(redact(self.format(record)))


def redact(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Replace the values of secret environment variables, wherever they stand in the text."""
    secrets = ("AUTOML_DB_URL", "HF_TOKEN", "AUTOML_WEBHOOK_SECRET", "AUTOML_SMTP_PASSWORD", "AUTOML_DASHBOARD_TOKEN")
    for name in secrets:
        secret = environment.get(name, "")
        if len(secret) >= 6:
            text = text.replace(secret, f"${name}")
    return text


def set_up_logging(*, debug: bool, json_lines: bool = False) -> None:
    """Send this project's records (INFO, or DEBUG) and the warnings of all others to the terminal.

    json_lines: everything on stderr is one JSON object per line.
    """
    global _json_lines  # one process, one terminal
    _json_lines = json_lines
    handler = LogHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", datefmt="%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("automl").setLevel(logging.DEBUG if debug else logging.INFO)
    logging.captureWarnings(True)
    for noisy in ("ray", "alembic", "optuna", "transformers", "datasets", "py.warnings"):
        logging.getLogger(noisy).setLevel(logging.DEBUG if debug else logging.ERROR)


def flush() -> None:
    """Push everything out before the process ends abruptly."""
    sys.stdout.flush()
    sys.stderr.flush()
