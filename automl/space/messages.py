"""What is wrong in a space file, in words: the collector of all problems, and pydantic's errors as one line each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from automl.errors import ConfigError, Problem
from automl.nearest import did_you_mean
from automl.space.yaml_nodes import AlreadyReported, Document, KeyPath, Position

LONGEST_VALUE = 60
LONGEST_KEY = 50
MAX_PROBLEMS = 100

_OTHER_NAMES = {
    "lr": "learning_rate",
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "target",
    "max_seq_length": "max_length",
    "max_steps": "steps",
    "n_trials": "trials",
    "timeout": "time",
}
"""What the same thing is called elsewhere -> here."""


@dataclass(slots=True)
class Problems:
    """Collects what is wrong with a document, each at its place."""

    source: str
    document: Document
    found: list[Problem] = field(default_factory=list)

    def __post_init__(self) -> None:
        for path, place, message in self.document.mistakes:
            self.found.append(Problem(self.source, place.line, place.column, dotted(path), message))

    def at_value(self, path: KeyPath, message: str) -> None:
        """Report at the value of a key, or at the nearest thing around it that the file has."""
        self._add(path, self._nearest_place(path, self.document.places), message)

    def at_key(self, path: KeyPath, message: str) -> None:
        """Report at the key itself."""
        self._add(path, self.document.key_places.get(path) or self._nearest_place(path, self.document.places), message)

    def from_pydantic(self, error: ValidationError, base: KeyPath) -> None:
        """Report every line of a ValidationError of the value at `base`."""
        for line in error.errors(include_url=False):
            if isinstance(line["input"], AlreadyReported):
                continue  # its mistake is in the list already
            path = self._path(base, line["loc"])
            text = _text(line)
            if line["type"] == "unknown_key" or "[key]" in line["loc"]:
                self.at_key(path, text)
            elif line["type"] in ("union_tag_invalid", "union_tag_not_found"):
                tag = (*path, _discriminator(line))
                self.at_value(tag if tag in self.document.places else path, text)
            else:
                self.at_value(path, text)

    def is_given(self, path: KeyPath) -> bool:
        """Whether the file has a value at this path."""
        return path in self.document.places

    def raise_if_any(self) -> None:
        """Raise ConfigError with all that was found."""
        found = sorted(dict.fromkeys(self.found))
        if len(found) > MAX_PROBLEMS:
            rest = Problem(self.source, 0, 0, "", f"has {len(found) - MAX_PROBLEMS} problems more")
            found = [rest, *found[:MAX_PROBLEMS]]
        if found:
            raise ConfigError(found)

    def _add(self, path: KeyPath, place: Position, message: str) -> None:
        key = dotted(self.document.written(path))
        self.found.append(Problem(self.source, place.line, place.column, key, message))

    def _nearest_place(self, path: KeyPath, places: Mapping[KeyPath, Position]) -> Position:
        while path not in places and path:
            path = path[:-1]
        return places.get(path, Position(1, 1))

    def _path(self, base: KeyPath, loc: Sequence[int | str]) -> KeyPath:
        """The path in the document of an error; pydantic's own parts (tags of unions, '[key]') are left out."""
        path, value = base, _at(self.document.value, base)
        tagged = True
        for part in loc:
            if tagged and part == _tag(value) and not (isinstance(value, Mapping) and part in value):
                tagged = False
            elif isinstance(value, Mapping) and part != "[key]":
                path, value, tagged = (*path, part), value.get(part), True
            elif isinstance(value, list) and isinstance(part, int):
                path, value, tagged = (*path, part), value[part] if part < len(value) else None, True
        return path


def dotted(path: KeyPath) -> str:
    """A key path as one printable line: space.rank.choices[2]."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            word = part if part.isprintable() else ascii(part)[1:-1]
            text += ("." if text else "") + (word if len(word) <= LONGEST_KEY else word[:LONGEST_KEY] + "...")
    return text


def shown(value: object) -> str:
    """A value as a message shows it: short, printable, in one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 4] + "..." + text[-1]


