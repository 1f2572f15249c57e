"""The pattern of module names matches what it stands for and nothing else."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automl.report.recipe import module_pattern, recipe

_LAYERS = tuple(f"h.{layer}.attn.{kind}" for layer in range(12) for kind in ("q", "v"))


@given(st.sets(st.sampled_from((*_LAYERS, "pooler.dense", "3.fc", "blocks.7", "h.1.mlp.fc", "lm+head")), min_size=1))
def test_the_pattern_matches_exactly_the_names(names: set[str]) -> None:
    pattern = re.compile(module_pattern(sorted(names)))
    every = {*_LAYERS, "pooler.dense", "3.fc", "blocks.7", "h.1.mlp.fc", "lm+head", "h.1.mlp.fcx", "hx1.attn.q", "h.12"}
    assert {name for name in every if pattern.fullmatch(name)} == names


def test_layers_are_written_once() -> None:
    pattern = module_pattern(_LAYERS)
    assert len(pattern) < 80


@pytest.mark.parametrize("adapter", [None, "/nowhere"])
def test_without_the_adapters_files_there_is_no_recipe(adapter: str | None) -> None:
    assert recipe(adapter) is None
