"""From a finished study to a mixture of its adapters, chosen by validation rows and held against the winner."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from automl import progress
from automl.compose.bench import Bench
from automl.compose.found import Comparison, Composed, Mixture
from automl.compose.members import Found, chosen_trials, found_adapters, ways
from automl.compose.mixing import How, Recipe
from automl.compose.wanted import Wanted
from automl.errors import ConfigError, DataError, ModelError, Problem
from automl.execution.stop import StopRequest
from automl.metric import METRICS
from automl.results.artifacts import complete_trial
from automl.results.folders import cache_folder
from automl.results.recorded import GROUND
from automl.setup.setup import Setup, for_one_trial, set_up
from automl.space.spec import SweepSpec
from automl.storage.sql import Database
from automl.tasks.base import Row
from automl.training.runtime import load_runtime
from automl.verify.rows import between, truth_of
from automl.verify.statistics import Verdict, verdict

_UNDECIDED: Verdict = "no clear difference"


def compose_study(
    database: Database, spec: SweepSpec, wanted: Wanted, output: Path | None, *, stop: StopRequest
) -> Composed:
    """Mix finished adapters of a study, and write the mixture that is best on validation rows to `output`.

    It is held against the study's best trial on the test rows, if there are any. Raises ConfigError for what cannot be
    asked, SearchError if there are not two adapters, ModelError if they cannot be mixed so, DataError if the data is
    another one now, InterruptedSearch.
    """
    began = time.monotonic()
    wanted.check()
    if output is not None and output.exists():
        raise ConfigError([Problem(str(output), 0, 0, "--output", "exists already; choose a new folder")])
    winner, rows = complete_trial(database, spec, None), chosen_trials(database, spec, wanted.of)
    others = [] if winner in rows else [winner]
    with found_adapters(database, spec, [*rows, *others]) as found, tempfile.TemporaryDirectory() as scratch:
        numbers = [row.number for row in rows]
        hows, notes = ways([each for each in found if each.number in numbers], wanted)
        recorded = database.store(spec.study).last_event(GROUND)
        setup = set_up(for_one_trial(spec), cache_folder(), recorded, is_thorough=False)
        _check_same(found, setup)
        with progress.telling(lambda: "loading the model"):
            runtime = load_runtime(setup.worker_settings())
        metric = spec.task.metric
        bench = Bench(runtime, found, metric, Path(scratch), stop)
        alone = sorted((bench.measure(each.number) for each in found), key=lambda each: each.place(metric))
        best = next(each for each in alone if each.trials == (winner.number,))
        singles = [each for each in alone if each.trials[0] in numbers]
        mixtures = sorted(_mixtures(bench, singles, hows, wanted, metric), key=lambda each: each.place(metric))
        chosen = mixtures[0]
        test = setup.inputs.prepared.rows.get("test", 0)
        compared = (
            _compared(bench, chosen, best, runtime.task.rows(setup.inputs.prepared, "test"), metric) if test else None
        )
        if output is not None:
            bench.write(chosen, output)
    return Composed(
        study=spec.study,
        metric=metric,
        rows=len(runtime.evaluation_rows),
        adapters=tuple(singles),
        mixtures=tuple(mixtures),
        winner=best,
        chosen=chosen,
        test=compared,
        output=None if output is None else str(output),
        base=setup.inputs.backbone.path,
        seconds=time.monotonic() - began,
        notes=(*notes, *_notes(wanted, rows, spec, test)),
    )


def _mixtures(
    bench: Bench, singles: Sequence[Mixture], hows: Sequence[How], wanted: Wanted, metric: str
) -> Iterator[Mixture]:
    """Every mixture of all adapters, and the greedy soup if that is another one. singles: the best first."""
    trials = [each.trials[0] for each in singles]
    for how in hows:
        for recipe in wanted.recipes(how):
            yield bench.mix(_name(recipe), recipe, trials)
    if "soup" in hows:
        soup = greedy(singles, partial(bench.mix, "greedy soup", Recipe(how="soup")), metric)
        if 1 < len(soup.trials) < len(trials):
            yield soup


def greedy(singles: Sequence[Mixture], mix: Callable[[Sequence[int]], Mixture], metric: str) -> Mixture:
    """The best adapter with each next one that makes the mixture better. singles: the best first.

    Source: Wortsman et al. 2022 (2203.05482), recipe 1; there an adapter is also added if nothing changes.
    """
    best = singles[0]
    for each in singles[1:]:
        mixture = mix((*best.trials, *each.trials))
        if mixture.place(metric) < best.place(metric):
            best = mixture
    return best


def _name(recipe: Recipe) -> str:
    return recipe.how if recipe.density is None else f"{recipe.how} {recipe.density:g}"


def _compared(bench: Bench, chosen: Mixture, winner: Mixture, rows: Sequence[Row], metric: str) -> Comparison:
    """Both on the test rows, which nothing was chosen by."""
    (ours, our_rows), (theirs, their_rows) = bench.score(chosen, rows), bench.score(winner, rows)
    difference, said = None, _UNDECIDED
    if our_rows is not None and their_rows is not None and len(our_rows.rows) > 1:
        truth = truth_of(rows) if our_rows.kind != "values" else ()
        difference = between(our_rows, their_rows, metric, truth)
        said = verdict(difference, METRICS[metric].direction)
    return Comparison(rows=len(rows), mixture=ours, winner=theirs, difference=difference, verdict=said)


def _check_same(found: Sequence[Found], setup: Setup) -> None:
    """Raise an error unless model and data are those that the adapters were trained on."""
    about = found[0].about
    if (trained := about["backbone"]["fingerprint"]) != (now := setup.inputs.backbone.fingerprint):
        raise ModelError(
            f"the adapters were trained on model {trained[:12]}; in {setup.inputs.backbone.path} is {now[:12]}"
        )
    if about["data"]["fingerprint"] != setup.inputs.prepared.fingerprint:
        raise DataError(
            f"study {setup.spec.study!r}: its data changed since its search; mixtures would be of something else"
        )


def _notes(wanted: Wanted, rows: Sequence[object], spec: SweepSpec, test: int) -> Iterator[str]:
    if isinstance(wanted.of, int) and len(rows) < wanted.of:
        yield f"the study has {len(rows)} adapters (search.keep: {spec.search.keep}), not {wanted.of}"
    if not test:
        yield "the data has no test rows, so whether the mixture is better is not known"
