"""The cost of importances: every round is told, and tiny models make no claim."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import importance_cost


def test_it_states_steps_and_samples(document: Callable[[Callable[..., int], list[str]], dict[str, Any]]) -> None:
    found = document(importance_cost.main, ["--quick", "--slots", "2", "--precision", "fp32"])
    (result,) = found["results"]
    assert {name: len(values) for name, values in result["cpu_seconds"].items()} == {
        "without": 2,
        "with": 2,
        "sample": 2,
    }
    assert result["share"] > 0
