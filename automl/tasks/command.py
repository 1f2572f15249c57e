"""A program that judges what a model has written: rows in on standard input, a number out, and nothing of it stays.

It has no shell, an environment of its own, a time limit and a limit on what it may write. Its whole process group is
ended with it, and so is what has left the group: descendants are known by a mark in their environment.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import secrets
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from automl.errors import MetricError
from automl.space.spec import OwnMetric

logger = logging.getLogger(__name__)

TRIES = 3
"""A judge may ask a service that is away for a moment; each failure is in the log, the last one ends the trial."""

MOST_OUTPUT = 65_536
"""Bytes of standard output that are read."""

_TAIL = 600
_CHUNK = 65_536
_LOOK_SECONDS = 0.05
_KEPT = ("HOME", "LANG", "LC_ALL", "PATH", "SSL_CERT_DIR", "SSL_CERT_FILE", "TMPDIR", "TZ", "USER")
KEPT_PREFIX = "AUTOML_METRIC_"
"""Variables of the environment that are meant for programs like this: they reach workers, and it."""
_MARK = "AUTOML_COMMAND_MARK"


class _Ended(NamedTuple):
    """How a call ended. status: exit code, None: it ran out of time."""

    status: int | None
    output: bytes
    said: str


def judge(metric: OwnMetric, rows: Sequence[Mapping[str, Any]]) -> float:
    """The number that the program answers to these rows, asked up to TRIES times.

    Raises MetricError, which says what went wrong the last time, with the end of what it wrote to standard error.
    """
    for left in reversed(range(TRIES)):
        try:
            return _answer(metric, _run(metric, rows))
        except MetricError as error:
            if not left:
                raise
            logger.warning("%s; asking again", error)
    raise AssertionError("the last try returns or raises")


def _answer(metric: OwnMetric, ended: _Ended) -> float:
    if ended.status is None:
        raise _failed(metric, f"took longer than {metric.timeout:g} s", ended.said)
    if len(ended.output) > MOST_OUTPUT:
        raise _failed(metric, f"wrote more than {MOST_OUTPUT:,} bytes where a number was asked for", ended.said)
    if ended.status:
        how = f"was ended by signal {-ended.status}" if ended.status < 0 else f"ended with status {ended.status}"
        raise _failed(metric, how, ended.said)
    text = ended.output.decode(errors="replace").strip()
    try:
        value = json.loads(text)
        number = value["score"] if isinstance(value, dict) else value
        score = math.nan if isinstance(number, bool | str) else float(number)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        score = math.nan
    if math.isfinite(score):
        return score
    raise _failed(metric, f'answered {text[:80]!r}, not one finite number or {{"score": number}}', ended.said)


def _failed(metric: OwnMetric, what: str, said: str) -> MetricError:
    return MetricError(f"metric {metric.name}: {metric.shown} {what}{f'; it said: {said}' if said else ''}")


def _run(metric: OwnMetric, rows: Sequence[Mapping[str, Any]]) -> _Ended:
    """One call. What it does not read is no error, so rows are a file and not a pipe."""
    mark = secrets.token_hex(16)
    with tempfile.TemporaryFile() as given:
        given.writelines(json.dumps(row).encode() + b"\n" for row in rows)
        given.seek(0)
        try:
            process = subprocess.Popen(  # noqa: S603 - of the space file that the user runs; no shell
                metric.command,
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=metric.folder,
                env={**_environment(), _MARK: mark},
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise _failed(metric, f"cannot be started: {getattr(error, 'strerror', None) or error}", "") from None
    try:
        return _read(process, metric.timeout)
    finally:
        _end(process, mark)


def _environment() -> dict[str, str]:
    """What it sees of ours: no database, no token, nothing unknown."""
    return {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith(KEPT_PREFIX)}


def _read(process: subprocess.Popen[bytes], seconds: float) -> _Ended:
    """What it writes until it ends, writes too much or has had its time. Standard error is read to its end, for the
    last of it."""
    assert process.stdout is not None
    assert process.stderr is not None
    output, said, until = bytearray(), bytearray(), time.monotonic() + seconds
    with selectors.DefaultSelector() as streams:
        for stream, kept in ((process.stdout, output), (process.stderr, said)):
            os.set_blocking(stream.fileno(), False)
            streams.register(stream, selectors.EVENT_READ, kept)
        status = None
        while status is None and time.monotonic() < until and len(output) <= MOST_OUTPUT:
            status = process.poll()
            _take(streams, 0 if status is not None else _LOOK_SECONDS, said)
        if status is not None:  # what is left in the pipes; a child of its own may still hold them open
            while len(output) <= MOST_OUTPUT and time.monotonic() < until and _take(streams, 0, said):
                pass
    tail = " ".join(said[-_TAIL:].decode(errors="replace").split())
    is_late = status is None and len(output) <= MOST_OUTPUT
    return _Ended(None if is_late else status or 0, bytes(output), "".join(filter(str.isprintable, tail)))


def _take(streams: selectors.BaseSelector, seconds: float, said: bytearray) -> bool:
    """Read what there is; False if there is nothing."""
    if not streams.get_map():
        time.sleep(seconds)
        return False
    took = False
    for key, _ in streams.select(seconds):
        stream: IO[bytes] = key.fileobj  # type: ignore[assignment]  # a pipe
        if chunk := os.read(stream.fileno(), _CHUNK):
            key.data.extend(chunk)
            took = True
        else:
            streams.unregister(stream)
    del said[:-_TAIL]
    return took


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    """End its process group, and whatever has left it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
    for number in _marked(f"{_MARK}={mark}".encode()):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(number, signal.SIGKILL)


def _marked(mark: bytes) -> list[int]:
    """Processes that have the mark in their environment; none where the system does not tell."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found
