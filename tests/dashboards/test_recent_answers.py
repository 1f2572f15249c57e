"""What is shared among viewers is bounded, whatever they ask."""

from __future__ import annotations

import contextlib

from dashboards.recent import Recent


def test_questions_without_an_answer_leave_nothing_behind() -> None:
    recent = Recent()

    def absent() -> int:
        raise LookupError

    for number in range(100):
        with contextlib.suppress(LookupError):
            recent.get(number, 1.0, absent)
    assert recent._locks == {}
    assert recent.get("known", 1.0, lambda: 1) == 1
    assert list(recent._locks) == ["known"]
