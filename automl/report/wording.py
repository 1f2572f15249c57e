"""How numbers, configurations and commands are written in every format of the report."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from datetime import datetime
from typing import Any


def number(value: float | int | str | bool | None, digits: int = 4) -> str:
    """A value for a person: whole numbers with thousands separators, others to some significant digits."""
    if value is None:
        return "–"
    if isinstance(value, (bool, str)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.{digits}g}" if math.isfinite(value) else "–"


def score(value: float | None) -> str:
    """A value of the metric: three decimals, or four significant digits where that is less."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.3f}" if 0.01 <= abs(value) < 1000 or value == 0 else f"{value:.4g}"


def signed(value: float | None) -> str:
    """A difference, with its sign; a true minus."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:+.3f}".replace("-", "−") if abs(value) >= 0.001 or value == 0 else f"{value:+.2g}".replace("-", "−")


def sentence(text: str) -> str:
    """The text with a capital and one full stop."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def percent(share: float | None) -> str:
    """A share in [0, 1] as a whole percentage."""
    return "–" if share is None else f"{100 * share:.0f} %"


def confidence(level: float) -> str:
    """The level of an interval: `98 %`, `98.7 %`."""
    return f"{100 * level:.3g} %"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (math.inf, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.{0 if size == 1 or seconds / size >= 10 else 1}f} {unit}"
    return "–"


def moment(when: datetime | None) -> str:
    """Date and minute, UTC."""
    return "–" if when is None else when.strftime("%Y-%m-%d %H:%M UTC")


def configuration(params: Mapping[str, Any], trained_rate: float | None = None) -> str:
    """Parameters on one line: `rank 8, learning_rate 0.0031`; with the rate of the training if another was searched."""
    shown = dict(params) if trained_rate is None else {**params, "trained at rate": trained_rate}
    return ", ".join(f"{name} {number(value)}" for name, value in shown.items()) or "defaults"


def counted(count: int, noun: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def command(*words: str) -> str:
    """A command line that a shell takes as it is written."""
    return shlex.join(("automl", *words))
