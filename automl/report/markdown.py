"""The report as one page of Markdown: the same text and tables, charts left out."""

from __future__ import annotations

import re

from automl.report.blocks import Block, Chart, Code, Notice, Section, Table, Text
from automl.report.findings import Findings
from automl.report.frames import StudyFrame

_SPECIAL = re.compile(r"([\\*_\[\]|~#])")
_CODE = re.compile(r"(`[^`]*`)")


def render_markdown(frame: StudyFrame, found: Findings, sections: tuple[Section, ...]) -> str:
    """The whole page. Text from outside cannot become markup or HTML."""
    lines = [f"# {_escaped(frame.study)}", "", f"**Evidence: {found.evidence.value}**", ""]
    for text in (*found.warnings, *found.sentences):
        lines += [_inline(text), ""]
    if found.next_command:
        lines += [f"Next: `{found.next_command}`", ""]
    for section in sections:
        if all(isinstance(block, Chart) for block in section.blocks):
            continue
        lines += [f"## {section.title}", ""]
        for block in section.blocks:
            lines += [*_block(block), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def _block(block: Block) -> list[str]:
    match block:
        case Text(text):
            return [_inline(text)]
        case Notice(text, tone):
            return [f"> **{tone.capitalize()}.** {_inline(text)}" if tone != "good" else f"> {_inline(text)}"]
        case Table():
            return _table(block)
        case Code():
            return _code(block)
        case Chart():
            return []


def _table(table: Table) -> list[str]:
    heads = [_inline(column.removeprefix(">")) for column in table.columns]
    rule = ["--:" if column.startswith(">") else "---" for column in table.columns]
    rows = [heads, rule, *([_inline(cell) for cell in row] for row in table.rows)]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [*lines, "", _inline(table.caption)] if table.caption else lines


def _code(code: Code) -> list[str]:
    """Fenced with more backticks than the text has in a row."""
    longest = max((len(run) for run in re.findall(r"`+", code.text)), default=0)
    fence = "`" * max(3, longest + 1)
    caption = [f"{_inline(code.caption)}:", ""] if code.caption else []
    return [*caption, f"{fence}{code.language}", code.text.rstrip("\n"), fence]


def _inline(text: str) -> str:
    """Escaped, but for what stands in backticks; one line."""
    parts = _CODE.split(" ".join(text.split()))
    return "".join(part.replace("|", "\\|") if part.startswith("`") else _escaped(part) for part in parts)


def _escaped(text: str) -> str:
    safe = _SPECIAL.sub(r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))
    return safe.replace("`", "\\`")
