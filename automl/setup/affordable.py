"""Whether the budgets of a search can give what it is asked for, told before anything is spent."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from automl.errors import StorageError
from automl.results.spending import Account, accounts
from automl.setup.prepare import Inputs
from automl.space.extremes import extremes
from automl.space.points import count_configurations, grid_values, values
from automl.space.spec import SearchSpace, SweepSpec
from automl.storage.spending import NOTHING, Spent, spent_by
from automl.storage.sql import database_status, open_database
from automl.study.pruning import expected_share
from automl.tasks import make_task

_SAMPLE = 256
"""Training rows by which the tokens of all are estimated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a whole search takes of one of its budgets, a guess.

    account: with what was spent of it before. most: if nothing is pruned; pruned: with pruning, None if that is not
    known.
    """

    account: Account
    most: float
    pruned: float | None

    @property
    def expected(self) -> float:
        """What it takes, as far as one can tell."""
        return self.most if self.pruned is None else self.pruned

    @property
    def is_too_much(self) -> bool:
        """Whether the budget ends the search before its trials do."""
        return self.expected > self.account.limit

    def __str__(self) -> str:
        account = self.account
        pruned = "" if self.pruned is None else f", about {account.amount(self.pruned)} with pruning"
        spent = f", {account.amount(account.spent)} are spent" if account.spent else ""
        unit = account.unit
        return (
            f"{account.key}: about {account.amount(self.most)} {unit} if nothing is pruned{pruned};"
            f" {account.amount(account.limit)} may be spent{spent}"
        )

    @property
    def advice(self) -> str:
        """What a budget that is too small comes to."""
        account, part = self.account, self.account.limit / self.expected
        return (
            f"search.budget.{account.key}: {account.amount(account.limit)} {account.unit} are less than the about"
            f" {account.amount(self.expected)} that the search takes: it will end after about {part:.0%} of its work,"
            " and go on with more. Raise it, or ask for fewer trials or steps"
        )


def needs(
    spec: SweepSpec, inputs: Inputs, *, seconds: float | None = None, devices: int = 1, spent: Spent = NOTHING
) -> Iterator[Need]:
    """What the search takes of each budget that it has.

    seconds: wall clock on so many devices if nothing is pruned, None if it was not measured: then hours and money are
    left out. spent: by earlier runs.
    """
    budget, share = spec.search.budget, expected_share(spec.search)
    rows = most_steps(spec, inputs.space) * (spec.search.step_rows or _batch(inputs.space))
    most = Spent(
        device_seconds=None if seconds is None else seconds * devices,
        tokens=round(rows * _tokens(spec, inputs)) if budget.tokens else 0,
        examples=round(rows),
    )
    for account, whole in zip(accounts(budget, spent), accounts(budget, most), strict=True):
        if whole.spent:
            yield Need(account=account, most=whole.spent, pruned=None if share is None else share * whole.spent)


def needs_together(several: Iterable[Iterable[Need]]) -> list[Need]:
    """What the tasks of one file take of the budget that they share."""
    found: dict[str, Need] = {}
    for need in (need for each in several for need in each):
        known = found.get(need.account.key)
        found[need.account.key] = need if known is None else _sum(known, need)
    return list(found.values())


def _sum(one: Need, other: Need) -> Need:
    spent = one.account.spent + other.account.spent
    pruned = None if one.pruned is None or other.pruned is None else one.pruned + other.pruned
    return Need(account=one.account._replace(spent=spent), most=one.most + other.most, pruned=pruned)


def spent_before(spec: SweepSpec) -> Spent:
    """What earlier runs of the study have spent; nothing if the database is not there, or cannot be read."""
    try:
        if database_status(spec.storage_url).exists:
            with open_database(spec.storage_url, create=False, read_only=True) as database:
                return spent_by(database, [spec.study])[spec.study]
    except StorageError:  # what reads it for the plan says so
        pass
    return NOTHING


def most_steps(spec: SweepSpec, space: SearchSpace) -> int:
    """Training steps of the search without pruning, for all trials or configurations, within `max_steps`."""
    search = spec.search
    count = count_configurations(space, grid_values if search.sampler == "grid" else values)
    trials = search.trials if count is None or not space.parameters else min(search.trials, count)
    return min(trials * search.steps, search.max_steps or sys.maxsize)


def _batch(space: SearchSpace) -> float:
    """Rows of a step in the middle of the space."""
    sizes = extremes(space, "batch_size")
    return sum(sizes) / len(sizes)


def _tokens(spec: SweepSpec, inputs: Inputs) -> float:
    """Mean tokens of a training row, by some that are spread over all."""
    task = make_task(spec.task)
    rows = task.rows(inputs.prepared, "train")
    sample = [task.row_tokens(rows[place]) for place in range(0, len(rows), -(-len(rows) // _SAMPLE))]
    return task.texts * sum(sample) / len(sample)
