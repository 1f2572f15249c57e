"""What a page is made of, whatever its format: text, notices, tables, charts by name, and verbatim text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph. `text in backticks` is code."""

    text: str
    kind: Literal["text"] = "text"


@dataclass(frozen=True, slots=True)
class Notice:
    """A paragraph that must not be missed. tone: how it is to be taken."""

    text: str
    tone: Literal["good", "caution", "problem"]
    kind: Literal["notice"] = "notice"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under columns; a column whose name begins with `>` is aligned to the right."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    kind: Literal["table"] = "table"


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart of `automl.report.figures.FIGURES`, and the sentence that says how to read it."""

    name: str
    caption: str
    kind: Literal["chart"] = "chart"


@dataclass(frozen=True, slots=True)
class Code:
    """Verbatim text. folded: shown on request, where the format can."""

    text: str
    language: str
    caption: str = ""
    folded: bool = False
    kind: Literal["code"] = "code"


Block = Text | Notice | Table | Chart | Code


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading and what stands under it."""

    id: str
    title: str
    blocks: tuple[Block, ...] = field(default_factory=tuple)
