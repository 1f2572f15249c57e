"""The smallest preset, run as a user would: a real model, real data, and an adapter that reproduces its metric."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sweep.test_search_end_to_end import answer, automl

PRESET = Path(__file__).resolve().parents[2] / "search_spaces" / "bbc-topics-quick.yaml"


@pytest.mark.slow
def test_the_quick_preset_learns_topics_far_above_the_majority(tmp_path: Path, shared_cache: Path) -> None:
    outcome = answer(automl(tmp_path, "search", str(PRESET), "--json", cache=shared_cache))
    assert outcome["counts"]["COMPLETE"] == 3
    assert outcome["baseline"] < 0.3
    assert outcome["best"]["value"] > 0.7
    exported = answer(automl(tmp_path, "export", "-o", "adapter", "--json", cache=shared_cache))
    assert exported["measured"] == pytest.approx(outcome["best"]["value"], rel=1e-6)
