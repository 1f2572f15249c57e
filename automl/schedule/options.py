"""What a schedule may be told beside its times, and how that is kept in `automl_schedules.options`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from automl.errors import ConfigError, Problem
from automl.schedule.notify import parse_target

NotifyOn = Literal["alerts", "always"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
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


def read_options(stored: Mapping[str, Any]) -> Options:
    """The options of a stored schedule; keys it does not have yet take their defaults."""
    known = {name: stored[name] for name in Options.__dataclass_fields__ if name in stored}
    return Options(**{**known, "notify": tuple(known.get("notify", ()))})


def check_options(name: str, options: Options) -> None:
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
