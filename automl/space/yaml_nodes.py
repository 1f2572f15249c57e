"""A space file as plain values with the place of every key, read by rules stricter than YAML's own.

Refused: more than 256 kB, 32 levels or 10,000 nodes; anchors, aliases, tags, duplicate keys; bytes that are not UTF-8,
control characters; unquoted yes/no/on/off, numbers with a leading zero or a base, and numbers that are not finite.
Unlike YAML 1.1, `1e-4` is a number and `1:30` or a date is a text.
"""

from __future__ import annotations

import math
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from automl.errors import ConfigError, Problem

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_NODES = 10_000
MAX_DIGITS = 40

KeyPath = tuple[str | int, ...]

_FORBIDDEN_CHARACTER = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_DECIMAL = re.compile(r"[-+]?([0-9][0-9_]*(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_OTHER_BASE = re.compile(r"[-+]?0[xXbBoO_]?[0-9a-fA-F_]+")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF|nan|NaN|NAN)")
_LOOKS_TRUE_OR_FALSE = {"yes", "no", "on", "off"}


class Position(NamedTuple):
    """Line and column, both from 1."""

    line: int
    column: int


NOWHERE = Position(0, 0)


@dataclass(frozen=True, slots=True)
class Document:
    """The values of a file, the place of every value and of every key, and what its scalars do wrong.

    moved: where values are written that are read from another path, by that path.
    """

    value: object
    places: Mapping[KeyPath, Position]
    key_places: Mapping[KeyPath, Position]
    mistakes: tuple[tuple[KeyPath, Position, str], ...]
    moved: Mapping[KeyPath, KeyPath] = field(default_factory=dict)

    def written(self, path: KeyPath) -> KeyPath:
        """The path of a value in the file as it is written."""
        for length in range(len(path), 0, -1):
            if (origin := self.moved.get(path[:length])) is not None:
                return (*origin, *path[length:])
        return path


