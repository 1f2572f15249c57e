"""What trials forget: a metric on rows that no trial learns, held against the untuned model's.

The untuned model is measured once; its value lies beside the prepared rows, in a file named after everything that it
depends on, so that all workers, later runs and verifications share it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from automl import durable
from automl.errors import DataError, ResourceError
from automl.lanes import trial_name
from automl.metric import METRICS
from automl.space.spec import TaskSettings
from automl.tasks.base import Prepared, Row, Task
from automl.tasks.read import source_name
from automl.trial import FORGETTING, KEPT

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """The data of `keep:`, prepared: all rows are those of validation."""

    task: TaskSettings
    prepared: Prepared

    @property
    def in_words(self) -> str:
        """`loss on 256 rows of general.jsonl`."""
        rows = min(self.task.evaluate_rows or sys.maxsize, self.prepared.rows["validation"])
        return f"{self.task.metric} on {rows} rows of {source_name(self.task.data)}"

    def record(self) -> dict[str, object]:
        """What values of forgetting must share to be comparable."""
        return {"data": self.prepared.fingerprint, "metric": self.task.metric, "rows": self.task.evaluate_rows}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRows:
    """The rows that are measured on. task: how they are read and scored. file: keeps the untuned model's value."""

    task: Task
    rows: Sequence[Row]
    file: Path

    @property
    def metric(self) -> str:
        """The name of what is measured."""
        return self.task.settings.metric

    def untuned(self, measure: Callable[[], Mapping[str, float]]) -> float:
        """The metric of the untuned model, from the file, or measured and written there; others wait meanwhile.

        measure: its metrics on these rows. Raises DataError if the metric is not a finite number, ResourceError if the
        file cannot be written.
        """
        value = _read(self.file, self.metric)
        if value is None:
            value = self._measured(measure)
        if not math.isfinite(value):
            raise DataError(f"keep: {self.metric} of the untuned model is {value}; nothing can be held against that")
        return value

    def told(self, metrics: Mapping[str, float], untuned: float, *, trial: int) -> dict[str, float]:
        """KEPT and FORGETTING from a trial's metrics on these rows; nothing, and a warning, if they are not finite.

        Forgetting is 0 for what the untuned model does, above it for worse, below for better.
        """
        value = metrics[self.metric]
        forgotten = METRICS[self.metric].gain(untuned, over=value)
        if not math.isfinite(forgotten):
            logger.warning("%s: forgetting is not known, its %s on keep is %s", trial_name(trial), self.metric, value)
            return {}
        return {KEPT: value, FORGETTING: forgotten}

    def _measured(self, measure: Callable[[], Mapping[str, float]]) -> float:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                value = _read(self.file, self.metric)  # somebody else may have measured it meanwhile
                if value is None:
                    value = float(measure()[self.metric])
                    durable.replace_file(self.file, json.dumps({self.metric: value}).encode())
                return value
        except OSError as error:
            raise ResourceError(f"{self.file} cannot be kept: {error.strerror or error}") from error


def _read(file: Path, metric: str) -> float | None:
    try:
        return float(json.loads(file.read_text(encoding="utf-8"))[metric])
    except (OSError, ValueError, KeyError, TypeError):
        return None
