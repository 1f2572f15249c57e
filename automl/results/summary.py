"""What a sweep found, as values, as JSON and as a page of Markdown. Reads SQL only, so it can be made at any time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automl import durable, ranking
from automl.metric import METRICS, Direction
from automl.results.early_ends import early_ends_text
from automl.results.folders import study_folder
from automl.results.recorded import GROUND, recorded_baseline, recorded_search, recorded_space
from automl.results.spending import UNKNOWN, Spending
from automl.results.squeezed import squeeze_document, squeeze_headline, squeeze_of, squeezed_adapter
from automl.space.assemble import assemble
from automl.space.length import batch_size_of, own_step
from automl.space.spec import SearchSettings, SearchSpace, SweepSpec
from automl.storage.base import ResultStore
from automl.storage.spending import spent_by
from automl.storage.sql import Database, mask_url
from automl.storage.squeezes import SqueezeRow
from automl.storage.trials import TrialRow, counts_of, list_trials, with_metrics
from automl.storage.verification import latest
from automl.study.outcome import EXHAUSTED, STALLED, exhausted_text
from automl.trial import FORGETTING, Scalar, TrialState

SUMMARY_JSON = "summary.json"
SUMMARY_MARKDOWN = "summary.md"
_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A study read back: its trials and what came of them. A report (`StudyFrame`) adds what it draws.

    value, baseline: the objective on validation rows, of the best trial and without training.
    metrics: names of what is measured beside it when a trial has made its last step.
    spent_steps: optimizer steps of all trials.
    full_steps: what the same trials would have taken without pruning.
    early_ends: how many trials ended themselves, why, and what that saved, in words; empty if none did.
    spending: time of devices, tokens, examples and money, beside the budget.
    patience: trials without a better value after which the search ended before its budget was spent, None if it did
        not.
    exhausted: number of configurations of a finite space of which none was left to try, None if there were more.
    also_minimize: the second objective, if there are two.
    front: then the complete trials that no other one beats in both, smallest first.
    squeeze: what was found of smaller sizes of the best trial's adapter, None if nobody has looked.
    verification: result of the newest complete one, if there is any (docs/verification.md).
    notes: what there was to say of the data.
    """

    study: str
    metric: str
    direction: Direction
    best: TrialRow | None
    configuration: Mapping[str, Any] | None
    baseline: float | None
    trials: tuple[TrialRow, ...]
    spent_steps: int
    full_steps: int
    seconds: float
    database: str
    folder: str
    patience: int | None = None
    exhausted: int | None = None
    also_minimize: str | None = None
    front: tuple[TrialRow, ...] = ()
    squeeze: SqueezeRow | None = None
    verification: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    early_ends: str = ""
    spending: Spending = UNKNOWN

    @property
    def ranked(self) -> list[TrialRow]:
        """Trials with a value, best first: complete ones, then pruned ones."""
        return [row for row in ranking.ranked(self.trials, self.direction) if row.value is not None]

    @property
    def counts(self) -> dict[str, int]:
        """Number of trials by state, every state named."""
        return counts_of(self.trials)

    @property
    def reasons(self) -> dict[str, int]:
        """Number of ended trials by stop reason."""
        return dict(Counter(trial.stop_reason for trial in self.trials if trial.stop_reason))

    @property
    def at_baseline(self) -> bool:
        """Whether the best trial is no better than a model without training."""
        return ranking.is_no_better(self.best, self.baseline, self.direction)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "study": self.study,
            "metric": self.metric,
            "direction": self.direction,
            "metrics": list(self.metrics),
            "best": self.best.as_dict() if self.best else None,
            "configuration": self.configuration,
            "baseline": self.baseline,
            "counts": self.counts,
            "stop_reasons": self.reasons,
            "spent_steps": self.spent_steps,
            "full_steps": self.full_steps,
            "early_ends": self.early_ends,
            "training_seconds": round(self.seconds, 3),
            "spent": self.spending.as_dict(),
            "database": self.database,
            "folder": self.folder,
            "ended_by_patience": self.patience,
            "exhausted_configurations": self.exhausted,
            "also_minimize": self.also_minimize,
            "front": [row.as_dict() for row in self.front],
            "squeeze": squeeze_document(self.squeeze) if self.squeeze else None,
            "verification": self.verification,
            "notes": list(self.notes),
        }


