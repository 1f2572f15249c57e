"""Three sentences a manager understands, and how well each is supported. Nothing is claimed that was not verified."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from automl import ranking
from automl.report.answers import spending
from automl.report.frames import PairedDifference, StudyFrame, VerificationFrame
from automl.report.wording import command, confidence, counted, number, percent, score, signed
from automl.results.early_ends import ended_themselves
from automl.storage.trials import TrialRow
from automl.trial import TrialState


class Evidence(StrEnum):
    """How far the findings can be believed."""

    NOTHING = "nothing found"  # no complete trial
    NOT_VERIFIED = "not verified"  # the winner of a search on validation rows, one seed
    VERIFYING = "verification running"
    VERIFIED = "verified"  # fresh seeds, test rows
    MAJORITY = "no better than the majority class"  # verified, and nothing was learnt


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """The three sentences, and the state of the evidence.

    warnings: what must be said before them. next_command: what to run to know more, if anything.
    """

    evidence: Evidence
    searched: str
    found: str
    believed: str
    warnings: tuple[str, ...]
    next_command: str | None

    @property
    def sentences(self) -> tuple[str, str, str]:
        """The three sentences in their order."""
        return self.searched, self.found, self.believed


def findings(frame: StudyFrame) -> Findings:
    """Sum up a study in any state."""
    evidence = _evidence(frame)
    return Findings(
        evidence=evidence,
        searched=_searched(frame),
        found=_found(frame),
        believed=_believed(frame, evidence),
        warnings=tuple(_warnings(frame)),
        next_command=_next(frame, evidence),
    )


def main_comparison(verification: VerificationFrame) -> PairedDifference | None:
    """What the reader asks first: the winner against the default configuration, else the first comparison there is."""
    kinds = {arm.name: arm.kind for arm in verification.arms}
    return next(
        (each for each in verification.comparisons if kinds.get(each.against) == "default"),
        next(iter(verification.comparisons), None),
    )


def comparison_text(each: PairedDifference, verification: VerificationFrame) -> str:
    """`trial 4 against the default: better, difference +0.031 [+0.012, +0.050] at 98 % over 5 seeds`."""
    return (
        f"{pair_text(each, verification)}: {each.verdict}, difference {signed(each.difference)}"
        f" [{signed(each.low)}, {signed(each.high)}] at {confidence(each.level)} over {counted(each.seeds, 'seed')}"
    )


def pair_text(each: PairedDifference, verification: VerificationFrame) -> str:
    """`trial 4 against the default`."""
    return f"{verification.called(each.arm)} against {verification.called(each.against)}"


def is_running(frame: StudyFrame) -> bool:
    """Whether trials are in progress (or were when their driver died)."""
    return any(trial.state == TrialState.RUNNING for trial in frame.trials)


def is_at_baseline(frame: StudyFrame) -> bool:
    """Whether the best trial is no better than the untrained model."""
    return ranking.is_no_better(frame.best, frame.baseline, frame.direction)


def _evidence(frame: StudyFrame) -> Evidence:
    verification = frame.verification
    if verification is not None and verification.done:
        return Evidence.VERIFIED if verification.beats_majority else Evidence.MAJORITY
    if frame.best is None:
        return Evidence.NOTHING
    return Evidence.NOT_VERIFIED if verification is None else Evidence.VERIFYING


def _searched(frame: StudyFrame) -> str:
    names = [parameter.name.replace("_", " ") for parameter in frame.parameters]
    what = ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else "".join(names) or "nothing"
    if not frame.trials:
        return f"A search over {what} of LoRA for {frame.model} was started, but no trial has begun."
    counts, spent = frame.counts, spending(frame)
    themselves = len(ended_themselves(frame.trials))
    ends = [f"{counts['COMPLETE'] - themselves:,} trained to the end"]
    if themselves:
        ends.append(f"{themselves:,} ended themselves")
    if counts["PRUNED"]:
        ends.append(f"{counts['PRUNED']:,} stopped early")
    if counts["FAIL"]:
        ends.append(f"{counts['FAIL']:,} failed")
    if counts["RUNNING"]:
        ends.append(f"{counts['RUNNING']:,} not finished yet")
    text = f"{counted(len(frame.trials), 'LoRA configuration')} ({what}) of {frame.model} were tried on {frame.data}"
    text += f": {', '.join(ends)}"
    if spent.share and spent.share >= 0.005 and counts["PRUNED"]:
        text += f"; stopping weak ones early saved {percent(spent.share)} of the training steps"
    return text + "."


def _found(frame: StudyFrame) -> str:
    best = frame.best
    if best is None:
        return (
            "No trial has been completed yet." if is_running(frame) or not frame.trials else "No trial was completed."
        )
    start = "" if frame.baseline is None else f" ({score(frame.baseline)} without training)"
    text = (
        f"Trial {best.number} is the best on validation rows: {frame.metric} {score(best.value)}{start},"
        f" with {_in_words(best)}"
    )
    return text + _what_mattered(frame) + "."


def _in_words(trial: TrialRow) -> str:
    told = [f"{name.replace('_', ' ')} {number(value, 3)}" for name, value in trial.params.items()]
    if trial.trained_rate is not None:
        told.append(f"trained at rate {number(trial.trained_rate, 3)}")
    return ", ".join(told) or "the default configuration"


def _what_mattered(frame: StudyFrame) -> str:
    """The first parameter, if both ends of its interval lie above the second's middle; else empty."""
    shares = list(next(iter(frame.parameter_importance.shares.values()), {}).items())
    if len(shares) < 2 or shares[0][1].low <= shares[1][1].mean:
        return ""
    return f"; {shares[0][0].replace('_', ' ')} mattered most"


