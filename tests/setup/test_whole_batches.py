"""Where a loss compares the rows of a batch, memory is planned for the whole of it."""

from __future__ import annotations

from typing import Any

import pytest

from automl.setup.packing import has_whole_batches
from automl.space.spec import CategoricalParameter, DataSettings, SearchSpace, TaskSettings

LOSSES = CategoricalParameter(name="loss", choices=("dpo", "kto"))


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        ("preference", {"parameters": ()}, False),
        ("preference", {"parameters": (LOSSES,)}, True),
        ("preference", {"parameters": (), "fixed": {"loss": "kto"}}, True),
        ("preference", {"parameters": (), "fixed": {"loss": "ipo"}}, False),
        ("classification", {"parameters": ()}, False),
    ],
)
def test_a_space_that_can_choose_kto_has_whole_batches(kind: str, given: dict[str, Any], expected: bool) -> None:
    settings = TaskSettings(type=kind, data=DataSettings(kind="files"), metric="loss")
    assert has_whole_batches(settings, SearchSpace(task=kind, **given)) == expected
