"""The tables this project keeps beside Optuna's, and the database clock. Nothing of SQLAlchemy leaves `storage/`.

A trial is named by study name and number, without a foreign key into Optuna's tables, which may be migrated or deleted
on their own. All times are UTC, stored without a zone (as Optuna 5 stores its own) and read back with one.
Documented column by column in docs/reference/database.md; a change here needs a revision in `migrations/versions`.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    literal,
    text,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from automl.storage.base import AttemptState, RunEnd
from automl.storage.jobs import FiringState, SubmissionState
from automl.trial import StopReason

_NAMING = {
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(referred_table_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "ix": "ix_%(table_name)s_%(column_0_name)s",
}
_STUDY = 255
_SHA256 = 64
# NaN is greater than every number in PostgreSQL and cannot be stored in SQLite (it becomes NULL).
_FINITE = "BETWEEN -1.7976931348623157e308 AND 1.7976931348623157e308"


class UtcDateTime(TypeDecorator[datetime]):
    """An instant: aware in Python, naive UTC in the database."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


class Now(FunctionElement[datetime]):
    """The database's clock plus some seconds, at the moment the statement runs (milliseconds on SQLite)."""

    type = UtcDateTime()
    inherit_cache = True

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__(literal(seconds, Float))


@compiles(Now, "sqlite")
def _now_sqlite(element: Now, compiler: Any, **keywords: Any) -> str:
    # SQLite 3.40 knows no 'subsec'. Six digits, as SQLAlchemy writes them, so that text compares like time.
    seconds = compiler.process(element.clauses, **keywords)
    return f"(strftime('%Y-%m-%d %H:%M:%f', 'now', {seconds} || ' seconds') || '000')"


@compiles(Now, "postgresql")
def _now_postgresql(element: Now, compiler: Any, **keywords: Any) -> str:
    seconds = compiler.process(element.clauses, **keywords)
    return f"((clock_timestamp() AT TIME ZONE 'UTC') + make_interval(secs => {seconds}))"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


metadata = MetaData(naming_convention=_NAMING)

sweeps = Table(
    "automl_sweeps",
    metadata,
    Column("study_name", String(_STUDY), primary_key=True),
    Column("space_text", Text, nullable=False),
    Column("space_sha256", String(_SHA256), nullable=False),
    Column("provenance", JSON, nullable=False),
    Column("runs", Integer, nullable=False),
    Column("owner", String(_STUDY)),
    Column("owner_process", String(_STUDY)),
    Column("lease_until", UtcDateTime),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("identity", String(32)),
    Column("folder", Text),
    CheckConstraint("runs >= 0", name="runs"),
    CheckConstraint("(owner IS NULL) = (lease_until IS NULL)", name="lease"),
    # Pages list studies by these; the rows themselves hold long texts.
    Index("ix_automl_sweeps_updated_at", "updated_at", "study_name"),
    Index("ix_automl_sweeps_lease_until", "lease_until"),
)

