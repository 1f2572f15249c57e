"""docs/security.md names tests that exist, and what it says of versions and static checks is so."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
SAFE = {"torch": (2, 10), "transformers": (5, 3), "ray": (2, 54)}
"""First versions without the holes CVE-2026-24747, CVE-2026-4372 and CVE-2026-27482."""


def test_every_point_names_tests_that_exist() -> None:
    named = re.findall(r"`((?:tests|automl/testing)/[\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) > 40
    missing = [f"{path}::{name}" for path, name in named if name not in _tests_of(ROOT / path)]
    assert missing == []
    points = [line for line in PAGE.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [int(line.split("|")[1]) for line in points] == list(range(1, 13))
    assert all("::test_" in line for line in points)


def _tests_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_versions_with_known_holes_are_excluded() -> None:
    least = {}
    for line in _project()["project"]["dependencies"]:
        name, _, rest = re.fullmatch(r"([\w-]+)(\[[^]]*\])?(.*)", line).groups()  # type: ignore[union-attr]
        if found := re.search(r">=(\d+)\.(\d+)", rest):
            least[name] = tuple(map(int, found.groups()))
    assert {name: version for name, version in SAFE.items() if least[name] < version} == {}


def test_the_rules_of_bandit_are_on() -> None:
    lint = _project()["tool"]["ruff"]["lint"]
    assert "S" in lint["select"]
    assert [rule for rule in lint["ignore"] if rule.startswith("S")] == ["S101"]
    exempt = [pattern for pattern, rules in lint["per-file-ignores"].items() if any(rule[0] == "S" for rule in rules)]
    # Suites that authors of plug-ins run in their own tests, and notebooks: nothing that a service runs.
    assert exempt == ["tests/**", "automl/testing/**", "benchmarks/**", "examples/**"]


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
