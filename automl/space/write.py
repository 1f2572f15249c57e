"""Plain values as the text of a space file, which is read back as the same values."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_/.-]*")
_RESERVED = {"true", "false", "null", "yes", "no", "on", "off", "auto"}


def yaml_of(document: Mapping[str, Any]) -> str:
    """A mapping of sections: each entry of a section on a line of its own, whatever is in that on the same line."""
    return "".join(f"{line}\n" for name, value in document.items() for line in _section(name, value))


def scalar(value: bool | int | float | str | None) -> str:
    """A scalar that YAML 1.1 and 1.2 read alike: 1.0e-05 instead of 1e-05, texts in quotes where they need them."""
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        return _number(value)
    return json.dumps(value)


def _section(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        yield f"{_text(name)}:"
        yield from (f"  {_text(key)}: {_inline(item)}" for key, item in value.items())
    elif isinstance(value, list) and value:
        yield f"{_text(name)}:"
        yield from (f"  - {_inline(item)}" for item in value)
    else:
        yield f"{_text(name)}: {_inline(value)}"


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_text(key)}: {_inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return scalar(value)


def _text(text: str) -> str:
    if _PLAIN.fullmatch(text) and text.lower() not in _RESERVED:
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(letter if letter.isprintable() else f"\\U{ord(letter):08x}" for letter in quoted)


def _number(value: float) -> str:
    if not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf"
    text = repr(value)
    return text.replace("e", ".0e") if "e" in text and "." not in text else text
