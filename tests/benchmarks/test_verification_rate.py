"""Search and verification are measured alike: the steps and the time of their own runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.verification_rate import main
from tests.sweep.tiny_world import make_world


@pytest.mark.full
def test_both_parts_are_counted_and_compared(
    tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUTOML_CACHE", str(shared_cache))
    figures = tmp_path / "rate.json"
    space = make_world(tmp_path)
    options = ["--quick", "--same-rows", "--executor", "inline", "--workers", "1", "--json", str(figures)]
    assert main([str(space), *options]) == 0
    document = json.loads(figures.read_text(encoding="utf-8"))
    search, verification = document["parts"]
    assert (search["steps"], verification["steps"]) == (12 * 4, 3 * 4 * 4)
    assert all(0 < part["training"] <= part["seconds"] for part in document["parts"])
    assert document["ratio"] == pytest.approx(verification["rate"] / search["rate"])
    assert "times that of its search" in capsys.readouterr().out
