"""Trials that ended themselves before their last step, and what that saved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from automl.storage.trials import TrialRow


def ended_themselves(trials: Iterable[TrialRow]) -> list[TrialRow]:
    """Those that did (`automl.training.early_stopping`)."""
    return [trial for trial in trials if trial.checkpoint is not None and trial.checkpoint.reason]


def early_ends_text(trials: Iterable[TrialRow], full: Mapping[int, int]) -> str:
    """How many ended themselves and why, and what that saved; empty if none did. full: steps of each if it had not.

    It is the most it can have saved: the pruner might have stopped some of them anyway.
    """
    found = ended_themselves(trials)
    if not found:
        return ""
    counted = Counter(trial.checkpoint.reason.split()[0] for trial in found if trial.checkpoint is not None)
    why = ", ".join(f"{reason} {count}" for reason, count in counted.most_common())
    saved = sum(full[trial.number] - trial.steps for trial in found)
    trials_text = f"{len(found)} trial{'s' * (len(found) > 1)}"
    return f"{trials_text} ended before the last step ({why}), which saved at most {saved:,} steps"
