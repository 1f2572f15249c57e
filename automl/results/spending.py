"""What a search has spent beside what it may: in words, as JSON, and whether a budget is at its end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from automl.space.spec import BudgetSettings
from automl.storage.spending import NOTHING, Spent

NO_BUDGET = BudgetSettings()


class Account(NamedTuple):
    """One kind of budget: its key under `search.budget`, what was spent of it, its end, and what it is counted in."""

    key: str
    spent: float
    limit: float
    unit: str

    @property
    def is_spent(self) -> bool:
        """Whether nothing of it is left."""
        return self.spent >= self.limit

    def amount(self, value: float) -> str:
        """A number of it as it is shown, without what it is counted in."""
        return _amount(self.key, value).removesuffix(".00")

    def __str__(self) -> str:
        return f"{_amount(self.key, self.spent)} of {self.amount(self.limit)} {self.unit}"


def accounts(budget: BudgetSettings, spent: Spent) -> Iterator[Account]:
    """The budgets that there are."""
    if budget.gpu_hours is not None:
        yield Account("gpu_hours", spent.device_hours, budget.gpu_hours, "device hours")
    if budget.tokens is not None:
        yield Account("tokens", spent.tokens, budget.tokens, "tokens")
    if budget.examples is not None:
        yield Account("examples", spent.examples, budget.examples, "examples")
    if (cost := budget.cost) is not None:
        yield Account("cost", spent.cost_at(cost.per_gpu_hour), cost.limit, cost.currency)


def price_of(budget: BudgetSettings) -> float:
    """Money for a device's hour; 0 if none is said."""
    return 0.0 if budget.cost is None else budget.cost.per_gpu_hour


def overspent(budget: BudgetSettings, spent: Spent) -> str | None:
    """The first budget of which nothing is left, in words; None while all last."""
    return next(
        (f"search.budget.{each.key}: {each} are spent" for each in accounts(budget, spent) if each.is_spent), None
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """What one study has spent, beside the budget that its file gives it (with all tasks of that file)."""

    spent: Spent = NOTHING
    budget: BudgetSettings = NO_BUDGET

    def texts(self) -> list[str]:
        """What was spent of each kind: `1.25 device hours`, `31.20 of 40 EUR`; only what is known or bounded."""
        held = {account.key: str(account) for account in accounts(self.budget, self.spent)}
        spent = self.spent
        known = {
            "gpu_hours": f"{_amount('gpu_hours', spent.device_hours)} device hours" if spent.device_seconds else "",
            "tokens": f"{spent.tokens:,} tokens" if spent.tokens else "",
            "examples": f"{spent.examples:,} examples" if spent.examples else "",
            "cost": f"{_amount('cost', spent.cost)} {spent.currency}" if spent.cost else "",
        }
        return [text for key, free in known.items() if (text := held.get(key, free))]

    def __str__(self) -> str:
        return ", ".join(self.texts()) or "nothing"

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **asdict(self.spent),
            "budget": {account.key: {"spent": account.spent, "limit": account.limit} for account in self._accounts()},
        }

    def _accounts(self) -> Iterator[Account]:
        return accounts(self.budget, self.spent)


UNKNOWN = Spending()


def saved_text(spending: Spending, share: float) -> str:
    """`spent 31.20 of 40 EUR; pruning saved 58`. share: training time that pruning saved, over that which was spent."""
    spent = spending.spent
    money = next((account for account in accounts(spending.budget, spent) if account.key == "cost"), None)
    told, unit = spent.device_hours, "device hours"
    if money is not None or spent.cost:
        told, unit = money.spent if money else spent.cost or 0.0, money.unit if money else spent.currency or ""
    if not told:
        return ""
    held = str(money) if money else f"{_amount(unit, told)} {unit}"
    return f"spent {held}" + (f"; pruning saved about {_amount(unit, told * share)}" if share > 0 else "")


def _amount(key: str, value: float) -> str:
    """`31.20`, money and hours to at least three significant digits; `50,000` tokens."""
    if key in ("tokens", "examples"):
        return f"{value:,.0f}"
    return f"{value:,.2f}" if value >= 1 or value == 0 else f"{value:.3g}"
