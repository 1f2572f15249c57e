"""The reference page names every key, and its example is valid."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from automl.methods.registry import METHODS
from automl.methods.settings import Setting
from automl.space import schema, schema_search, schema_space, schema_task
from automl.space.entries import EXECUTORS, PRUNERS, SAMPLERS, TASKS
from automl.space.load import parse_space
from automl.space.schema_base import Section

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "space.md").read_text(encoding="utf-8")
SECTIONS = sorted(
    {
        item
        for module in (schema, schema_task, schema_space, schema_search)
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, Section)
    }
    | {SAMPLERS[name].options for name in SAMPLERS.built_in}
    | {PRUNERS[name].options for name in PRUNERS.built_in}
    | {TASKS[name] for name in TASKS.built_in},
    key=lambda section: section.__name__,
)


@pytest.mark.parametrize(
    "name", [name for registry in (SAMPLERS, PRUNERS, EXECUTORS, METHODS) for name in registry.built_in]
)
def test_every_entry_is_in_the_reference(name: str) -> None:
    assert f"`{name}`" in PAGE


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_key_is_in_the_reference(section: type[Section]) -> None:
    missing = [name for name in section.model_fields if not re.search(rf"\b{re.escape(name)}\b", PAGE)]
    assert missing == []


METHODS_PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
SETTINGS = [setting for name in METHODS.built_in for setting in METHODS[name].settings]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_of_a_method_is_in_the_page_of_methods(setting: Setting) -> None:
    """Its row names the default, and bounds or choices, as they are declared."""
    rows = re.findall(rf"^\| `{setting.name}`[^|]*\|.*$", METHODS_PAGE, re.MULTILINE)
    assert rows
    cells = set(re.findall(r"[\w.-]+", rows[0].lower()))
    numbers = [bound for bound in (setting.low, setting.high) if bound is not None]
    expected = {*setting.choices, *(f"{number:g}" for number in numbers)}
    usual = setting.default
    expected |= {"none" if usual == "" else f"{usual:g}" if isinstance(usual, float) else str(usual).lower()}
    assert expected - cells == set()


def test_the_example_is_valid() -> None:
    (example,) = re.findall(r"```yaml\n(version: 1\n.*?)```", PAGE, re.DOTALL)
    assert parse_space(example, "space.md", Path("/there")).study == "bbc-topics"
