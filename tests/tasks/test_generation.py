"""Writing answers shows signs of life: all answers of a trial may take longer than a worker may be silent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from automl import watchdog
from automl.tasks.generation import generate_sorted


def test_every_batch_of_answers_is_a_sign_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "_BETWEEN", 0.0)
    signs: list[float] = []

    def write(model: object, prompts: list[list[int]], tokenizer: object, **_: Any) -> list[str]:
        assert watchdog._watch is not None
        signs.append(watchdog._watch.wound_up)
        return [str(prompt[0]) for prompt in prompts]

    with watchdog.watched(600.0, tmp_path / "traces"):
        found = generate_sorted(torch.nn.Identity(), [[n] for n in range(40)], None, max_new_tokens=1, write=write)
    assert found == [str(n) for n in range(40)]
    assert len(set(signs)) == len(signs) == 3
