"""The example of a notebook runs as it stands, here with four adapters and two steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.packed_notebook import main


def test_the_notebook_example_prints_every_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # it makes its cache in the working folder
    main([4, 8], [1e-3, 1e-2], steps=2, judged_on=8)
    found = [[float(word) for word in line.split()] for line in capsys.readouterr().out.splitlines()]
    expected = [[step, rank, rate] for step in (1, 2) for rank in (4, 8) for rate in (1e-3, 1e-2)]
    assert sorted(line[:3] for line in found) == expected
    assert all(0 <= accuracy <= 1 and accuracy * 8 % 1 == 0 for *_, accuracy in found)
