"""Recorded curves to search in, and how well a search did on them: the protocol of `benchmarks.replay`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from automl.execution.simulated import CurveTable
from benchmarks.curve_file import WHOLE, CurveFile, read_curves

BUDGETS = (2, 5, 10, 20)
"""Full runs' worth of evaluations at which a search is judged."""

TUNED_TASKS = ("patch128_LSTM128_avg_bs64", "patch32_GRU64_avg_bs128", "patch32_LSTM128_bs128")
"""TaskSet tasks that were looked at while the default policy was chosen (with seeds 0 to 5); the others were not."""

_LCBENCH_LOG = frozenset({"batch_size", "learning_rate", "weight_decay", "max_units"})
_LORA_LOG = frozenset({"rank", "alpha_ratio", "learning_rate", "batch_size"})

LORA = ("lora", "lora-at-alpha")
"""Tables of `benchmarks.lora_curves`: searched in learning rates as they are, and in those that AT_ALPHA would need."""

AT_ALPHA = 32.0
"""At another alpha a rate does what rate x sqrt(alpha / AT_ALPHA) does at this one (arXiv 2602.06204)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recorded:
    """One task: its table, the same curves on test data if there are any, and what 0 and 1 mean on its scale.

    best: least value of the table; chance: median of the first evaluation; top: rows whose last value is in the best
    percent.
    """

    table: CurveTable
    test: NDArray[np.float64] | None
    best: float
    chance: float
    top: frozenset[int]


@lru_cache(maxsize=64)
def recorded(folder: Path, kind: str, task: str) -> Recorded:
    """A task of `taskset` (validation loss, 51 evaluations, the first before training), of `lcbench` (100 - accuracy),
    or of LORA.

    Arrays are read as they lie in hpo_taskset_nlp/taskset_nlp.npz and hpo_lcbench_surrogate/lcbench.npz; for LORA the
    folder has a file for each set.
    """
    if kind in LORA:
        return of_trainings(read_curves(folder / f"{task}.npz"), at_alpha=kind == "lora-at-alpha")
    test = None
    if kind == "taskset":
        with np.load(folder / "hpo_taskset_nlp" / "taskset_nlp.npz", allow_pickle=False) as file:
            names, configurations = file["hp_names"], file[f"{task}__hp"]
            curves, test = file[f"{task}__valid_loss"], file[f"{task}__test_loss"].astype(np.float64)
        log = frozenset(map(str, names))
    else:
        with np.load(folder / "hpo_lcbench_surrogate" / "lcbench.npz", allow_pickle=False) as file:
            names, configurations, curves = file["hp_names"], file["configs"], 100.0 - file[f"{task}__val_accuracy"]
        log = _LCBENCH_LOG
    table = CurveTable(
        names=tuple(map(str, names)),
        configurations=configurations.astype(np.float64),
        curves=curves.astype(np.float64),
        log=log,
    )
    return scaled(table, test)


def of_trainings(file: CurveFile, *, at_alpha: bool = False) -> Recorded:
    """The first training of each configuration as a table of losses, or of 1 - metric."""
    curves = [file.curves[key] for key in sorted(file.curves) if key.repeat == 0]
    names = [name for name in curves[0].configuration if name != "alpha"]
    given = np.array([[curve.configuration[name] for name in names] for curve in curves])
    if at_alpha:
        alphas = np.array([curve.configuration["alpha"] for curve in curves])
        given[:, names.index("learning_rate")] *= np.sqrt(alphas / AT_ALPHA)
    values, test = (np.array([getattr(curve, rows)[:, 0] for curve in curves]) for rows in ("validation", "test"))
    if file.metrics[0] != "loss":
        values, test = 1.0 - values, 1.0 - test
    return scaled(
        CurveTable(names=tuple(names), configurations=given, curves=values, log=_LORA_LOG.intersection(names)), test
    )


def scaled(table: CurveTable, test: NDArray[np.float64] | None = None) -> Recorded:
    """A table with its scale. Rows that ever are non-finite are never among the best percent."""
    finite = np.where(np.isfinite(table.curves), table.curves, np.inf)
    first = table.curves[:, 0][np.isfinite(table.curves[:, 0])]
    last = np.where(np.isfinite(table.curves).all(axis=1), table.curves[:, -1], np.inf)
    top = np.argsort(last, kind="stable")[: max(1, len(last) // 100)]
    return Recorded(
        table=table,
        test=test,
        best=float(finite.min()),
        chance=float(np.median(first)),
        top=frozenset(int(row) for row in top),
    )


def tasks(folder: Path, kind: str) -> list[str]:
    """Names of the tasks in the data folder; none if its file is not there; of LORA those recorded whole."""
    if kind in LORA:
        files = [read_curves(path) for path in sorted(folder.glob("*.npz"))]
        return [file.path.stem for file in files if sum(key.repeat == 0 for key in file.curves) >= WHOLE]
    path = {
        "taskset": folder / "hpo_taskset_nlp" / "taskset_nlp.npz",
        "lcbench": folder / "hpo_lcbench_surrogate" / "lcbench.npz",
    }[kind]
    if not path.exists():
        return []
    with np.load(path, allow_pickle=False) as file:
        if kind == "lcbench":
            return [str(name) for name in file["instances"]]
        return sorted(name.removesuffix("__hp") for name in file if name.endswith("__hp"))


@dataclass(slots=True, kw_only=True)
class Score:
    """Counts evaluations and keeps the best value seen; `regret` holds the normalised regret at each budget reached."""

    world: Recorded
    budgets: Sequence[int] = BUDGETS
    evaluations: int = 0
    best: float = math.inf
    place: tuple[int, int] | None = None
    regret: dict[int, float] = field(default_factory=dict)
    test_regret: dict[int, float] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        """Whether the largest budget is spent."""
        return self.evaluations >= max(self.budgets) * self.world.table.evaluations

    def saw(self, row: int, evaluation: int) -> float:
        """Spend one evaluation (counted from 1) of a row; returns its value."""
        value = float(self.world.table.curves[row, evaluation - 1])
        self.evaluations += 1
        if value < self.best:  # never true for NaN
            self.best, self.place = value, (row, evaluation - 1)
        for budget in self.budgets:
            if self.evaluations == budget * self.world.table.evaluations:
                self._note(budget)
        return value

    def close(self) -> None:
        """A search that has used up the table's rows ends with what it has found, whatever it might still spend."""
        for budget in self.budgets:
            if budget not in self.regret:
                self._note(budget)

    def _note(self, budget: int) -> None:
        self.regret[budget] = (self.best - self.world.best) / (self.world.chance - self.world.best)
        self._on_test(budget)

    def _on_test(self, budget: int) -> None:
        """Note the incumbent's regret on test data, on the scale of the table's test values."""
        test = self.world.test
        if test is None or self.place is None:
            return
        least = float(np.where(np.isfinite(test), test, np.inf).min())
        first = test[:, 0][np.isfinite(test[:, 0])]
        self.test_regret[budget] = (float(test[self.place]) - least) / (float(np.median(first)) - least)