runs = Table(
    "automl_runs",
    metadata,
    Column("study_name", String(_STUDY), primary_key=True),
    Column("run", Integer, primary_key=True),
    Column("trials", Integer, nullable=False),
    Column("steps", Integer, nullable=False),
    Column("metric", String(64), nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    Column("ended", String(16)),
    Column("device_seconds", Float(53)),
    Column("price", Float(53)),
    Column("currency", String(8)),
    CheckConstraint("run >= 1", name="run"),
    CheckConstraint("trials >= 0 AND steps >= 0", name="counts"),
    CheckConstraint(f"ended IS NULL OR ended IN ({_listed(RunEnd)})", name="ended"),
    CheckConstraint("(ended IS NULL) = (ended_at IS NULL)", name="ended_at"),
    CheckConstraint(
        f"device_seconds IS NULL OR (device_seconds >= 0 AND device_seconds {_FINITE})", name="device_seconds"
    ),
    CheckConstraint(f"price IS NULL OR (price > 0 AND price {_FINITE})", name="price"),
    CheckConstraint("(price IS NULL) = (currency IS NULL)", name="currency"),
)

attempts = Table(
    "automl_attempts",
    metadata,
    Column("study_name", String(_STUDY), primary_key=True),
    Column("trial", Integer, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("worker", Integer, nullable=False),
    Column("run", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    CheckConstraint("number >= 1", name="number"),
    CheckConstraint(f"state IN ({_listed(AttemptState)})", name="state"),
    CheckConstraint(f"state NOT IN ('SUCCEEDED', 'FAILED') OR reason IN ({_listed(StopReason)})", name="reason"),
    CheckConstraint("(state = 'RUNNING') = (ended_at IS NULL)", name="ended"),
)

measurements = Table(
    "automl_measurements",
    metadata,
    Column("study_name", String(_STUDY), primary_key=True),
    Column("trial", Integer, primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("seconds", Float(53), nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("adapter", Text),
    Column("at", UtcDateTime, nullable=False),
    Column("examples", BigInteger),
    CheckConstraint("step >= 0", name="step"),
    CheckConstraint(f"seconds >= 0 AND seconds {_FINITE}", name="seconds"),
    CheckConstraint("tokens >= 0", name="tokens"),
)

metric_values = Table(
    "automl_metric_values",
    metadata,
    Column("study_name", String(_STUDY), primary_key=True),
    Column("trial", Integer, primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("metric", String(64), primary_key=True),
    Column("value", Float(53), nullable=False),
    CheckConstraint(f"value {_FINITE}", name="value"),
    ForeignKeyConstraint(
        ["study_name", "trial", "step"],
        ["automl_measurements.study_name", "automl_measurements.trial", "automl_measurements.step"],
        ondelete="CASCADE",
    ),
)

artifacts = Table(
    "automl_artifacts",
    metadata,
    Column("study_name", String(_STUDY), primary_key=True),
    Column("trial", Integer, primary_key=True),
    Column("kind", String(32), primary_key=True),
    Column("path", Text, nullable=False),
    Column("sha256", String(_SHA256), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("metric", Float(53)),
    Column("created_at", UtcDateTime, nullable=False),
    Column("deleted_at", UtcDateTime),
    CheckConstraint("bytes >= 0", name="bytes"),
    CheckConstraint(f"metric IS NULL OR metric {_FINITE}", name="metric"),
)

events = Table(
    "automl_events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("study_name", String(_STUDY), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("kind", String(64), nullable=False),
    Column("detail", JSON, nullable=False),
    Index("ix_automl_events_study_name", "study_name"),
)

importances = Table(
    "automl_importances",
    metadata,
    Column("study_name", String(_STUDY), primary_key=True),
    Column("trial", Integer, primary_key=True),
    Column("module", String(_STUDY), primary_key=True),
    Column("rank", Integer, nullable=False),
    Column("in_features", Integer, nullable=False),
    Column("out_features", Integer, nullable=False),
    Column("step", Integer, nullable=False),
    Column("fraction_done", Float(53), nullable=False),
    Column("samples", Integer, nullable=False),
    Column("sensitivity", Float(53), nullable=False),
    Column("uncertainty", Float(53), nullable=False),
    Column("effective_rank", Float(53), nullable=False),
    Column("relative_update", Float(53), nullable=False),
    Column("held_out", Float(53)),
    Column("held_out_error", Float(53)),
    Column("components", JSON, nullable=False),
    CheckConstraint("rank >= 1 AND samples >= 0 AND step >= 0", name="counts"),
    CheckConstraint("fraction_done >= 0 AND fraction_done <= 1", name="fraction_done"),
    CheckConstraint(f"sensitivity {_FINITE} AND uncertainty {_FINITE}", name="sensitivity"),
)

verifications = Table(
    "automl_verifications",
    metadata,
    Column("study_name", String(_STUDY), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("state", String(16), nullable=False),
    Column("plan", JSON, nullable=False),
    Column("result", JSON),
    Column("started_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    CheckConstraint("number >= 1", name="number"),
    CheckConstraint("state IN ('RUNNING', 'DONE')", name="state"),
    CheckConstraint("(state = 'DONE') = (ended_at IS NOT NULL)", name="ended"),
)

verification_scores = Table(
    "automl_verification_scores",
    metadata,
    Column("study_name", String(_STUDY), primary_key=True),
    Column("verification", Integer, primary_key=True),
    Column("arm", String(64), primary_key=True),
    Column("seed", Integer, primary_key=True),
    Column("learning_rate", Float(53), primary_key=True),
    Column("split", String(16), primary_key=True),
    Column("metric", String(64), primary_key=True),
    Column("value", Float(53), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    CheckConstraint("split IN ('validation', 'test')", name="split"),
    CheckConstraint(f"value {_FINITE}", name="value"),
    ForeignKeyConstraint(
        ["study_name", "verification"],
        ["automl_verifications.study_name", "automl_verifications.number"],
        ondelete="CASCADE",
    ),
)

squeezes = Table(
    "automl_squeezes",
    metadata,
    Column("study_name", String(_STUDY), primary_key=True),
    Column("trial", Integer, primary_key=True),
    Column("adapter_sha256", String(_SHA256), nullable=False),
    Column("metric", String(64), nullable=False),
    Column("margin", Float(53), nullable=False),
    Column("rows", Integer, nullable=False),
    Column("seen", Integer, nullable=False),
    Column("knee", BigInteger, nullable=False),
    Column("recovery_steps", Integer, nullable=False),
    Column("seconds", Float(53), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    CheckConstraint("rows >= 1 AND seen >= 0 AND knee >= 1 AND recovery_steps >= 0", name="counts"),
    CheckConstraint(f"margin >= 0 AND margin {_FINITE}", name="margin"),
)

squeeze_cuts = Table(
    "automl_squeeze_cuts",
    metadata,
    Column("study_name", String(_STUDY), primary_key=True),
    Column("trial", Integer, primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("parameters", BigInteger, primary_key=True),
    Column("even_rank", Float(53), nullable=False),
    Column("kept", Float(53), nullable=False),
    Column("value", Float(53), nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("recovered", JSON(none_as_null=True)),
    CheckConstraint("kind IN ('whole', 'global', 'even', 'asked')", name="kind"),
    CheckConstraint("parameters >= 1 AND even_rank > 0 AND kept >= 0", name="size"),
    CheckConstraint(f"value {_FINITE}", name="value"),
    ForeignKeyConstraint(
        ["study_name", "trial"],
        ["automl_squeezes.study_name", "automl_squeezes.trial"],
        ondelete="CASCADE",
    ),
)

squeezed_modules = Table(
    "automl_squeezed_modules",
    metadata,
    Column("study_name", String(_STUDY), primary_key=True),
    Column("trial", Integer, primary_key=True),
    Column("module", String(_STUDY), primary_key=True),
    Column("in_features", Integer, nullable=False),
    Column("out_features", Integer, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("knee_rank", Integer, nullable=False),
    Column("strengths", JSON, nullable=False),
    CheckConstraint("rank >= 0 AND knee_rank >= 0 AND knee_rank <= rank", name="rank"),
    ForeignKeyConstraint(
        ["study_name", "trial"],
        ["automl_squeezes.study_name", "automl_squeezes.trial"],
        ondelete="CASCADE",
    ),
)

verification_outcomes = Table(
    "automl_verification_outcomes",
    metadata,
    Column("study_name", String(_STUDY), primary_key=True),
    Column("verification", Integer, primary_key=True),
    Column("arm", String(64), primary_key=True),
    Column("seed", Integer, primary_key=True),
    Column("learning_rate", Float(53), primary_key=True),
    Column("split", String(16), primary_key=True),
    Column("outcomes", Text, nullable=False),
    CheckConstraint("split IN ('validation', 'test')", name="split"),
    ForeignKeyConstraint(
        ["study_name", "verification"],
        ["automl_verifications.study_name", "automl_verifications.number"],
        ondelete="CASCADE",
    ),
)

schedules = Table(
    "automl_schedules",
    metadata,
    Column("name", String(100), primary_key=True),
    Column("cron", String(_STUDY), nullable=False),
    Column("timezone", String(64), nullable=False),
    Column("space_text", Text, nullable=False),
    Column("folder", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("overlap", String(16), nullable=False),
    Column("catch_up_seconds", Float(53)),
    Column("deadline_seconds", Float(53)),
    Column("options", JSON, nullable=False),
    Column("fired_until", UtcDateTime, nullable=False),
    Column("version", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    CheckConstraint("state IN ('ACTIVE', 'PAUSED')", name="state"),
    CheckConstraint("overlap IN ('skip', 'queue')", name="overlap"),
    CheckConstraint("catch_up_seconds IS NULL OR catch_up_seconds >= 0", name="catch_up_seconds"),
    CheckConstraint("deadline_seconds IS NULL OR deadline_seconds > 0", name="deadline_seconds"),
)

firings = Table(
    "automl_firings",
    metadata,
    Column("schedule", String(100), primary_key=True),
    Column("slot", UtcDateTime, primary_key=True),
    Column("cause", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("study_name", String(_STUDY)),
    Column("attempts", Integer, nullable=False),
    Column("owner", String(_STUDY)),
    Column("owner_process", String(_STUDY)),
    Column("lease_until", UtcDateTime),
    Column("not_before", UtcDateTime),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("ended_at", UtcDateTime),
    Column("exit_code", Integer),
    Column("value", Float(53)),
    Column("comparison", JSON(none_as_null=True)),
    Column("message", Text, nullable=False),
    CheckConstraint("cause IN ('cron', 'hand')", name="cause"),
    CheckConstraint(f"state IN ({_listed(FiringState)})", name="state"),
    CheckConstraint("attempts >= 0", name="attempts"),
    CheckConstraint("(state = 'RUNNING') = (owner IS NOT NULL)", name="owner"),
    CheckConstraint("(owner IS NULL) = (lease_until IS NULL)", name="lease"),
    CheckConstraint("(state IN ('QUEUED', 'RUNNING')) = (ended_at IS NULL)", name="ended"),
    CheckConstraint(f"value IS NULL OR value {_FINITE}", name="value"),
    # Never two nights of a schedule at once, whatever several schedulers believe.
    Index(
        "ix_automl_firings_running",
        "schedule",
        unique=True,
        sqlite_where=text("state = 'RUNNING'"),
        postgresql_where=text("state = 'RUNNING'"),
    ),
)

submissions = Table(
    "automl_submissions",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("study_name", String(_STUDY), nullable=False),
    Column("space_text", Text, nullable=False),
    Column("submitted_at", UtcDateTime, nullable=False),
    Column("submitted_by", String(_STUDY), nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("owner", String(_STUDY)),
    Column("owner_process", String(_STUDY)),
    Column("lease_until", UtcDateTime),
    Column("not_before", UtcDateTime),
    Column("started_at", UtcDateTime),
    Column("ended_at", UtcDateTime),
    Column("exit_code", Integer),
    Column("message", Text, nullable=False),
    CheckConstraint(f"state IN ({_listed(SubmissionState)})", name="state"),
    CheckConstraint("attempts >= 0", name="attempts"),
    CheckConstraint("(state = 'RUNNING') = (owner IS NOT NULL)", name="owner"),
    CheckConstraint("(owner IS NULL) = (lease_until IS NULL)", name="lease"),
    CheckConstraint("(state IN ('QUEUED', 'RUNNING')) = (ended_at IS NULL)", name="ended"),
    Index("ix_automl_submissions_state", "state"),
    # Never two sweeps of a study at once, whoever submits them, and when.
    Index(
        "ix_automl_submissions_open",
        "study_name",
        unique=True,
        sqlite_where=text("state IN ('QUEUED', 'RUNNING')"),
        postgresql_where=text("state IN ('QUEUED', 'RUNNING')"),
    ),
)

schedulers = Table(
    "automl_schedulers",
    metadata,
    Column("owner", String(_STUDY), primary_key=True),
    Column("owner_process", String(_STUDY), nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("seen_at", UtcDateTime, nullable=False),
    Column("running", JSON, nullable=False),
)
