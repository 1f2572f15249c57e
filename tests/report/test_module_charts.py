"""Rows of the heat maps."""

from __future__ import annotations

import pytest

from automl.report.module_charts import shortened

BERT = [
    "attention.output.dense",
    "attention.self.key",
    "attention.self.query",
    "attention.self.value",
    "intermediate.dense",
    "output.dense",
]


@pytest.mark.parametrize(
    ("kind", "label"),
    [
        ("attention.self.key", "self.key"),
        ("attention.output.dense", "attention.output.dense"),
        ("output.dense", "output.dense"),
        ("intermediate.dense", "intermediate.dense"),
        ("head", "head"),
    ],
)
def test_rows_are_named_shortly(kind: str, label: str) -> None:
    assert shortened(kind, [*BERT, "head"]) == label


def test_every_row_has_a_name_of_its_own() -> None:
    experts = [f"mlp.experts.{index}.{name}" for index in range(3) for name in ("up_proj", "down_proj")]
    kinds = [*BERT, *experts, "a.b", "c.a.b", "b"]
    assert len({shortened(kind, kinds) for kind in kinds}) == len(kinds)
