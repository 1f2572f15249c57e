"""How long a full trial is, where the file says it in epochs, examples or tokens, and how steps of trials compare then.

A full trial sees as many rows whatever its batch size, so batch sizes can be searched: equal steps would favour large
ones. The study counts in steps of its smallest batch: rungs, evaluations and budgets lie on that grid, at equal shares
of a trial. A trial with larger batches makes fewer steps of its own; each place on the grid is the step of its own at
which it has seen about as many rows, to the nearest step. Where all batches are equal the two are the same.

Tokens are turned into rows beforehand, by their mean over the training rows: a trial then knows its last step, on which
its schedule and its rungs depend, and two trials see the same rows, however long those happen to be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from automl.errors import ConfigError, Problem
from automl.lora import Hyperparameters
from automl.space.budget import Budget, starting_budget
from automl.space.entries import PRUNERS
from automl.space.extremes import extremes
from automl.space.spec import Length, SearchSettings, SearchSpace
from automl.trial import Scalar

MOST_STEPS = 10_000_000
"""Steps of a full trial at most, as in a file."""

STEP_ROWS = "step_rows"
"""User attribute of a study in which trials make different steps."""

_EVALUATIONS = 12


class Seen(NamedTuple):
    """What is known of the training rows. longest: tokens of a row at most; tokens: of a row on average, if asked."""

    rows: int
    classes: int
    longest: int
    tokens: Callable[[], float]


def own_step(search: SearchSettings, step: int, batch_size: int) -> int:
    """The step of a trial with this batch size at a place on the study's grid; its last one at `search.steps`."""
    if search.step_rows is None or step == 0:
        return step
    return max(1, (2 * step * search.step_rows + batch_size) // (2 * batch_size))


def own_evaluations(search: SearchSettings, batch_size: int) -> tuple[tuple[int, int], ...]:
    """(own step, rows) of each measurement of a trial with this batch size; empty = as `search.evaluate_every` says."""
    return tuple({own_step(search, step, batch_size): rows for step, rows in search.evaluations or ()}.items())


def grid_steps(search: SearchSettings, own: int, batch_size: int) -> tuple[int, ...]:
    """The places on the study's grid, ascending, that a measurement of a trial with this batch size speaks of.

    Mostly one; several where so few steps lie between them that one step of the trial's own is the nearest to all. A
    measurement of another grid, as of a study whose file has changed, speaks of the place with as many rows.
    """
    if search.step_rows in (None, batch_size):
        return (own,)
    found = tuple(step for step, _ in search.evaluations or () if own_step(search, step, batch_size) == own)
    return found or (min(search.steps, max(1, own * batch_size // search.step_rows)),)


def batch_size_of(space: SearchSpace, params: Mapping[str, Scalar]) -> int:
    """Batch size of a trial with these parameters."""
    return int(params.get("batch_size", space.fixed.get("batch_size", Hyperparameters().batch_size)))


def grid_of(search: SearchSettings, space: SearchSpace) -> dict[str, str]:
    """What is said of a study in which trials make different steps: the rows of a step of its grid. Else nothing."""
    rows = search.step_rows
    return {} if rows is None or extremes(space, "batch_size") == [rows] else {STEP_ROWS: str(rows)}


def settle_length(search: SearchSettings, seen: Seen, *, smallest: int, source: str) -> SearchSettings:
    """The settings with the steps that the file's length means for this data; those without a length as they are.

    smallest: batch size of the space. source: the file, in messages. Raises ConfigError if a trial would have too many
    steps, or too few for what else the file says.
    """
    if search.length is None or search.knows_steps:
        return search
    unit = search.length.unit
    steps = math.ceil(_rows(search.length, seen) / smallest)
    if steps > MOST_STEPS:
        message = f"{search.length} are {steps:,} steps of {smallest} rows; {MOST_STEPS:,} are the most"
        raise ConfigError([Problem(source, 0, 0, f"search.{unit}", message)])
    found = with_steps(search, steps, smallest)
    if problem := _misfit(found):
        what = f"; {search.length} are {steps:,} steps of {smallest} rows"
        raise ConfigError([Problem(source, 0, 0, f"search.{problem[0]}", problem[1] + what)])
    return found


def with_steps(search: SearchSettings, steps: int, step_rows: int) -> SearchSettings:
    """The settings with a trial of so many steps of so many rows, and the grid of evaluations that follows."""
    every = search.evaluate_every if search.evaluations is not None else steps // _EVALUATIONS or 1
    return replace(search, steps=steps, step_rows=step_rows, evaluate_every=every)


def record_of(search: SearchSettings) -> dict[str, Any]:
    """What is remembered of the length with the study; nothing where the file says steps."""
    if search.length is None:
        return {}
    length = {"unit": search.length.unit, "amount": search.length.amount}
    return {"length": {**length, "steps": search.steps, "step_rows": search.step_rows}}


def with_recorded_length(search: SearchSettings, recorded: Mapping[str, Any]) -> SearchSettings:
    """The settings with the steps that the study began with, as long as the file says the same length.

    recorded: what the study's first run wrote down; its evaluations come with it.
    """
    known = recorded.get("length")
    if search.length is None or not known or Length(known["unit"], known["amount"]) != search.length:
        return search
    found = with_steps(search, int(known["steps"]), int(known["step_rows"]))
    evaluations = tuple((int(step), int(rows)) for step, rows in recorded.get("evaluations") or ())
    return replace(
        found, evaluate_every=int(recorded.get("evaluate_every", found.evaluate_every)), evaluations=evaluations
    )


def budget_for(seen: Seen) -> Budget:
    """What `auto` means for this data."""
    return starting_budget(seen.rows, seen.classes, seen.longest)


def _rows(length: Length, seen: Seen) -> float:
    """Training rows that a full trial sees."""
    if length.amount is None:
        return float(budget_for(seen).examples)
    match length.unit:
        case "epochs":
            return length.amount * seen.rows
        case "examples":
            return length.amount
        case "tokens":
            return length.amount / max(1.0, seen.tokens())


def _misfit(search: SearchSettings) -> tuple[str, str] | None:
    """What in `search:` does not go with a trial of so many steps, as (entry, message)."""
    if search.evaluate_every > search.steps:
        return "evaluate_every", f"{search.evaluate_every} is above the steps of a trial"
    if search.max_steps is not None and search.max_steps < search.steps:
        return "max_steps", f"{search.max_steps} is less than one trial takes"
    pruner = PRUNERS[search.pruner]
    wrong = pruner.check(pruner.options(name=search.pruner, **search.pruner_options), search.steps)
    return None if wrong is None else (f"pruner.{wrong[0]}", wrong[1])
