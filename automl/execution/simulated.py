"""A host that replays recorded learning curves instead of training: whole searches in seconds, along the real path.

A table has one row for each configuration that was once trained to the end. A trial gets the unused row nearest to its
parameters, and each evaluation is the row's next value. Study, dispatcher, storage and SQL are those of any search;
only the trainer is replaced. No torch.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from automl.errors import DataError, Diverged
from automl.space.spec import FloatParameter
from automl.trial import Measurement, Metrics, Scalar, TrialFailure, TrialSpec, check_finite, failure_of

ARRAYS = ("names", "configurations", "curves")
"""Arrays of a table file (.npz): hyperparameters (d), their values (N, d), the metric at each evaluation (N, E)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CurveTable:
    """Recorded curves. configurations: (N, d), finite; curves: (N, E), may hold NaN and infinities.

    log: names of columns that are searched, and whose distances are measured, on a log scale.
    """

    names: tuple[str, ...]
    configurations: NDArray[np.float64]
    curves: NDArray[np.float64]
    log: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Raises ValueError if the arrays do not fit together."""
        rows, columns = self.configurations.shape
        if len(self.names) != columns or len(set(self.names)) != columns:
            raise ValueError(f"{len(set(self.names))} different names for {columns} columns of configurations")
        if self.curves.ndim != 2 or len(self.curves) != rows or not self.curves.size:
            raise ValueError(f"curves have shape {self.curves.shape}, but there are {rows} configurations")
        if not np.isfinite(self.configurations).all():
            raise ValueError("a configuration is not finite")
        for name in sorted(self.log):
            if name not in self.names:
                raise ValueError(f"log: there is no column {name!r}; there are {', '.join(self.names)}")
            if self.configurations[:, self.names.index(name)].min() <= 0:
                raise ValueError(f"log: column {name!r} has values that are not positive")

    @property
    def evaluations(self) -> int:
        """Evaluations of a full run."""
        return int(self.curves.shape[1])

    def parameters(self) -> tuple[FloatParameter, ...]:
        """A range for each column that varies, from its least to its greatest value."""
        low, high = self.configurations.min(axis=0), self.configurations.max(axis=0)
        return tuple(
            FloatParameter(name=name, low=float(low[index]), high=float(high[index]), log=name in self.log)
            for index, name in enumerate(self.names)
            if low[index] < high[index]
        )

    def scaled(self) -> NDArray[np.float64]:
        """Configurations in the unit cube, columns of `log` by their logarithm: (N, d)."""
        return self._scale(self.configurations)

    def place(self, params: Mapping[str, Scalar]) -> NDArray[np.float64]:
        """A point of the search in the same cube: (d,). A name that is missing gets the first row's value."""
        values = [float(params.get(name, self.configurations[0, index])) for index, name in enumerate(self.names)]
        return np.asarray(self._scale(np.array([values]))[0])

    def _scale(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """values: (n, d)."""
        is_log = np.array([name in self.log for name in self.names])
        all_rows = np.where(is_log, np.log(np.where(is_log, self.configurations, 1.0)), self.configurations)
        low, width = all_rows.min(axis=0), np.ptp(all_rows, axis=0)
        scaled = np.where(is_log, np.log(np.where(is_log, values, 1.0)), values)
        return np.asarray((scaled - low) / np.where(width > 0, width, 1.0))


def read_table(path: Path, *, arrays: Mapping[str, str], log: Sequence[str] | None) -> CurveTable:
    """Read a table file. arrays: our array name -> theirs, where they differ. log: None = every column.

    Raises DataError if the file cannot be read as a table; nothing in it is unpickled.
    """
    try:
        # Opened here, since numpy leaves a file open that it cannot read.
        with path.open("rb") as stream, np.lib.npyio.NpzFile(stream, allow_pickle=False) as file:
            names, configurations, curves = (_array(file, path, arrays.get(name, name)) for name in ARRAYS)
        columns = tuple(str(name) for name in names)
        return CurveTable(
            names=columns,
            configurations=np.atleast_2d(configurations.astype(np.float64)),
            curves=curves.astype(np.float64),
            log=frozenset(columns if log is None else log),
        )
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not a table of curves: {error}") from error


def _array(file: Mapping[str, NDArray[np.generic]], path: Path, name: str) -> NDArray[np.generic]:
    if name not in file:
        raise DataError(f"{path}: has no array {name!r}; it has {', '.join(list(file)[:8])}")
    return file[name]


class TableHost:
    """Replays `capacity` trials side by side: each `advance` brings the next value of every resident trial.

    begun: number and parameters of the trials that other hosts have opened before, in that order: they have the rows
    that they got then, so a search that continues later gives nobody another one. A non-finite value ends a trial as
    diverged.
    """

    def __init__(
        self,
        table: CurveTable,
        *,
        metric: str,
        capacity: int = 1,
        begun: Iterable[tuple[int, Mapping[str, Scalar]]] = (),
    ) -> None:
        self._table = table
        self._metric = metric
        self._capacity = capacity
        self._cube = table.scaled()
        self._open: dict[int, TrialSpec] = {}
        self._done: dict[int, int] = {}
        self.rows: dict[int, int] = {}
        for trial, params in list(begun)[: len(self._cube)]:  # there was no row for more
            self.rows[trial] = self._row(params)
        self.evaluations = 0

    @property
    def capacity(self) -> int:
        """See `Host.capacity`."""
        return self._capacity

    @property
    def busy_seconds(self) -> float:
        """See `Host.busy_seconds`: looking up takes no time."""
        return 0.0

    def open(self, spec: TrialSpec) -> Sequence[Measurement]:
        """See `Host.open`. Raises DataError if the table is shorter than a trial, or has no row left."""
        if math.ceil(spec.steps / spec.evaluate_every) > self._table.evaluations:
            raise DataError(
                f"a trial of {spec.steps} steps has more evaluations than the table, which has"
                f" {self._table.evaluations}; set search.steps and search.evaluate_every accordingly"
            )
        if spec.number not in self.rows:
            self.rows[spec.number] = self._row(spec.params)
        self._open[spec.number] = spec
        done = self._done.setdefault(spec.number, 0)
        return [self._measurement(spec, evaluation) for evaluation in range(1, done + 1)]

    def advance(self) -> Sequence[Measurement | TrialFailure]:
        """See `Host.advance`."""
        unfinished = [spec for spec in self._open.values() if self._step(spec, self._done[spec.number]) < spec.steps]
        return [self._next(spec) for spec in unfinished]

    def park(self, trial: int) -> None:
        """See `Host.park`."""
        self._open.pop(trial, None)

    def close(self, trial: int) -> None:
        """See `Host.close`."""
        self._open.pop(trial, None)

    def baseline(self) -> Metrics:
        """The median of the table's first evaluation, the nearest to a model that has not been trained."""
        first = self._table.curves[:, 0]
        return {self._metric: float(np.median(first[np.isfinite(first)]))}

    def shutdown(self) -> None:
        """See `Host.shutdown`."""
        self._open.clear()

    def _next(self, spec: TrialSpec) -> Measurement | TrialFailure:
        self._done[spec.number] += 1
        self.evaluations += 1
        measurement = self._measurement(spec, self._done[spec.number])
        try:
            check_finite(measurement.metrics, measurement.step)
        except Diverged as error:
            del self._open[spec.number]
            return failure_of(error, trial=spec.number, step=measurement.step)
        return measurement

    def _measurement(self, spec: TrialSpec, evaluation: int) -> Measurement:
        value = float(self._table.curves[self.rows[spec.number], evaluation - 1])
        return Measurement(trial=spec.number, step=self._step(spec, evaluation), metrics={self._metric: value})

    def _step(self, spec: TrialSpec, evaluation: int) -> int:
        return min(spec.steps, evaluation * spec.evaluate_every)

    def _row(self, params: Mapping[str, Scalar]) -> int:
        """The unused row that is nearest; it depends on nothing but the trials before this one."""
        distances = ((self._cube - self._table.place(params)) ** 2).sum(axis=1)
        distances[list(self.rows.values())] = np.inf
        row = int(distances.argmin())
        if not math.isfinite(distances[row]):
            raise DataError(f"the table's {len(self._cube)} rows are used up")
        return row