def summarise(database: Database, spec: SweepSpec) -> Summary:
    """Read a study's outcome from SQL."""
    store = database.store(spec.study)
    verified = latest(database, spec.study, done=True)
    beside = spec.task.measured[1:]
    rows = tuple(with_metrics(database, spec.study, list_trials(database, spec.study), beside))
    direction = METRICS[spec.task.metric].direction
    winner = ranking.best(rows, direction)
    full = _full_steps(recorded_search(store, spec), recorded_space(store, spec), rows)
    return Summary(
        study=spec.study,
        metric=spec.task.metric,
        direction=direction,
        best=winner,
        configuration=_configuration(recorded_space(store, spec), winner.params) if winner else None,
        baseline=recorded_baseline(store, spec.task.metric),
        trials=rows,
        spent_steps=sum(row.steps for row in rows),
        full_steps=sum(full[row.number] for row in rows if row.state in (TrialState.COMPLETE, TrialState.PRUNED)),
        seconds=sum(row.seconds for row in rows),
        database=mask_url(spec.storage_url),
        folder=str(study_folder(spec)),
        patience=(store.last_event(STALLED) or {}).get("patience"),
        exhausted=_exhausted(store),
        also_minimize=spec.search.also_minimize,
        front=tuple(ranking.front(rows, direction)),
        squeeze=squeeze_of(database, spec.study, winner.number) if winner else None,
        verification=verified.result if verified is not None else None,
        notes=tuple((store.last_event(GROUND) or {}).get("notes", ())),
        metrics=beside,
        early_ends=early_ends_text(rows, full),
        spending=Spending(spent=spent_by(database, [spec.study])[spec.study], budget=spec.search.budget),
    )


def _full_steps(search: SearchSettings, space: SearchSpace, rows: Sequence[TrialRow]) -> dict[int, int]:
    """Steps of a full trial, by the number of each."""
    return {row.number: own_step(search, search.steps, batch_size_of(space, row.params)) for row in rows}


def _exhausted(store: ResultStore) -> int | None:
    """Number of configurations if the last run that finished left none untried; the space may have grown since then."""
    tried, finished = store.last_event(EXHAUSTED) or {}, store.last_event("finished") or {}
    return tried.get("configurations") if tried.get("run") == finished.get("run") else None


def _configuration(space: SearchSpace, params: Mapping[str, Scalar]) -> dict[str, Any]:
    """All hyperparameters with their values; of a table of curves, its columns."""
    return dict(params) if space.columns else assemble(space, params).as_dict()


def size_text(name: str, size: float | None) -> str:
    """The second objective as it is shown: `12,288` parameters, `3.42` seconds, forgetting `0.0312`; empty without."""
    if size is None:
        return ""
    return {"trainable_params": f"{size:,.0f}", FORGETTING: f"{size:.4f}"}.get(name, f"{size:.2f}")


def memory_text(size: int | None) -> str:
    """`0.31 GiB`, or `96 MiB` where it is less than a tenth of that."""
    if size is None:
        return "–"
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.0f} MiB"


def configuration_text(params: Mapping[str, Scalar], trained_rate: float | None = None) -> str:
    """Parameters on one line, numbers to four digits: `rank 8, learning_rate 0.0031`.

    trained_rate: the rate that the trial was trained with, if another number was searched.
    """
    text = ", ".join(f"{name} {_number(value)}" for name, value in params.items())
    return text if trained_rate is None else f"{text}, trained at rate {_number(trained_rate)}"


def _number(value: Scalar) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def headline(summary: Summary) -> str:
    """The outcome in one or two plain sentences."""
    if summary.best is None:
        return f"No trial of study {summary.study!r} was completed."
    best = summary.best
    text = f"Trial {best.number} is the best: {summary.metric} {best.value:.4f} on validation rows"
    if summary.baseline is not None:
        text += f" ({summary.baseline:.4f} without training)"
    if best.checkpoint is not None and best.checkpoint.step < best.steps:
        text += f", at step {best.checkpoint.step} of {best.steps}"
    if best.forgetting is not None:
        text += f"; on other text it forgets {size_text(FORGETTING, best.forgetting)}"
    if summary.at_baseline:
        text += ". No trial is better than the untrained model: widen the learning-rate range or train longer"
    if summary.also_minimize is not None:
        text += f". {_front_text(summary, summary.also_minimize)}"
    if summary.patience is not None:
        text += f". The search ended early: {summary.patience} trials in a row brought nothing better"
    if summary.exhausted is not None:
        text += f". The search ended there: {exhausted_text(summary.exhausted)}"
    return text + "."


def _front_text(summary: Summary, name: str) -> str:
    front = summary.front
    if len(front) == 1:
        return (
            f"No complete trial with less {name} comes without a worse {summary.metric}, and none with more is better"
        )
    ends = (f"{row.value:.4f} with {size_text(name, row.size)}" for row in (front[0], front[-1]))
    return f"The Pareto front of {summary.metric} and {name} holds {len(front)} trials, from {' to '.join(ends)}"


