"""What a schedule may be told beside its times, and how that is kept in `automl_schedules.options`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args, get_type_hints

from automl.errors import ConfigError, Problem
from automl.schedule.cron import timing_problem
from automl.schedule.notify import parse_target
from automl.storage.jobs import Schedule

NotifyOn = Literal["alerts", "always"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleOptions:
    """warm_start: whether the last successful night's best configurations are tried first. verify: verify each night's
    winner. noise: least gain that counts (None: a rule by metric and rows). keep_nights: nights whose studies stay in
    the database; keep_artifacts: nights whose files stay on disk. notify: targets as on the command line.
    """

    warm_start: bool = True
    verify: bool = False
    noise: float | None = None
    keep_nights: int = 60
    keep_artifacts: int = 7
    notify: tuple[str, ...] = ()
    notify_on: NotifyOn = "alerts"

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "notify": list(self.notify)}


def read_options(stored: object) -> ScheduleOptions:
    """The options of a stored schedule; keys it does not have yet take their defaults.

    Raises ConfigError for what this version cannot mean: another version, or somebody by hand, has written it.
    """
    if not isinstance(stored, Mapping):
        raise _unreadable("options", f"{stored!r} is no mapping")
    kinds: Mapping[str, Any] = get_type_hints(ScheduleOptions)
    for name, value in stored.items():
        if name not in kinds:
            raise _unreadable(f"options.{name}", "is not known to this version")
        if not _is_a(value, kinds[name]):
            raise _unreadable(f"options.{name}", f"{value!r} is not what this version expects")
    return ScheduleOptions(**{**stored, "notify": tuple(stored.get("notify", ()))})


def schedule_problem(schedule: Schedule) -> str:
    """Why this program cannot go by a stored schedule, in one line; empty if it can."""
    try:
        read_options(schedule.options)
    except ConfigError as error:
        return str(error)
    return timing_problem(schedule.cron, schedule.timezone)


def stored_targets(schedule: Schedule) -> tuple[str, ...]:
    """Targets to be told, as far as the options can be read at all."""
    notify = schedule.options.get("notify") if isinstance(schedule.options, Mapping) else None
    return tuple(each for each in notify if isinstance(each, str)) if isinstance(notify, list) else ()


def _is_a(value: object, kind: Any) -> bool:
    if kind is bool:
        return isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if kind == NotifyOn:
        return value in get_args(NotifyOn)
    if kind == tuple[str, ...]:
        return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or (is_number and float(value) >= 0)  # type: ignore[arg-type]  # a number, as just seen


def _unreadable(key: str, message: str) -> ConfigError:
    return ConfigError([Problem("", 0, 0, key, f"{message}; say it anew with: automl schedule add … --replace")])


def check_options(name: str, options: ScheduleOptions) -> None:
    """Raise ConfigError with all that is wrong with a new schedule's name and options."""
    found = [
        ("--name", _name_problem(name)),
        ("--noise", "" if options.noise is None or options.noise >= 0 else f"{options.noise:g} is below 0"),
        ("--keep-nights", "" if options.keep_nights >= 1 else f"{options.keep_nights} is below 1"),
        ("--keep-artifacts", "" if options.keep_artifacts >= 1 else f"{options.keep_artifacts} is below 1"),
        *(("--notify", parse_target(target).problem) for target in options.notify),
    ]
    problems = [Problem("", 0, 0, option, message) for option, message in found if message]
    if problems:
        raise ConfigError(problems)


def _name_problem(name: str) -> str:
    if _NAME.fullmatch(name):
        return ""
    return f"{name!r} is not a name: up to 80 letters, digits, '.', '_' and '-', the first a letter or digit"
