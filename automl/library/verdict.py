"""What a verification has found, as Python and a notebook show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from automl.library.html import cell, paragraph, table
from automl.storage.verification import Verification


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Verdict:
    """The outcome of a verification on test rows.

    headline: what may be believed, in a sentence. recommendation: the configuration to take, and why. result: all
    numbers (docs/verification.md).
    """

    headline: str
    recommendation: str
    result: Mapping[str, Any]

    @classmethod
    def of(cls, verification: Verification) -> Verdict:
        """The verdict of a verification that is done."""
        found = verification.result
        assert found is not None
        return cls(headline=found["headline"], recommendation=found["recommendation"]["text"], result=found)

    def __repr__(self) -> str:
        return f"<automl verdict: {self.headline} Recommended: {self.recommendation}>"

    def _repr_html_(self) -> str:
        metric = self.result["metric"]["name"]
        rows = (
            (arm["title"], cell(arm["mean"]), cell(arm["sd"]), len(arm["scores"]), f"{arm['trainable_params']:,}")
            for arm in self.result["arms"]
        )
        arms = table(("configuration", f"{metric} (test)", "± sd", "seeds", "parameters"), rows)
        return f"{paragraph(self.headline)}{arms}{paragraph(f'Recommended: {self.recommendation}')}"