def markdown(summary: Summary) -> str:
    """The summary page."""
    counts = summary.counts
    lines = [
        f"# {summary.study}",
        "",
        headline(summary),
        "",
        *_belief(summary),
        *_smaller(summary),
        "",
        f"- trials: {counts['COMPLETE']} complete, {counts['PRUNED']} pruned, {counts['FAIL']} failed",
        f"- training steps: {summary.spent_steps:,} of {summary.full_steps:,} that these trials would take unpruned",
        *([f"- of these, {summary.early_ends}"] if summary.early_ends else []),
        f"- training time, summed over workers: {summary.seconds:,.0f} s",
        f"- spent: {summary.spending}",
        f"- database: `{summary.database}`",
        f"- adapter: `{summary.best.adapter if summary.best else 'none'}`",
        *(f"- data: {note}" for note in summary.notes),
        "",
        "| trial | state | " + " | ".join((summary.metric, *summary.metrics)) + " | steps | configuration |",
        f"|--:|---|--:|{'--:|' * len(summary.metrics)}--:|---|",
    ]
    lines += [
        f"| {row.number} | {row.state} | {' | '.join((f'{row.value:.4f}', *metric_texts(row, summary.metrics)))}"
        f" | {row.steps} | {configuration_text(row.params, row.trained_rate)} |"
        for row in summary.ranked[:_SHOWN]
    ]
    if summary.also_minimize is not None:
        lines += _front_lines(summary, summary.also_minimize)
    return "\n".join(lines) + "\n"


def metric_texts(row: TrialRow, names: Sequence[str]) -> list[str]:
    """A cell for each of the metrics measured beside the objective; empty where one was not measured."""
    return [f"{row.metrics[name]:.4f}" if name in row.metrics else "" for name in names]


def _belief(summary: Summary) -> Iterator[str]:
    """How far the winner's value may be believed, and what is recommended."""
    found = summary.verification
    if found is None:
        yield f"This is the winner of a search on validation rows, so its value is optimistic{_twice(summary.best)}."
        yield "Test rows were not read:"
        yield f"`automl verify {summary.study}` trains the winner again on fresh seeds and scores it on them."
        return
    yield f"Verified on test rows, which the search never read: {found['headline']}"
    if (optimism := found["selection_optimism"]) is not None:
        yield (
            f"Trial {optimism['trial']} had {summary.metric} {optimism['validation']:.4f} in the search and has"
            f" {optimism['verified']:.4f} on the test rows{chosen_text(optimism)}."
        )
    yield f"**Recommended: {found['recommendation']['text']}**"
    if found.get("deploy"):
        yield f"To deploy: {found['deploy']['text']}."


def _twice(best: TrialRow | None) -> str:
    """What else than the choice among trials makes the winner's value optimistic."""
    if best is None or best.checkpoint is None:
        return ""
    return ", and it is the best of its own evaluations on them"


def chosen_text(optimism: Mapping[str, Any]) -> str:
    """What the selection of a checkpoint adds to the optimism of a search, to be said of verified scores."""
    if "step" not in optimism:
        return ""
    return f", trained to step {optimism['step']}, which the search had chosen among its evaluations"


def _smaller(summary: Summary) -> Iterator[str]:
    """How small the winner's adapter can be."""
    squeeze = summary.squeeze
    if squeeze is not None:
        yield from ("", f"Smaller sizes of trial {squeeze.trial}'s adapter: {squeeze_headline(squeeze)}.")
        if (folder := squeezed_adapter(Path(summary.folder), squeeze)) is not None:
            yield f"The adapter of that size: `{folder}`."


def _front_lines(summary: Summary, name: str) -> Iterator[str]:
    yield from ("", f"Pareto front of {summary.metric} and {name}:", "")
    yield from (f"| trial | {name} | {summary.metric} | configuration |", "|--:|--:|--:|---|")
    for row in summary.front:
        configuration = configuration_text(row.params, row.trained_rate)
        yield f"| {row.number} | {size_text(name, row.size)} | {row.value:.4f} | {configuration} |"


def write_summary(summary: Summary, folder: Path) -> None:
    """Write summary.json and summary.md into the study's folder, each atomically."""
    text = json.dumps(summary.as_dict(), indent=2, allow_nan=False, default=str) + "\n"
    durable.replace_file(folder / SUMMARY_JSON, text.encode())
    durable.replace_file(folder / SUMMARY_MARKDOWN, markdown(summary).encode())
