"""The rule of `automl.ranking` in SQL, for queries that read a few of many trials.

Their tables: t trials, s studies, d the direction of the first objective, v and w the values of the first and of the
second.
"""

from __future__ import annotations

_DIRECTION = "JOIN study_directions d ON d.study_id = s.study_id AND d.objective = 0"

_VALUES = """LEFT JOIN trial_values v ON v.trial_id = t.trial_id AND v.objective = 0 AND v.value_type = 'FINITE'
LEFT JOIN trial_values w ON w.trial_id = t.trial_id AND w.objective = 1 AND w.value_type = 'FINITE'"""

_VALUE = """COALESCE(v.value, CASE WHEN t.state = 'PRUNED' THEN (
  SELECT i.intermediate_value FROM trial_intermediate_values i WHERE i.trial_id = t.trial_id
  ORDER BY i.step DESC LIMIT 1) END)"""
"""What a trial is ranked by; Optuna takes a pruned trial's last value over only where there is no second objective."""


def loss(value: str) -> str:
    """The value turned so that smaller is better, as `automl.metric.as_loss` does it."""
    return f"CASE WHEN d.direction = 'MAXIMIZE' THEN -{value} ELSE {value} END"


def better(low: str, high: str) -> str:
    """The better one of two values."""
    return f"CASE WHEN d.direction = 'MAXIMIZE' THEN {high} ELSE {low} END"


_BEST_FIRST = f"""CASE WHEN {_VALUE} IS NULL THEN 1 ELSE 0 END, CASE WHEN t.state = 'COMPLETE' THEN 0 ELSE 1 END,
  {loss(_VALUE)}, CASE WHEN t.state = 'COMPLETE' THEN COALESCE(w.value, 0) ELSE 0 END, t.number"""
"""Order of `automl.ranking.ranked`."""


def filled(query: str) -> str:
    """The query with {direction} joined, {values} joined, {loss} for the first value, and {best_first} to order by."""
    parts = {"direction": _DIRECTION, "values": _VALUES, "loss": loss("v.value"), "best_first": _BEST_FIRST}
    for name, part in parts.items():
        query = query.replace("{" + name + "}", part)
    return query
