"""How the project speaks: docstrings begin with a verb or a noun, in plain English, and tell no history."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("automl", "dashboards", "benchmarks")

OPENINGS = re.compile(r"(Of|The same|So|Who|As|Or|And|It)\b")
"""Beginnings of fragments, which can only be understood with what they leave out."""

TURNS = re.compile(
    r"\b(hangs? on|hung on|lest|leaves? the house|eats? the|talks? to strangers|speaks? for|the very|nobody changes"
    r"|(whoever|who) (sits?|sat)|no value decides)\b",
    re.IGNORECASE,
)
HISTORY = re.compile(r"\b(\d{4}-\d{2}-\d{2}|(results|studies|files) of before)\b", re.IGNORECASE)


def sources() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def docstrings(text: str) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring, those below assignments too."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(said))):
                yield node.lineno, said.strip()


def faults(text: str) -> Iterator[tuple[int, str]]:
    """Line and words of everything in a module that is not said as it should be."""
    for line, said in docstrings(text):
        found = OPENINGS.match(said) or HISTORY.search(said)
        if found:
            yield line, found.group()
    for number, line in enumerate(text.splitlines(), start=1):
        yield from ((number, found.group()) for found in TURNS.finditer(line))


def test_docstrings_are_plain() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {words!r}"
        for path in sources()
        for line, words in faults(path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "module",
    [
        '"""Of the model."""',
        'def f() -> None:\n    """The same in bfloat16."""',
        'class A:\n    x = 1\n    """As in the table."""',
        'def f() -> None:\n    """Read a result.\n\n    Results of before have no level.\n    """',
        'x = 1\n"""Since 2026-11-23."""',
        "x = 1  # the result hangs on it",
        'def f() -> None:\n    """Wait, lest it ends."""',
    ],
)
def test_what_is_not_plain_is_found(module: str) -> None:
    assert list(faults(module))


def test_what_is_plain_passes() -> None:
    assert not list(faults('"""Ostensibly Italian whole sentences: the sum, as everywhere, depends on the order."""'))
