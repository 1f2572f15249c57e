"""Whether a value is what a JSON schema describes; schemas come from space files and can neither fetch nor loop."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from automl.space.extraction import json_pattern_mistake


def schema_mistake(schema: Mapping[str, Any]) -> str:
    """What is wrong with a schema, or ''."""
    from jsonschema.exceptions import SchemaError
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    text = _canonical(schema)
    try:
        validator = _validator(text)
        type(validator).check_schema(validator.schema)
        resolver = Registry().resolver_with_root(DRAFT202012.create_resource(validator.schema))
        for key, value in _entries(schema):
            if message := _entry_mistake(key, value):
                return message
            if key == "$ref":
                resolver.lookup(value)
        is_valid(schema, None)
    except SchemaError as error:
        return f"is no JSON schema: {error.json_path}: {error.message[:200]}"
    except Unresolvable as error:
        return f"refers to what it does not hold: {error.ref}"
    except RecursionError:
        return "refers to itself without end"
    return ""


def is_valid(schema: Mapping[str, Any], value: object) -> bool:
    """Whether the value fits. Raises RecursionError for a schema that goes round in circles."""
    return bool(_validator(_canonical(schema)).is_valid(value))


def _entry_mistake(key: str, value: object) -> str:
    if key in ("$ref", "$dynamicRef", "$recursiveRef") and not str(value).startswith("#"):
        return f"refers to {value!r}; nothing outside it is read, so write what is meant into it, under $defs"
    for pattern in _patterns(key, value):
        if message := json_pattern_mistake(pattern):
            return f"pattern {pattern!r} {message}"
    return ""


def _patterns(key: str, value: object) -> list[object]:
    if key == "patternProperties" and isinstance(value, Mapping):
        return list(value)
    return [value] if key == "pattern" and isinstance(value, str) else []


def _entries(value: object) -> Iterator[tuple[str, Any]]:
    """Every key of the schema with its value, at any depth."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key), inner
            yield from _entries(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _entries(inner)


def _canonical(schema: Mapping[str, Any]) -> str:
    return json.dumps(schema, sort_keys=True)


@lru_cache(maxsize=8)
def _validator(text: str) -> Any:
    """A validator that fetches nothing: its registry holds no schema but this one."""
    from jsonschema.validators import Draft202012Validator, validator_for
    from referencing import Registry

    schema = json.loads(text)
    return validator_for(schema, default=Draft202012Validator)(schema, registry=Registry())
