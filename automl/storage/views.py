"""Views that answer plain questions in plain SQL, over Optuna's tables and ours; SQLite and PostgreSQL 15.

They hold no data and are created anew at every upgrade. What they show is documented in docs/reference/database.md.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, text

from automl.storage.ranking import better, loss

VIEWS = ("automl_leaderboard", "automl_curves", "automl_spent", "automl_costs")

# Optuna keeps a parameter as a number and a distribution; for a categorical one the number is an index. A value is
# decoded to JSON, so that numbers, booleans and text stay what they were.
_IS_CATEGORICAL = 'p.distribution_json LIKE \'{"name": "CategoricalDistribution"%\''
_IS_INT = 'p.distribution_json LIKE \'{"name": "IntDistribution"%\''
_PARAMS: Mapping[str, str] = {
    "sqlite": f"""json_group_object(p.param_name, json(CASE
      WHEN {_IS_CATEGORICAL}
        THEN p.distribution_json -> ('$.attributes.choices[' || CAST(p.param_value AS INTEGER) || ']')
      WHEN {_IS_INT} THEN CAST(CAST(p.param_value AS INTEGER) AS TEXT)
      ELSE json_quote(p.param_value) END))""",
    "postgresql": f"""json_object_agg(p.param_name, CASE
      WHEN {_IS_CATEGORICAL}
        THEN CAST(p.distribution_json AS jsonb) -> 'attributes' -> 'choices' -> CAST(p.param_value AS INTEGER)
      WHEN {_IS_INT} THEN to_jsonb(CAST(p.param_value AS BIGINT))
      ELSE to_jsonb(p.param_value) END)""",
}

_LEADERBOARD = """
CREATE VIEW automl_leaderboard AS
WITH curve AS (
  SELECT trial_id, MIN(intermediate_value) AS low, MAX(intermediate_value) AS high
  FROM trial_intermediate_values WHERE intermediate_value_type = 'FINITE' GROUP BY trial_id
), cost AS (
  SELECT study_name, trial, MAX(step) AS steps, MAX(seconds) AS seconds, MAX(tokens) AS tokens,
    MAX(examples) AS examples
  FROM automl_measurements GROUP BY study_name, trial
), whole AS (
  SELECT study_name, SUM(seconds) AS seconds FROM cost GROUP BY study_name
), handed AS (
  SELECT study_name, trial, COUNT(*) AS attempts FROM automl_attempts GROUP BY study_name, trial
), chosen AS (
  SELECT p.trial_id, {params} AS params FROM trial_params p GROUP BY p.trial_id
)
SELECT
  s.study_name,
  CASE WHEN t.state = 'COMPLETE' AND v.value IS NOT NULL THEN RANK() OVER (
    PARTITION BY t.study_id, t.state ORDER BY CASE
      WHEN v.value IS NULL THEN 1.7976931348623157e308 ELSE {loss} END, COALESCE(w.value, 0)) END AS place,
  t.number AS trial,
  CAST(t.state AS VARCHAR(16)) AS state,
  v.value,
  {best} AS best_value,
  cost.steps,
  cost.seconds,
  cost.tokens,
  handed.attempts,
  REPLACE(r.value_json, '"', '') AS stop_reason,
  chosen.params,
  a.path AS adapter,
  CAST(f.value_json AS DOUBLE PRECISION) AS forgetting,
  cost.examples,
  CASE WHEN whole.seconds > 0 THEN c.device_seconds * cost.seconds / whole.seconds END AS device_seconds,
  CASE WHEN whole.seconds > 0 THEN c.cost * cost.seconds / whole.seconds END AS cost
