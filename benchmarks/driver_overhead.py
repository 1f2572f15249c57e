"""What a trial costs the driver: sampling, SQL, decisions, for trials that train nothing.

Measures the time inside `Dispatcher.exchange` for real studies in real databases (lease, attempts, measurements, the
tables of Optuna), with a host that answers at once, over the last tenth of the trials before each count. Does not
measure Ray, training, slot files or adapters; with PostgreSQL, wall time holds the server's work, CPU time does not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from automl.execution.dispatch import Dispatcher
from automl.execution.worker import Worker
from automl.lora import Hyperparameters
from automl.space.spec import CategoricalParameter, FloatParameter, IntParameter, SearchSettings, SearchSpace
from automl.storage.lease import StudyLease
from automl.storage.sql import open_database
from automl.study.study import Study
from automl.trial import Cohort, Measurement, Metrics, OrderKind, TrialFailure, TrialSpec
from benchmarks import postgres
from benchmarks.measure import Timing, timed
from benchmarks.report import Report, names, numbers, parser, table

SPACE = SearchSpace(
    parameters=(
        IntParameter(name="rank", low=2, high=64, log=True),
        CategoricalParameter(name="alpha_ratio", choices=(0.5, 1, 2, 4)),
        FloatParameter(name="dropout", low=0.0, high=0.2),
        CategoricalParameter(name="target", choices=("qv", "all-linear")),
        FloatParameter(name="learning_rate", low=1e-5, high=1e-1, log=True),
        FloatParameter(name="weight_decay", low=0.0, high=0.1),
    )
)
"""Six parameters, as a usual space has."""

STEPS = 5
"""Steps of a trial; a measurement of two metrics at each."""


class InstantHost:
    """Trains nothing: every trial goes one step at each call, its loss a function of its learning rate and seed."""

    busy_seconds = 0.0

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._residents: dict[int, tuple[TrialSpec, int]] = {}

    def open(self, spec: TrialSpec) -> Sequence[Measurement]:
        """Start a trial."""
        self._residents[spec.number] = (spec, 0)
        return ()

    def advance(self) -> Sequence[Measurement | TrialFailure]:
        """One measurement of every trial that has steps left."""
        measured = []
        for number, (spec, step) in self._residents.items():
            if step < spec.steps:
                self._residents[number] = (spec, step + 1)
                measured.append(_measurement(spec, step + 1))
        return measured

    def park(self, trial: int) -> None:
        """Forget it; nothing here continues a parked trial."""
        self._residents.pop(trial, None)

    close = park

    def baseline(self) -> Metrics:
        """Metrics of a model that knows nothing."""
        return {"loss": 2.0, "accuracy": 0.5}

    def shutdown(self) -> None:
        """Nothing to release."""


class Ledger:
    """Driver time, summed up, whenever trials have ended. `counts[i]` trials had ended after `spent[i]`."""

    def __init__(self) -> None:
        self.counts = [0]
        self.spent = [Timing(0.0, 0.0)]

    def add(self, ended: int, timing: Timing) -> None:
        """Book one exchange that ended so many trials."""
        self.counts.append(self.counts[-1] + ended)
        self.spent.append(Timing(self.spent[-1].cpu + timing.cpu, self.spent[-1].wall + timing.wall))

    def per_trial(self, count: int) -> Timing:
        """Mean time of a trial over the last tenth of the first `count` trials, at least ten of them."""
        before = self._first(count - max(10, count // 10))
        until = self._first(count)
        trials = self.counts[until] - self.counts[before]
        first, last = self.spent[before], self.spent[until]
        return Timing(last.cpu - first.cpu, last.wall - first.wall).per(max(1, trials))

    def _first(self, count: int) -> int:
        """Index of the first entry at which so many trials had ended."""
        return next((index for index, ended in enumerate(self.counts) if ended >= count), len(self.counts) - 1)


def run_study(url: str, *, trials: int, capacity: int, sampler: str, pruner: str) -> Ledger:
    """A whole study of that many trials in an empty database at this URL."""
    ledger = Ledger()
    settings = SearchSettings(
        sampler=sampler, pruner=pruner, trials=trials, steps=STEPS, evaluate_every=1, seed=1, keep=1
    )
    with open_database(url, create=True) as database, StudyLease(database, "driver") as lease:
        run = lease.take("driver overhead", "0" * 64, {})
        study = Study(
            name="driver",
            storage=database.optuna_storage(guard=lease.verify),
            store=database.store("driver", guard=lease.verify),
            space=SPACE,
            settings=settings,
            metric="loss",
            run=run,
            derive=_derive,
        )
        dispatcher = Dispatcher(study)
        worker = Worker(InstantHost(capacity), 0)
        cohort = worker.hello()
        while not worker.stopped:
            cohort = worker.step(_exchanged(dispatcher, cohort, ledger))
        dispatcher.finish()
        study.close()
    return ledger


def _exchanged(dispatcher: Dispatcher, cohort: Cohort, ledger: Ledger) -> Sequence[Any]:
    orders: list[Any] = []
    timing = timed(lambda: orders.extend(dispatcher.exchange(cohort)))
    ledger.add(sum(order.kind is OrderKind.CLOSE for order in orders), timing)
    return orders


def _measurement(spec: TrialSpec, step: int) -> Measurement:
    loss = 1.0 + abs(hash((spec.seed, round(spec.hyper.learning_rate, 9)))) % 1000 / 1000 + 1.0 / step
    return Measurement(
        trial=spec.number, step=step, metrics={"loss": loss, "accuracy": 0.5}, seconds=0.1 * step, tokens=100 * step
    )


def _derive(hyper: Hyperparameters) -> dict[str, float]:
    return {"trainable_params": 1000.0 * hyper.rank}


@contextmanager
def _sqlite() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="automl-driver-") as folder:
        yield f"sqlite:///{Path(folder) / 'study.db'}"


STORAGES = {"sqlite": _sqlite, "postgresql": postgres.server}


def measure(storage: str, counts: Sequence[int], args: argparse.Namespace) -> dict[str, Any]:
    """Driver time per trial at each of these counts, in one study."""
    with STORAGES[storage]() as url:
        ledger = run_study(url, trials=max(counts), capacity=args.slots, sampler=args.sampler, pruner=args.pruner)
    at = {count: ledger.per_trial(count) for count in counts}
    first, last = at[counts[0]], at[counts[-1]]
    return {
        "storage": storage,
        "at": {str(count): timing._asdict() for count, timing in at.items()},
        "growth": {"cpu": last.cpu / first.cpu, "wall": last.wall / first.wall},
        "total": ledger.spent[-1]._asdict(),
        "raw": _thinned(ledger),
    }


def _thinned(ledger: Ledger, most: int = 2000) -> list[tuple[int, float, float]]:
    """(trials ended, CPU seconds, wall seconds) summed up, at most so many of them."""
    stride = -(-len(ledger.counts) // most)
    pairs = list(zip(ledger.counts, ledger.spent, strict=True))[::stride]
    return [(count, spent.cpu, spent.wall) for count, spent in pairs]


def rows_of(result: Mapping[str, Any]) -> Iterator[dict[str, object]]:
    """Table rows of one storage."""
    for count, timing in result["at"].items():
        yield {
            "storage": result["storage"],
            "at trial": count,
            "driver wall ms per trial": f"{1e3 * timing['wall']:.1f}",
            "driver CPU ms per trial": f"{1e3 * timing['cpu']:.1f}",
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = parser("driver_overhead", (__doc__ or "").split("\n\n")[0])
    options.add_argument("--counts", type=numbers, default=(100, 1_000, 10_000), metavar="N,N,…")
    options.add_argument("--storages", type=names, default=tuple(STORAGES), metavar="NAME,…")
    options.add_argument("--slots", type=int, default=8, help="trials that report together")
    options.add_argument("--sampler", default="random")
    options.add_argument("--pruner", default="none")
    args = options.parse_args(arguments)
    if args.quick:
        args.counts = (10, 30)
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    report = Report("driver_overhead", args)
    report.print_machine()
    rows: list[dict[str, object]] = []
    for storage in args.storages:
        reason = postgres.why_not() if storage == "postgresql" else None
        if reason is not None:
            print(f"{storage} is left out: {reason}")
            report.append("left_out", {"storage": storage, "reason": reason})
            continue
        result = measure(storage, sorted(args.counts), args)
        report.append("results", result)
        rows += rows_of(result)
        growth = result["growth"]
        print(
            f"{storage}: driver time per trial at {max(args.counts)} against {min(args.counts)} trials: "
            f"wall {growth['wall']:.2f}x, CPU {growth['cpu']:.2f}x"
        )
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