def top_k(
    world: Recorded, seed: int, evaluations: int, workers: int, budgets: Sequence[int] = BUDGETS
) -> Iterator[Score]:
    """The trivial rule, told each budget beforehand: half on `evaluations` of random rows, then finish the best.

    With several workers, rows advance in lock-step, in the first half as in the second.
    """
    length = world.table.evaluations
    for budget in budgets:
        score = Score(world=world, budgets=(budget,))
        order = np.random.default_rng(seed).permutation(len(world.table.curves))
        tried = [int(row) for row in order[: budget * length // 2 // evaluations]]
        values = _advance(score, tried, 0, evaluations, workers)
        best = sorted((value, row) for row, value in values.items() if math.isfinite(value))
        _advance(score, [row for _, row in best], evaluations, length, workers)
        score.close()
        yield score


def _advance(score: Score, rows: Sequence[int], after: int, upto: int, workers: int) -> dict[int, float]:
    """Evaluations after + 1 ... upto of each row, `workers` rows at a time; a row ends where it is not finite.

    Returns the last value of each row that was reached.
    """
    values: dict[int, float] = {}
    waiting, running = list(rows), dict[int, int]()
    while (waiting or running) and not score.is_done:
        while waiting and len(running) < workers:
            running[waiting.pop(0)] = after
        for row in list(running):
            if score.is_done:
                break
            running[row] += 1
            values[row] = score.saw(row, running[row])
            if running[row] == upto or not math.isfinite(values[row]):
                del running[row]
    return values