def read_text(path: Path) -> str:
    """The text of a regular UTF-8 file of at most MAX_BYTES. Raises ConfigError otherwise."""
    try:
        kind = path.stat().st_mode
        content = _first_bytes(path) if stat.S_ISREG(kind) else b""
    except FileNotFoundError:
        raise _refusal(str(path), "does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise _refusal(str(path), f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(kind):  # a FIFO would be waited for, a device read without end
        raise _refusal(str(path), "is a folder, not a space file" if stat.S_ISDIR(kind) else "is not a regular file")
    if len(content) > MAX_BYTES:
        raise _refusal(str(path), f"is larger than {MAX_BYTES // 1024} kB")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - (content.rfind(b"\n", 0, error.start) + 1) + 1
        message = f"byte 0x{content[error.start]:02x} is not valid UTF-8; save the file as UTF-8"
        raise _refusal(str(path), message, Position(line, column)) from None


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def read_document(text: str, source: str) -> Document:
    """Compose the one YAML document of a text. Raises ConfigError, naming `source`, where its structure is wrong."""
    text = text.removeprefix("\ufeff")
    if len(text) > MAX_BYTES:
        raise _refusal(source, f"is larger than {MAX_BYTES // 1024} kB")
    found = _FORBIDDEN_CHARACTER.search(text)
    if found:
        line = text.count("\n", 0, found.start()) + 1
        column = found.start() - (text.rfind("\n", 0, found.start()) + 1) + 1
        raise _refusal(source, f"control character {found.group()!a} is not allowed", Position(line, column))
    try:
        root = _StrictLoader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Position(mark.line + 1, mark.column + 1) if mark else NOWHERE
        raise _refusal(source, _one_line(error), place) from None
    except (yaml.YAMLError, ValueError, IndexError, OverflowError) as error:  # such as chr() of a huge \U escape
        raise _refusal(source, f"is not valid YAML: {' '.join(str(error).split())}") from None
    if root is None:
        raise _refusal(source, "is empty; `automl init` writes a space file to start from")
    reading = _Reading()
    value = reading.value(root, ())
    return Document(value, reading.places, reading.key_places, tuple(reading.mistakes))


def _refusal(source: str, message: str, place: Position = NOWHERE) -> ConfigError:
    return ConfigError([Problem(source, place.line, place.column, "", message)])


def _one_line(error: yaml.MarkedYAMLError) -> str:
    if isinstance(error, _Forbidden):
        return str(error.problem)
    parts = [" ".join(part.split()) for part in (error.context, error.problem) if part]
    return "is not valid YAML: " + ", ".join(parts)


class _Forbidden(yaml.MarkedYAMLError):
    """Valid YAML that a space file may not use."""


class _StrictLoader(yaml.SafeLoader):
    """Stops at the first node that is too deep, too many, shared or tagged, before it costs memory."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._nodes = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]  # absent from types-PyYAML
        self._depth += 1
        self._nodes += 1
        problem = self._refuse(event)
        if problem:
            raise _Forbidden(problem=problem, problem_mark=event.start_mark)
        node: Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def _refuse(self, event: Any) -> str:
        if isinstance(event, yaml.AliasEvent):
            return f"alias '*{str(event.anchor)[:40]}' is not allowed; write the value out"
        if getattr(event, "anchor", None):
            return f"anchor '&{event.anchor[:40]}' is not allowed; write the value out where it is needed"
        if getattr(event, "tag", None):
            tag = str(event.tag).replace("tag:yaml.org,2002:", "!!")
            return f"tag '{tag[:40]}' is not allowed; remove it"
        if self._depth > MAX_DEPTH:
            return f"is nested more than {MAX_DEPTH} levels deep"
        if self._nodes > MAX_NODES:
            return f"has more than {MAX_NODES} values"
        return ""


@dataclass(slots=True)
class _Reading:
    """One walk over the nodes of a document."""

    places: dict[KeyPath, Position] = field(default_factory=dict)
    key_places: dict[KeyPath, Position] = field(default_factory=dict)
    mistakes: list[tuple[KeyPath, Position, str]] = field(default_factory=list)

    def value(self, node: Node, path: KeyPath) -> object:
        self.places.setdefault(path, _place(node))
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._scalar(node, path)

    def _mapping(self, node: MappingNode, path: KeyPath) -> dict[str, object]:
        values: dict[str, object] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode) or not key_node.value:
                self.mistakes.append((path, _place(key_node), "a key must be a single word, such as 'rank'"))
                continue
            key = key_node.value
            below = (*path, key)
            if key in values:
                first = self.key_places[below]
                self.mistakes.append((below, _place(key_node), f"is given twice; first in line {first.line}"))
                continue
            self.key_places[below] = _place(key_node)
            values[key] = self.value(value_node, below)
        return values

    def _scalar(self, node: Node, path: KeyPath) -> object:
        if not isinstance(node, ScalarNode) or node.style is not None:
            return node.value
        try:
            return _plain(node.value)
        except ValueError as error:
            self.mistakes.append((path, _place(node), str(error)))
            return _REFUSED


class AlreadyReported:
    """Stands for a scalar that has its mistake already, so that nothing else is said about it."""


_REFUSED = AlreadyReported()


def _plain(text: str) -> bool | int | float | str | None:
    """Value of an unquoted scalar. Raises ValueError with the hint what to write instead."""
    word = text.lower()
    if word in ("", "~", "null"):
        return None
    if word in ("true", "false"):
        return word == "true"
    if word in _LOOKS_TRUE_OR_FALSE:
        raise ValueError(f"unquoted {text} is ambiguous; write true or false, or '{text}' in quotes for a text")
    if _WHOLE.fullmatch(text) or _DECIMAL.fullmatch(text):
        return _number(text)
    if _OTHER_BASE.fullmatch(text):
        raise ValueError(f"{text[:MAX_DIGITS]} has a leading zero; write a decimal number, or quotes for a text")
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{text} is not a finite number")
    return text


def _number(text: str) -> int | float:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"{text[:MAX_DIGITS]}... has too many digits; at most {MAX_DIGITS} are allowed")
    if _WHOLE.fullmatch(text):
        return int(text)
    if re.match(r"[-+]?0[0-9_]", text):
        plain = text.lstrip("+-0_") or "0"
        raise ValueError(f"{text} has a leading zero; write {plain}, or '{text}' in quotes for a text")
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large for a number")
    return number


def _place(node: Node) -> Position:
    return Position(node.start_mark.line + 1, node.start_mark.column + 1)