def nearest(word: str, known: Iterable[str]) -> str:
    """'known: a, b (did you mean 'a'?)'."""
    names = list(known)
    usual = _OTHER_NAMES.get(word)
    hint = f" (did you mean {usual!r}?)" if usual in names else did_you_mean(word, names)
    return f"known: {', '.join(names)}{hint}"


def unknown(what: str, word: str, known: Iterable[str]) -> str:
    """'unknown set 'qvv'; known: qv, attention (did you mean 'qv'?)'."""
    return f"unknown {what} {shown(word)}; {nearest(word, known)}"


def not_known(value: object, known: Iterable[str]) -> str:
    """'\'tpee\' is not known; known: tpe, gp (did you mean 'tpe'?)', or '3 is not tpe or gp'."""
    names = list(known)
    if not isinstance(value, str):
        return f"{shown(value)} is not {' or '.join(names)}"
    return f"{shown(value)} is not known; {nearest(value, names)}"


def _at(value: object, path: KeyPath) -> object:
    for part in path:
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
    return value


def _tag(value: object) -> object:
    """The part of a location that names a member of a discriminated union, if the value is one."""
    if isinstance(value, Mapping):
        return value.get("type", value.get("name"))
    return value if isinstance(value, str) else None


def _discriminator(line: Mapping[str, Any]) -> str:
    return str(line["ctx"]["discriminator"]).strip("'")


def _text(line: Mapping[str, Any]) -> str:
    kind, value, context = line["type"], line["input"], line.get("ctx", {})
    if kind in _TEXTS:
        return _TEXTS[kind](value, context)
    return f"{shown(value)} {line['msg']}" if kind == "value" else str(line["msg"])


def _not_a(what: str) -> Callable[[Any, Mapping[str, Any]], str]:
    return lambda value, context: f"{shown(value)} is not {what}"


def _closed(value: Any, expected: str) -> str:
    return not_known(value, [part.strip().strip("'") for part in expected.replace(" or ", ", ").split(",")])


def _missing_tag(context: Mapping[str, Any], value: Any) -> str:
    name = str(context["discriminator"]).strip("'")
    return f"{name} is missing in {shown(value)}" if not isinstance(value, Mapping) else f"{name} is missing"


def _bound(number: float) -> str:
    return f"{int(number) if number == int(number) else number:,}"


_TEXTS: dict[str, Callable[[Any, Mapping[str, Any]], str]] = {
    "missing": lambda value, context: "is missing",
    "int_type": _not_a("a whole number"),
    "int_from_float": _not_a("a whole number"),
    "float_type": _not_a("a number"),
    "finite_number": _not_a("a finite number"),
    "bool_type": _not_a("true or false"),
    "string_type": lambda value, context: (
        f"{shown(value)} is not a text" + ("" if isinstance(value, (Mapping, list)) or value is None else "; quote it")
    ),
    "list_type": _not_a("a list [...]"),
    "dict_type": _not_a("a mapping {key: value}"),
    "model_type": _not_a("a mapping {key: value}"),
    "model_attributes_type": _not_a("a mapping {key: value}"),
    "greater_than": lambda value, context: f"{shown(value)} is not above {_bound(context['gt'])}",
    "greater_than_equal": lambda value, context: f"{shown(value)} is below {_bound(context['ge'])}, the least allowed",
    "less_than": lambda value, context: f"{shown(value)} is not below {_bound(context['lt'])}",
    "less_than_equal": lambda value, context: f"{shown(value)} is above {_bound(context['le'])}, the most allowed",
    "literal_error": lambda value, context: _closed(value, context["expected"]),
    "union_tag_invalid": lambda value, context: _closed(context["tag"], context["expected_tags"]),
    "union_tag_not_found": lambda value, context: _missing_tag(context, value),
    "string_too_short": lambda value, context: "is empty",
    "string_too_long": lambda value, context: (
        f"{shown(value)} is {len(value)} characters long; at most {context['max_length']} are allowed"
    ),
    "too_short": lambda value, context: "is empty",
    "too_long": lambda value, context: f"has more than {context['max_length']} entries",
    "string_pattern_mismatch": lambda value, context: (
        f"{shown(value)} is not a name; use letters, digits, '.', '_', '-', starting with a letter or digit"
    ),
}
