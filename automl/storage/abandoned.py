"""Attempts whose driver is gone: closed when the next driver takes the study, or by `automl doctor --fix`."""

from __future__ import annotations

import json

from sqlalchemy import Connection, text, update

from automl.storage.base import AttemptState
from automl.storage.tables import Now, attempts

_OPEN = text(
    """
    SELECT a.trial, a.number, CAST(t.state AS VARCHAR(16)) AS state, r.value_json AS stop_reason
    FROM automl_attempts a
    LEFT JOIN studies s ON s.study_name = a.study_name
    LEFT JOIN trials t ON t.study_id = s.study_id AND t.number = a.trial
    LEFT JOIN trial_user_attributes r ON r.trial_id = t.trial_id AND r.key = 'stop_reason'
    WHERE a.study_name = :study AND a.state = 'RUNNING'
    ORDER BY a.trial, a.number
    """
)
_TOLD = {
    "COMPLETE": (AttemptState.SUCCEEDED, "finished"),
    "PRUNED": (AttemptState.SUCCEEDED, "pruned"),
    "FAIL": (AttemptState.FAILED, "error"),
}


def close_abandoned(connection: Connection, study: str) -> list[str]:
    """Close every RUNNING attempt of a study nobody drives; returns a line for each.

    An attempt whose trial was told before the driver died gets the trial's outcome, any other is LOST.
    """
    changes = []
    for row in connection.execute(_OPEN, {"study": study}).all():
        state, reason = _TOLD.get(row.state, (AttemptState.LOST, "its driver died"))
        if row.stop_reason is not None and state is not AttemptState.LOST:
            reason = str(json.loads(row.stop_reason))
        mine = (attempts.c.study_name == study) & (attempts.c.trial == row.trial) & (attempts.c.number == row.number)
        connection.execute(update(attempts).where(mine).values(state=state.value, reason=reason, ended_at=Now()))
        changes.append(f"attempt {row.number} of trial {row.trial} closed as {state.value} ({reason})")
    return changes
