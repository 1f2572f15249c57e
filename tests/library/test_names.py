"""The front door: which names `automl` has, that they are there, and what naming it costs."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import automl
from automl.library.document import SEARCH
from automl.space.schema import SpaceFile
from automl.space.schema_search import SearchSection

SOURCE = ast.parse(Path(automl.__file__).read_text(encoding="utf-8"))


def test_the_names_are_sorted_and_each_is_what_it_says() -> None:
    assert automl.__all__ == sorted(set(automl.__all__))
    for name in automl.__all__:
        assert getattr(automl, name).__name__ == name
    assert set(automl.__all__) <= set(dir(automl))


def test_type_checkers_see_the_same_names() -> None:
    block = next(node for node in SOURCE.body if isinstance(node, ast.If))
    typed = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert sorted(typed) == automl.__all__
    for name, module in typed.items():
        assert getattr(automl, name) is getattr(sys.modules[str(module)], name)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(AttributeError, match="module 'automl' has no attribute 'serch'; it has AutomlError, "):
        automl.serch  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("statement", ["import automl", "import automl; automl.Int(2, 8); automl.ConfigError"])
def test_naming_it_loads_nothing_heavy(statement: str) -> None:
    script = (
        f"import sys; {statement}\n"
        "heavy = ('torch', 'ray', 'peft', 'transformers', 'datasets', 'optuna', 'sqlalchemy', 'pydantic', 'yaml')\n"
        "sys.exit([name for name in heavy if name in sys.modules] or 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_section_of_a_space_file_and_every_entry_of_search_is_an_argument() -> None:
    arguments = set(inspect.signature(automl.search).parameters)
    assert set(SEARCH) == set(SearchSection.model_fields)
    assert set(SpaceFile.model_fields) - {"version", "search"} | set(SEARCH) <= arguments
