"""What was found of an adapter's sizes, as a value, as JSON and as a row to store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from automl.results.squeezed import squeeze_headline
from automl.squeeze.curve import Cut
from automl.storage.squeezes import ModuleRow, SqueezeRow

CAUTION = (
    "a cut shows what this adapter can do without; one trained at the small rank, with a learning rate of its own, may"
    " be better still"
)


_PLAIN = ("source", "metric", "margin", "rows", "seen", "recovery_steps", "recovery_rate", "output", "base")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Squeezed:
    """What was found of an adapter's sizes.

    source: the trial or folder. rows: of validation that were measured on; seen: training rows by which directions were
    ranked, 0 if by their energy alone. whole, knee, chosen: cuts; chosen is the size asked for, or else the knee. cuts:
    all of them. modules: all of the adapter's. ranks: of the chosen cut, by module, those above 0. recovery_steps,
    recovery_rate: of the training that global cuts had afterwards, 0 and None without. output: folder of the chosen
    one, None if it was not written. notes: what a person should know.
    """

    source: str
    metric: str
    margin: float
    rows: int
    seen: int
    cuts: tuple[Cut, ...]
    whole: Cut
    knee: Cut
    chosen: Cut
    modules: tuple[ModuleRow, ...]
    ranks: Mapping[str, int]
    recovery_steps: int
    recovery_rate: float | None
    seconds: float
    output: str | None
    base: str
    notes: tuple[str, ...]
    caution: str = CAUTION

    def __repr__(self) -> str:
        return f"<automl squeezed: {self.source}, {self.headline()}>"

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        parts = {name: getattr(self, name).as_dict() for name in ("whole", "knee", "chosen")}
        curve = [cut.as_dict() for cut in self.cuts]
        return {**plain, **parts, "ranks": dict(self.ranks), "curve": curve, "notes": self.notes, "caution": CAUTION}

    def as_row(self, trial: int, adapter_sha256: str) -> SqueezeRow:
        """Return what is stored. Sizes at which a metric is no number are left out."""
        even_one = sum(module.cost for module in self.modules if module.rank)
        return SqueezeRow(
            trial=trial,
            adapter_sha256=adapter_sha256,
            metric=self.metric,
            margin=self.margin,
            rows=self.rows,
            seen=self.seen,
            knee=self.knee.parameters,
            recovery_steps=self.recovery_steps,
            seconds=self.seconds,
            cuts=tuple(cut.as_row(self.metric, even_one=even_one) for cut in self.cuts if cut.is_finite),
            modules=self.modules,
        )

    def headline(self) -> str:
        """What may be believed, in a sentence."""
        return squeeze_headline(self.as_row(-1, ""))