FROM trials t
JOIN studies s ON s.study_id = t.study_id
JOIN study_directions d ON d.study_id = t.study_id AND d.objective = 0
LEFT JOIN trial_values v ON v.trial_id = t.trial_id AND v.objective = 0
LEFT JOIN trial_values w ON w.trial_id = t.trial_id AND w.objective = 1
LEFT JOIN trial_user_attributes r ON r.trial_id = t.trial_id AND r.key = 'stop_reason'
LEFT JOIN trial_user_attributes f ON f.trial_id = t.trial_id AND f.key = 'forgetting'
LEFT JOIN curve ON curve.trial_id = t.trial_id
LEFT JOIN cost ON cost.study_name = s.study_name AND cost.trial = t.number
LEFT JOIN whole ON whole.study_name = s.study_name
LEFT JOIN automl_costs c ON c.study_name = s.study_name
LEFT JOIN handed ON handed.study_name = s.study_name AND handed.trial = t.number
LEFT JOIN chosen ON chosen.trial_id = t.trial_id
LEFT JOIN automl_artifacts a
  ON a.study_name = s.study_name AND a.trial = t.number AND a.kind = 'adapter' AND a.deleted_at IS NULL
"""

_CURVES = """
CREATE VIEW automl_curves AS
WITH named AS MATERIALIZED (  -- Optuna has no index on a trial's number; without this, time is quadratic on SQLite
  SELECT s.study_name, t.number, CAST(t.state AS VARCHAR(16)) AS state
  FROM trials t JOIN studies s ON s.study_id = t.study_id
)
SELECT m.study_name, m.trial, named.state, m.step, v.metric, v.value, m.seconds, m.tokens, m.at
FROM automl_measurements m
JOIN automl_metric_values v ON v.study_name = m.study_name AND v.trial = m.trial AND v.step = m.step
LEFT JOIN named ON named.study_name = m.study_name AND named.number = m.trial
"""

_SPENT = """
CREATE VIEW automl_spent AS
SELECT
  s.study_name,
  CAST(t.state AS VARCHAR(16)) AS state,
  COUNT(*) AS trials,
  COALESCE(SUM(cost.steps), 0) AS steps,
  COALESCE(SUM(cost.seconds), 0) AS seconds,
  CAST(COALESCE(SUM(cost.tokens), 0) AS BIGINT) AS tokens,
  CAST(COALESCE(SUM(cost.examples), 0) AS BIGINT) AS examples
FROM trials t
JOIN studies s ON s.study_id = t.study_id
LEFT JOIN (
  SELECT study_name, trial, MAX(step) AS steps, MAX(seconds) AS seconds, MAX(tokens) AS tokens,
    MAX(examples) AS examples
  FROM automl_measurements GROUP BY study_name, trial
) cost ON cost.study_name = s.study_name AND cost.trial = t.number
GROUP BY s.study_name, t.state
"""

# A run that was not given a price is paid at the newest one.
_COSTS = """
CREATE VIEW automl_costs AS
SELECT
  r.study_name,
  SUM(r.device_seconds) AS device_seconds,
  SUM(r.device_seconds * COALESCE(r.price, n.price)) / 3600 AS cost,
  MAX(n.currency) AS currency
FROM automl_runs r
LEFT JOIN (
  SELECT p.study_name, p.price, p.currency FROM automl_runs p JOIN (
    SELECT study_name, MAX(run) AS run FROM automl_runs WHERE price IS NOT NULL GROUP BY study_name
  ) l ON l.study_name = p.study_name AND l.run = p.run
) n ON n.study_name = r.study_name
GROUP BY r.study_name
"""


def create_views(connection: Connection) -> None:
    """Create the views anew, inside the caller's transaction."""
    drop_views(connection)
    params = _PARAMS[connection.dialect.name]
    for statement in (_COSTS, _leaderboard(params), _CURVES, _SPENT):
        connection.execute(text(statement))


def drop_views(connection: Connection) -> None:
    """Drop the views, those that others are made of last, so that the tables under them can change."""
    for name in VIEWS:
        connection.execute(text(f"DROP VIEW IF EXISTS {name}"))


def _leaderboard(params: str) -> str:
    parts = {"params": params, "loss": loss("v.value"), "best": better("curve.low", "curve.high")}
    return _LEADERBOARD.format(**parts)