def _believed(frame: StudyFrame, evidence: Evidence) -> str:
    verification = frame.verification
    if evidence is Evidence.NOTHING or (verification is None and frame.best is None):
        return "There is nothing to verify."
    if evidence is Evidence.NOT_VERIFIED:
        return (
            "Not verified: the value was chosen as the best of many on the same validation rows, with one seed each,"
            " so it is optimistic, and small differences between trials may be luck."
        )
    if evidence is Evidence.VERIFYING or verification is None:
        return "A verification on test rows with fresh seeds has begun and is not finished."
    if evidence is Evidence.MAJORITY:
        return (
            f"Verified on test rows over {counted(verification.seeds, 'fresh seed')}: {_lowered(verification.headline)}"
        )
    return _verified(verification)


def _lowered(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _verified(verification: VerificationFrame) -> str:
    text = f"Verified on test rows the search never read, over {counted(verification.seeds, 'fresh seed')}"
    recommended = verification.arm(verification.recommendation)
    if recommended is not None:
        text += f": recommended is {recommended.called} with {verification.metric} {score(recommended.mean)}"
    main = main_comparison(verification)
    if main is not None:
        text += f"; {comparison_text(main, verification)}"
    return text + "."


def _warnings(frame: StudyFrame) -> list[str]:
    notes = []
    ended = frame.counts["COMPLETE"] + frame.counts["PRUNED"]
    if is_running(frame):
        notes.append(
            f"The search has not ended: {ended:,} of {frame.planned_trials:,} trials have. All below is provisional."
        )
    elif frame.trials and ended < frame.planned_trials:
        notes.append(f"The search ended after {ended:,} of {frame.planned_trials:,} planned trials.")
    if is_at_baseline(frame):
        notes.append(
            f"No trial is better than the untrained model ({frame.metric} {score(frame.baseline)}): nothing was"
            " learnt. Widen the learning-rate range, train longer, or look at the labels."
        )
    return notes


def _next(frame: StudyFrame, evidence: Evidence) -> str | None:
    if evidence is Evidence.NOT_VERIFIED:
        return command("verify", frame.study)
    if evidence is Evidence.NOTHING and frame.trials:
        return command("trials", frame.study)
    return None
