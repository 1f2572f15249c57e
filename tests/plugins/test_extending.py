"""The page about extending is followed to the letter: its package is installed, named and tested."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import automl.testing
from automl.methods.registry import METHODS
from automl.metric import METRICS
from automl.space.entries import EXECUTORS, PRUNERS, SAMPLERS, TASKS
from tests.fresh import run_python
from tests.plugins.installed import HERE, install

ROOT = HERE.parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


def test_the_package_of_the_page_works_as_it_says(tmp_path: Path) -> None:
    (project,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    module, tests = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    package, site = tmp_path / "margin", tmp_path / "site"
    package.mkdir()
    site.mkdir()
    (package / "pyproject.toml").write_text(project, encoding="utf-8")
    (package / "automl_margin.py").write_text(module, encoding="utf-8")
    (tmp_path / "test_margin.py").write_text(tests, encoding="utf-8")
    (section,) = re.findall(r"`(task: .*?)`", PAGE)
    (tmp_path / "space.yaml").write_text(f"version: 1\nstudy: s\nmodel: m\n{section}\n", encoding="utf-8")
    install(site, "margin", source=tmp_path)
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}
    for command in (["pytest", "-q", "-p", "no:cacheprovider"], ["automl.cli.main", "validate", "space.yaml"]):
        result = run_python("-m", *command, cwd=tmp_path, env=environment)
        assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("suite", automl.testing.__all__)
def test_the_page_names_every_suite(suite: str) -> None:
    assert f"`{suite}`" in PAGE
    assert getattr(automl.testing, suite).__name__ == suite


def test_the_page_names_every_group() -> None:
    groups = [registry.group for registry in (SAMPLERS, PRUNERS, TASKS, EXECUTORS, METRICS, METHODS)]
    assert [group for group in groups if f"`{group}`" not in PAGE] == []
