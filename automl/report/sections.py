"""The contents of a report, section by section, for every format. Words and tables; charts are named, not drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from automl import ranking
from automl.report.answers import LINES, Group, failures, pareto, rates_by_rank, sizes_by_target, spending, value_at
from automl.report.blocks import Block, Chart, Code, Notice, Section, Table, Text
from automl.report.findings import Evidence, Findings, pair_text
from automl.report.forgetting_section import forgetting, is_ruled_out
from automl.report.frames import StudyFrame, VerificationFrame
from automl.report.methods_section import methods
from automl.report.recipe import recipe
from automl.report.squeeze_section import hypothesis, sizes
from automl.report.wording import (
    command,
    confidence,
    configuration,
    counted,
    duration,
    moment,
    number,
    percent,
    score,
    sentence,
    signed,
)
from automl.results.early_ends import early_ends_text
from automl.results.spending import saved_text
from automl.space.spec import CategoricalParameter, Parameter
from automl.storage.trials import TrialRow

_SHOWN = 10
_ERRORS = 3
_STATES = {"COMPLETE": "complete", "PRUNED": "stopped early", "FAIL": "failed", "RUNNING": "not finished"}
_ERROR_CHARACTERS = 300


def sections(frame: StudyFrame, found: Findings) -> tuple[Section, ...]:
    """All sections that have something to say about this study, in reading order."""
    made = (Section(id=name, title=title, blocks=tuple(blocks(frame, found))) for name, title, blocks in _SECTIONS)
    return tuple(section for section in made if section.blocks)


def _verification(frame: StudyFrame, found: Findings) -> Iterator[Block]:
    verification = frame.verification
    if verification is None:
        if frame.best is not None:
            yield Notice(f"Not verified. Run `{command('verify', frame.study)}`.", "caution")
            yield Text(
                "It trains the best configurations, the default one and a smaller one again, with fresh seeds, scores"
                " them on the test rows that the search never read, and reports paired differences with intervals."
            )
        return
    if not verification.done:
        yield Notice(
            f"Verification {verification.number} began {moment(verification.started_at)} and has no result yet.",
            "caution",
        )
        return
    yield Notice(verification.headline, "problem" if found.evidence is Evidence.MAJORITY else "good")
    yield Text(f"Recommended: {verification.advice}.")
    if verification.deploy:
        yield Text(f"To deploy: {verification.deploy}.")
    if verification.comparisons:
        yield Chart(
            "verified",
            f"Paired differences on test rows with intervals at {_levels(verification)}; an interval that crosses zero"
            " shows no clear difference.",
        )
        yield Table(
            ("comparison", "verdict", ">difference", ">interval", ">level", ">seeds", ">wins", ">could have seen"),
            tuple(
                (
                    pair_text(each, verification),
                    each.verdict,
                    signed(each.difference),
                    f"{signed(each.low)} to {signed(each.high)}",
                    confidence(each.level),
                    str(each.seeds),
                    "–" if each.wins is None else str(each.wins),
                    "–" if each.detectable is None else f"±{score(each.detectable)}",
                )
                for each in verification.comparisons
            ),
            "`level`: confidence of this interval alone; comparisons of one question share a chance of error."
            " `could have seen`: the difference that so many seeds would have found in 80 % of such verifications.",
        )
    yield Table(
        ("configuration", f">{verification.metric}", ">s.d.", ">seeds", ">trainable", ">learning rate", "parameters"),
        tuple(
            (
                arm.called,
                score(arm.mean),
                score(arm.sd),
                str(len(arm.scores)),
                number(arm.trainable_params),
                number(arm.learning_rate, 3),
                configuration(arm.params),
            )
            for arm in verification.arms
        ),
        f"Test rows, {counted(verification.seeds, 'seed')} of {verification.planned_seeds} planned."
        + (f" Majority class: {score(verification.majority)}." if verification.majority is not None else ""),
    )
    if verification.optimism is not None:
        low, high = verification.optimism_low, verification.optimism_high
        where = "its verified score" if low is None else "fresh seeds of it on the same rows"
        interval = "" if low is None else f" ({signed(low)} to {signed(high)})"
        step = verification.optimism_step
        too = (
            ""
            if step is None
            else f" Its step {step} was chosen on these rows too; the fresh seeds were trained to it."
        )
        yield Text(
            f"Selection optimism {signed(verification.optimism)}{interval}: by so much the winner's value on validation"
            f" rows, where it was chosen, looked better than {where}.{too}"
        )


def _levels(verification: VerificationFrame) -> str:
    """`98 %`, or `96 % and 98.7 %`."""
    return " and ".join(map(confidence, sorted({each.level for each in verification.comparisons})))


def _history(frame: StudyFrame, found: Findings) -> Iterator[Block]:
    ranked = [trial for trial in ranking.ranked(frame.trials, frame.direction) if trial.value is not None]
    if not ranked:
        return
    yield Chart(
        "history",
        f"Each trial's {frame.metric} on validation rows; crosses were stopped early and show their last value.",
    )
    measured = (f">{name}" for name in (frame.metric, *frame.metrics))
    columns = (">trial", "state", *measured, ">steps", ">trainable", "configuration")
    rows = tuple(_trial_row(trial, frame.metrics) for trial in ranked[:_SHOWN])
    rest = len(ranked) - len(rows)
    more = f" {rest:,} more: `{command('trials', frame.study)}`." if rest else ""
    yield Table(columns, rows, f"The best trials, complete ones first.{more}")


def _trial_row(trial: TrialRow, beside: Sequence[str]) -> tuple[str, ...]:
    return (
        str(trial.number),
        "forgot too much" if is_ruled_out(trial) else _STATES[str(trial.state)],
        score(trial.value),
        *(score(trial.metrics.get(name)) for name in beside),
        number(trial.steps),
        number(trial.trainable_params),
        configuration(trial.params, trial.trained_rate),
    )


def _curves(frame: StudyFrame, found: Findings) -> Iterator[Block]:
    if any(len(trial.curve) > 1 for trial in frame.trials):
        yield Chart("curves", f"The {frame.metric} on validation rows while the trials trained{_sampled(frame)}.")


def _sampled(frame: StudyFrame) -> str:
    """Said where a chart leaves lines out."""
    many = max(frame.counts["COMPLETE"], frame.counts["PRUNED"]) > LINES
    return f"; of each kind at most {LINES} lines are drawn" if many else ""


def _importance(frame: StudyFrame, found: Findings) -> Iterator[Block]:
    importance = frame.parameter_importance
    if not frame.trials:
        return
    if not importance.shares:
        yield Text(f"No importance is given: {importance.note}.")
        return
    yield Chart(
        "parameter-importance",
        f"How much each parameter decided about {frame.metric} at step {importance.step}, over the"
        f" {importance.trials} trials that reached it (stopped ones included). Whiskers: 90 % of"
        f" {importance.repeats} resampled repeats.",
    )
    estimators = list(importance.shares)
    yield Table(
        ("parameter", *(f">{name}, 90 % interval" for name in estimators)),
        tuple(
            (
                name,
                *(
                    f"{percent(share.mean)} ({percent(share.low)} to {percent(share.high)})"
                    for share in (importance.shares[estimator][name] for estimator in estimators)
                ),
            )
            for name in importance.shares[estimators[0]]
        ),
        "PED-ANOVA: what the best quarter of the trials have in common. fANOVA: share of the variance over the whole"
        " range. Where intervals overlap, the order is not settled. A parameter's importance depends on its range.",
    )


def _parameters(frame: StudyFrame, found: Findings) -> Iterator[Block]:
    if sum(trial.value is not None for trial in frame.trials) < 2 or not frame.parameters:
        return
    yield Chart("parallel", f"One line per trial from its parameters to its value{_sampled(frame)}.")
    yield Chart("slices", f"The {frame.metric} over each parameter by itself.")


def _rates(frame: StudyFrame, found: Findings) -> Iterator[Block]:
    groups = rates_by_rank(frame)
    if not groups:
        return
    step = frame.parameter_importance.step
    is_other = any(trial.trained_rate is not None for trial in frame.trials)
    rates = (
        " Rates are those searched, at one alpha; the table of trials has those of the trainings." if is_other else ""
    )
    yield Chart("rate-by-rank", "Filled marks were trained to the end, hollow ones were stopped early.")
    yield Table(
        (">rank", ">trials", ">complete", ">best", ">its learning rate", f">leader at step {step}", ">its rate"),
        tuple(_rate_row(group, step) for group in groups),
        f"The leader at step {step} counts the trials that were stopped later, too. Single trials of one seed: a rule"
        f" only where neighbouring ranks agree.{rates}",
    )


def _rate_row(group: Group, step: int) -> tuple[str, ...]:
    return (
        group.label,
        str(len(group.trials)),
        str(group.complete),
        score(group.best.value) if group.best else "–",
        number(group.best.params["learning_rate"], 3) if group.best else "–",
        score(value_at(group.early, step)) if group.early else "–",
        number(group.early.params["learning_rate"], 3) if group.early else "–",
    )


def _targets(frame: StudyFrame, found: Findings) -> Iterator[Block]:
    classes = sizes_by_target(frame)
    if not classes:
        return
    step = frame.parameter_importance.step
    decided = [size for size in classes if size.decided]
    yield Chart("targets-by-size", "Filled marks were trained to the end, hollow ones were stopped early.")
    names = sorted({name for size in classes for name in size.targets})
    yield Table(
        (">trainable parameters", *(f">{name}" for name in names)),
        tuple(
            (
                f"{size.low:,} to {size.high - 1:,}",
                *(_target_cell(size.targets.get(name), step) for name in names),
            )
            for size in classes
        ),
        f"Best complete value (number of complete trials; all trials), else the best at step {step} in brackets.",
    )
    if decided:
        yield Text(
            f"{counted(len(decided), 'size')} of {len(classes)} can be compared on complete trials. They are the best"
            " of unequally many trials, with different learning rates and one seed: a hint, not a proof."
        )
    else:
        yield Text("At no size were two target sets trained to the end, so the search does not answer this question.")


def _target_cell(group: Group | None, step: int) -> str:
    if group is None:
        return "–"
    counts = f"({group.complete}; {len(group.trials)})"
    if group.best is not None:
        return f"{score(group.best.value)} {counts}"
    return f"[{score(value_at(group.early, step))}] {counts}" if group.early else f"– {counts}"


def _pareto(frame: StudyFrame, found: Findings) -> Iterator[Block]:
    front = pareto(frame)
    if not front:
        return
    is_time = frame.also_minimize == "seconds"
    against, text = ("training time", "quicker trial") if is_time else ("size", "smaller adapter")
    if frame.also_minimize in ("trainable_params", "seconds"):
        yield Text(f"The search had two objectives: {frame.metric}, and as little {against} as possible.")
    yield Chart("pareto", f"Complete trials: {frame.metric} against {against}. On the line, no {text} is as good.")
    yield Table(
        (">training seconds" if is_time else ">trainable", f">{frame.metric}", ">trial", "configuration"),
        tuple(
            (number(frame.size(t)), score(t.value), str(t.number), configuration(t.params, t.trained_rate))
            for t in front
        ),
        "Validation rows, one seed per trial: neighbours on the line may differ by luck.",
    )


def _modules(frame: StudyFrame, found: Findings) -> Iterator[Block]:
    shares = sorted(frame.module_importance, key=lambda each: -each.share)
    if not shares and frame.suggestion is None:
        return
    if shares:
        yield Chart("module-importance", "Share of each adapted module in the importance, mean over trials.")
        yield Table(
            ("module", ">share", ">over trials", ">held-out rise of the loss", ">effective rank"),
            tuple(
                (
                    each.module,
                    f"{each.share:.1%}",
                    f"{each.low:.1%} to {each.high:.1%}",
                    signed(each.held_out),
                    number(each.effective_rank, 3),
                )
                for each in shares[:_SHOWN]
            ),
            f"The most important of {len(shares)} modules, over {counted(shares[0].trials, 'trial')}. Importance is a"
            " diagnosis of the training data: stable from seed to seed, yet no proof that a module deserves more rank.",
        )
    yield from hypothesis(frame)


def _gate(frame: StudyFrame, found: Findings) -> Iterator[Block]:
    gate = frame.gate
    if gate is None or frame.best is None:
        return
    by = "a verification on test rows" if gate.source == "verification" else "this search's own trials"
    yield Notice(f"{sentence(gate.headline)} By {by}.", "good" if gate.answer == "does not bind" else "caution")
    yield Text(sentence(gate.evidence))


def _spent(frame: StudyFrame, found: Findings) -> Iterator[Block]:
    costs = spending(frame)
    if not costs.total.trials:
        return
    yield Chart("spent", "Optimizer steps by what became of the trials; hatched: what stopping early saved.")
    rows = [(_STATES[state], cost) for state, cost in costs.by_state.items()]
    rows += [("all", costs.total), ("saved by stopping early", costs.saved)]
    yield Table(
        ("", ">trials", ">steps", ">training time", ">tokens", ">examples"),
        tuple(
            (
                name,
                *map(number, (cost.trials, cost.steps)),
                duration(cost.seconds),
                *map(number, (cost.tokens, cost.examples)),
            )
            for name, cost in rows
        ),
        "Training time is summed over workers and leaves evaluation out. Saved time, tokens and examples are estimated"
        " from each trial's own pace"
        + ("." if costs.share is None else f"; {percent(costs.share)} of the steps were not needed."),
    )
    if early := early_ends_text(frame.trials, frame.own_steps):
        yield Text(f"{early}.")
    yield from _paid(frame, costs.saved.seconds / costs.total.seconds if costs.total.seconds else 0.0)
    again = sum(max(0, trial.attempts - 1) for trial in frame.trials)
    if again:
        yield Text(f"{counted(again, 'hand-out')} of a trial was repeated after a worker or driver was lost.")


def _paid(frame: StudyFrame, saved: float) -> Iterator[Block]:
    """saved: training time that stopping early saved, over that which was spent."""
    if text := saved_text(frame.spending, saved):
        yield Text(sentence(text))
        yield Text(
            f"In all: {frame.spending}. Time of devices runs from when workers were asked for to when they had gone, in"
            " all runs; so evaluations, waiting and failed trials are in it. What pruning saved is estimated."
        )


def _failures(frame: StudyFrame, found: Findings) -> Iterator[Block]:
    wrong = failures(frame)
    if not wrong:
        return
    remedies = {
        "diverged": "the loss was not finite: lower the highest learning rate",
        "oom": "out of memory: smaller batch, rank or `max_length`, or fewer slots",
        "infeasible": "violates a constraint or does not fit into memory, known before training; costs nothing",
        "error": "an exception in training or data",
        "host_crash": "killed its worker repeatedly",
        "lost": "the driver died while choosing parameters",
        "budget": "the step budget was spent first",
    }
    yield Table(
        ("reason", ">trials", "meaning", "which"),
        tuple(
            (
                reason,
                str(len(trials)),
                remedies.get(reason, ""),
                ", ".join(str(trial.number) for trial in trials[:_SHOWN]) + (" …" if len(trials) > _SHOWN else ""),
            )
            for reason, trials in wrong.items()
        ),
    )
    errors = {trial.error.strip(): trial.number for trials in wrong.values() for trial in trials if trial.error.strip()}
    for text, trial in list(errors.items())[:_ERRORS]:
        yield Code(text[-_ERROR_CHARACTERS:], "text", f"Trial {trial}")


def _reproduce(frame: StudyFrame, found: Findings) -> Iterator[Block]:
    best = frame.best
    if best is None:
        return
    made = recipe(best.adapter)
    if made is None:
        yield Text(
            f"The adapter of trial {best.number} is not at hand here. Where it is kept,"
            f" `{command('export', frame.study, '--output', 'my-adapter')}` writes it out."
        )
        return
    yield Code(made.use, "python", f"Use the adapter of trial {best.number} as it was trained.")
    if made.train:
        yield Code(made.train, "python", "Train the same configuration again, here or on other data.")
    how = f"{'Then' if made.train else 'It was trained with'}: {made.training}."
    yield Text(f"{how} Another seed gives another value; see the verification for how much.")


def _provenance(frame: StudyFrame, found: Findings) -> Iterator[Block]:
    ground = frame.ground
    rows = [
        ("study", frame.study),
        ("database", frame.database),
        ("from", moment(frame.started_at)),
        ("to", moment(frame.ended_at)),
        ("runs of the driver", str(frame.runs)),
        ("objective", f"{frame.direction} {frame.metric} on validation rows"),
        ("sampler, pruner, seed", f"{frame.sampler}, {frame.pruner}, {frame.seed}"),
        ("model", f"{frame.model}, {number(ground.get('model_parameters'))} parameters"),
        ("model fingerprint", str(ground.get("model", "–"))),
        ("data", frame.data),
        ("data fingerprint", str(ground.get("data", "–"))),
        ("rows", ", ".join(f"{count:,} {split}" for split, count in (ground.get("rows") or {}).items()) or "–"),
        *(("to know of the data", str(note)) for note in ground.get("notes") or ()),
        ("precision", str(ground.get("precision", "–"))),
        *((name, str(value)) for name, value in frame.provenance.items() if value is not None and name != "folder"),
    ]
    yield Table(("what", "value"), tuple(rows))
    yield Table(
        ("parameter", "searched"),
        tuple((parameter.name, _range(parameter)) for parameter in frame.parameters),
        "The space, with automatic ranges filled in.",
    )
    yield Code(frame.space_text, "yaml", "The space file, verbatim", folded=True)


def _range(parameter: Parameter) -> str:
    if isinstance(parameter, CategoricalParameter):
        text = " | ".join(str(choice) for choice in parameter.choices)
    else:
        text = f"{parameter.low:g} to {parameter.high:g}" + (", logarithmic" if parameter.log else "")
    when = parameter.when
    return text if when is None else f"{text}; if {when.parameter} is {' or '.join(map(str, when.values))}"


_SECTIONS: tuple[tuple[str, str, Callable[[StudyFrame, Findings], Iterator[Block]]], ...] = (
    ("verification", "Is the winner a winner?", _verification),
    ("methods", "Which method", methods),
    ("history", "What was tried", _history),
    ("curves", "How the trials learnt", _curves),
    ("importance", "Which parameters mattered", _importance),
    ("parameters", "Where the good values lie", _parameters),
    ("rates", "Which learning rate for which rank", _rates),
    ("targets", "Target modules at equal size", _targets),
    ("pareto", "Quality against size", _pareto),
    ("forgetting", "What trials forgot", forgetting),
    ("squeeze", "How small the winner's adapter can be", sizes),
    ("rank", "Does rank bind here", _gate),
    ("modules", "Which modules mattered", _modules),
    ("spent", "What it cost, and what stopping early saved", _spent),
    ("failures", "What went wrong", _failures),
    ("reproduce", "The winner in ten lines of PEFT", _reproduce),
    ("provenance", "Where this comes from", _provenance),
)
