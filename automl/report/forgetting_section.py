"""What trials forgot, in words and as a table."""

from __future__ import annotations

from collections.abc import Iterator

from automl import ranking
from automl.report.answers import forgetting_front
from automl.report.blocks import Block, Chart, Table, Text
from automl.report.findings import Findings
from automl.report.frames import StudyFrame
from automl.report.wording import configuration, counted, number, score, signed
from automl.storage.trials import TrialRow
from automl.trial import StopReason, TrialState


def forgetting(frame: StudyFrame, found: Findings) -> Iterator[Block]:
    """The front of quality and forgetting, and what a constraint has ruled out."""
    known = [trial for trial in frame.trials if trial.forgetting is not None]
    if not known:
        return
    yield Text(
        f"Forgetting is by how much {frame.keep} on text that no trial learns is worse than that of the untuned model:"
        " 0 is no change, below 0 is better. It was measured for the trials that were trained to their last step."
    )
    if frame.also_minimize == "forgetting":
        yield Text(f"The search had two objectives: {frame.metric}, and as little forgetting as possible.")
    out = [trial for trial in known if is_ruled_out(trial)]
    if out:
        yield Text(_ruled_out(frame, out))
    yield Chart("forgetting", f"{frame.metric} against forgetting. On the line, no trial that forgot less is as good.")
    yield Table(
        (">forgetting", f">{frame.metric}", ">trainable", ">trial", "configuration"),
        tuple(
            (
                signed(trial.forgetting),
                score(trial.value),
                number(trial.trainable_params),
                str(trial.number),
                configuration(trial.params, trial.trained_rate),
            )
            for trial in forgetting_front(frame)
        ),
        "The trials on the line; validation rows, one seed per trial: neighbours may differ by luck.",
    )
    yield from _verified(frame)


def _verified(frame: StudyFrame) -> Iterator[Block]:
    """What fresh seeds of each configuration have forgotten."""
    arms = frame.verification.arms if frame.verification is not None else ()
    rows = [(arm.called, *map(signed, arm.forgetting)) for arm in arms if arm.forgetting is not None]
    if rows:
        columns = ("configuration", ">forgetting", ">from", ">to")
        yield Table(columns, tuple(rows), "Verified: means over fresh seeds, with their intervals.")


def is_ruled_out(trial: TrialRow) -> bool:
    """Whether the trial was trained to its end and violates a constraint on what was measured there."""
    return trial.state == TrialState.PRUNED and trial.stop_reason == StopReason.INFEASIBLE


def _ruled_out(frame: StudyFrame, out: list[TrialRow]) -> str:
    limit = "" if frame.forgetting_limit is None else f" (at most {number(frame.forgetting_limit)})"
    text = f"{counted(len(out), 'trial')} of those violate a constraint on forgetting{limit} and cannot be the best."
    winner = frame.best
    better = [trial for trial in out if winner and not ranking.is_no_better(trial, winner.value, frame.direction)]
    return f"{text} {len(better)} had a better {frame.metric} than the winner." if better else text
