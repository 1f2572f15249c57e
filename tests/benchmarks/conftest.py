"""The benchmarks live beside the package, in the root of the checkout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def document(tmp_path: Path) -> Callable[[Callable[[list[str]], int], list[str]], dict[str, Any]]:
    """Run a benchmark's `main` with these arguments and return the JSON document it has written; it must succeed."""

    def run(main: Callable[[list[str]], int], arguments: list[str]) -> dict[str, Any]:
        path = tmp_path / "result.json"
        assert main([*arguments, "--json", str(path)]) == 0
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    return run
