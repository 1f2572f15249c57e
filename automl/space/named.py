"""Keys of a space file whose values are names of a registry, and sections whose keys follow from the name they give.

The registries say which names there are, so neither the checks here nor the JSON Schema lists any of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError, ValidationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails, core_schema

from automl.errors import PluginError
from automl.registry import Registry
from automl.space.messages import not_known, shown
from automl.space.schema_base import Section, mistake


@dataclass(frozen=True, slots=True, eq=False)
class NameIn:
    """Annotates a text that is the name of an entry."""

    registry: Registry[Any]

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._checked)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        names: JsonSchemaValue = {"type": "string", "enum": list(self.registry)}
        families = [{"type": "string", "pattern": f"^{family}:"} for family in self.registry.families]
        return {"anyOf": [names, *families]} if families else names

    def _checked(self, value: object) -> object:
        check_name(self.registry, value)
        return value


@dataclass(frozen=True, slots=True, eq=False)
class SectionOf:
    """Annotates a section that names an entry under `key` and has the keys of that entry's own section beside it.

    section: the class of an entry's section. has_short_form: the name alone will do, where no other key is needed.
    """

    registry: Registry[Any]
    key: str
    section: Callable[[Any], type[Section]]
    has_short_form: bool = False

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(self._read)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        sections = {name: self.section(entry) for name, entry in self.registry.usable().items()}
        forms = [self._form(name, section, handler) for name, section in sections.items()]
        alone = [name for name, section in sections.items() if self.has_short_form and self._is_complete(name, section)]
        return {"anyOf": [*([{"type": "string", "enum": alone}] if alone else []), *forms]}

    def _read(self, value: object, info: ValidationInfo) -> object:
        given = {self.key: value} if self.has_short_form and isinstance(value, str) else value
        if not isinstance(given, Mapping):
            raise mistake("section", f"{self.key} is missing in {shown(value)}")
        if self.key not in given:
            raise mistake("section", f"{self.key} is missing")
        name = given[self.key]
        try:
            check_name(self.registry, name)
        except ValueError as error:
            line = InitErrorDetails(type=mistake("section", str(error)), loc=(self.key,), input=name)
            raise ValidationError.from_exception_data(self.registry.kind, [line]) from None
        kept = {key: item for key, item in given.items() if item is not None}
        return self.section(self.registry[name]).model_validate(kept, strict=True, context=info.context)

    def _form(self, name: str, section: type[Section], handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        form = handler(section.__pydantic_core_schema__)
        inside = handler.resolve_ref_schema(form)
        inside["properties"] = {**inside["properties"], self.key: {"const": name, "type": "string"}}
        inside["required"] = list(dict.fromkeys([self.key, *inside.get("required", ())]))
        return form

    def _is_complete(self, name: str, section: type[Section]) -> bool:
        try:
            section.model_validate({self.key: name})
        except ValidationError:
            return False
        return True


def check_name(registry: Registry[Any], name: object) -> None:
    """Raise a mistake unless there is an entry of that name that can be used."""
    if not isinstance(name, str) or name not in registry:
        raise mistake("section", not_known(name, registry.known()))
    try:
        registry[name]
    except PluginError as error:
        raise mistake("section", str(error)) from error
