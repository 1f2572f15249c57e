"""A study as Python and a notebook see it: what it found, and what can be done with it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from automl import durable, progress
from automl.errors import ConfigError, MissingExtraError, Problem, SearchError, StudyNotFoundError
from automl.execution.stop import StopRequest
from automl.library.html import paragraph
from automl.library.progress import watched
from automl.library.trial import Trial, Trials
from automl.library.verdict import Verdict
from automl.results.folders import cache_folder
from automl.results.recorded import recorded_spec
from automl.results.summary import Summary, headline, summarise
from automl.space.load import DATABASE_VARIABLE, DEFAULT_STORAGE_URL, parse_space
from automl.space.spec import OwnMetric, SweepSpec
from automl.storage.sql import Database, open_database
from automl.storage.url import absolute_url, mask_url, parse_url
from automl.trial import Scalar

if TYPE_CHECKING:
    import optuna
    import pandas as pd

    from automl.compose.found import Composed
    from automl.squeeze.found import Squeezed

_SHOWN = 10


def open_study(name: str, storage: str | None = None) -> Study:
    """The study of that name in a database; storage: its URL, else $AUTOML_DB_URL, else sqlite:///automl.db here.

    Raises StorageError if there is no database, StudyNotFoundError naming the studies there are.
    """
    study = Study(name, storage or os.environ.get(DATABASE_VARIABLE) or DEFAULT_STORAGE_URL)
    with study._opened() as database:
        if name not in (known := database.study_names()):
            raise StudyNotFoundError(
                f"no study {name!r} in the database; it holds: {', '.join(map(repr, known)) or 'none'}"
            )
    return study


class Study:
    """A study in the database, running or finished. Everything is read when it is asked for."""

    def __init__(self, name: str, storage: str, own_metrics: Mapping[str, OwnMetric] = MappingProxyType({})) -> None:
        """own_metrics: the user's functions and programs that judge answers, which no database tells."""
        self.name = name
        self._own_metrics = own_metrics
        self._url = absolute_url(storage)

    @property
    def best(self) -> Trial:
        """The complete trial with the best value. Raises SearchError if there is none yet."""
        best = self._summary().best
        if best is None:
            raise SearchError(f"study {self.name!r} has no complete trial yet")
        return Trial.of(best)

    @property
    def best_params(self) -> dict[str, Scalar]:
        """Parameters of the best trial."""
        return dict(self.best.params)

    @property
    def best_value(self) -> float:
        """Objective of the best trial, on validation rows."""
        value = self.best.value
        assert value is not None
        return value

    @property
    def trials(self) -> Trials:
        """All trials by number, those of other runs and those in progress too."""
        return Trials(map(Trial.of, self._summary().trials))

    @property
    def front(self) -> Trials:
        """With two objectives, the complete trials that no other one beats in both, smallest first."""
        return Trials(map(Trial.of, self._summary().front))

    @property
    def optuna(self) -> optuna.Study:
        """The study as Optuna knows it, for its plots and importances. It cannot be written to."""
        from automl.storage.optuna_storage import load_study

        with self._opened():  # which says in one line what is wrong with the database
            return load_study(parse_url(self._url), self.name)

    def trials_dataframe(self) -> pd.DataFrame:
        """One row for each trial, with the columns of Optuna: number, state, value, params_rank, …"""
        try:
            import pandas as pd
        except ImportError:
            raise MissingExtraError("trials_dataframe needs the package pandas; pip install pandas") from None
        return pd.DataFrame.from_records(list(self.trials.records()))

    def report(self, path: str | Path) -> Path:
        """Write what was found as a page (.html), as .json or as .md; returns the path."""
        from automl.report.render import FORMATS, render
        from automl.report.write import study_frame

        path = Path(path)
        wanted = next((name for name, ending in FORMATS.items() if path.suffix == ending), None)
        if wanted is None:
            known = ", ".join(FORMATS.values())
            raise ConfigError(
                [Problem(str(path), 0, 0, "path", f"{path.suffix!r} is no known ending; it may be {known}")]
            )
        with self._read() as (database, spec):
            page = render(study_frame(database, spec), (wanted,)).texts[wanted]
        with durable.disk_errors_named(path):
            durable.replace_file(path, page.encode())
        return path

    def verify(
        self, *, seeds: int = 8, finalists: int = 2, margin: float | None = None, show_progress: bool = True
    ) -> Verdict:
        """Train the best trials again on fresh seeds and compare them on the test rows, which no search reads.

        margin: loss of the metric below which a smaller configuration is not worse (default: `verify.margin` of the
        space file, else 1 % of the metric's range, 2 % of a loss). Suggested ranks are verified too from 8 seeds on.
        Raises DataError if there are no test rows, ConfigError if margin is no difference of the metric;
        InterruptedSearch after Ctrl-C: every score so far is kept, and the same call goes on.
        """
        from automl.results.suggestion import suggested_ranks
        from automl.verify.run import VerifyOptions, verify_study

        stop = StopRequest()

        def work() -> Verdict:
            with self._read() as (database, spec):
                wanted = spec.verify.margin if margin is None else margin
                options = VerifyOptions(
                    seeds=seeds,
                    finalists=finalists,
                    margin=wanted,
                    budget_seconds=spec.verify.budget,
                    suggest=suggested_ranks,
                    squeeze=spec.verify.squeeze,
                )
                database.retry.seconds = spec.storage_grace_seconds
                return Verdict.of(verify_study(database, spec, cache_folder(), options, stop=stop))

        return watched(work, stop, progress.current, show=show_progress)

    def squeeze(
        self,
        trial: int | None = None,
        *,
        budget: int | None = None,
        rank: int | None = None,
        share: float | None = None,
        recover: int | None = None,
        output: str | Path | None = None,
        show_progress: bool = True,
    ) -> Squeezed:
        """Measure a trial's adapter (default: the best) at smaller sizes, without training; docs/squeeze.md.

        budget, rank, share: the size to cut to, at most one of them; default: the smallest that is not worse on the
        validation rows. recover: steps for which every global cut is trained afterwards, its head too. output: a new
        folder for the cut adapter. Raises ConfigError for a size it cannot be cut to,
        InterruptedSearch after Ctrl-C.
        """
        from automl.squeeze.curve import Wanted
        from automl.squeeze.run import squeeze_trial

        stop = StopRequest()
        wanted, folder = Wanted(budget=budget, rank=rank, share=share), None if output is None else Path(output)

        def work() -> Squeezed:
            with self._read() as (database, spec):
                return squeeze_trial(database, spec, trial, wanted, folder, recover=recover, stop=stop)

        return watched(work, stop, progress.current, show=show_progress)

    def compose(
        self,
        of: int | Sequence[int] = 5,
        *,
        how: str | Sequence[str] = (),
        density: float | Sequence[float] | None = None,
        majority: str = "total",
        rank: int | None = None,
        steps: int | None = None,
        output: str | Path | None = None,
        show_progress: bool = True,
    ) -> Composed:
        """Mix trained adapters into one, and hold the best mixture against the best trial; docs/compose.md.

        of: so many of the best, or numbers of trials. how: soup, svd, ties, dare_ties, linear, fusion or several of
        them; default: all that these adapters can be mixed in without training. density: share, or shares, of entries
        that ties and dare_ties keep. majority: whose sign counts there, total or frequency. rank: of svd, ties and
        dare_ties. steps: of fusion, which joins bottleneck adapters by attention that it trains; default: those of a
        trial. output: a new folder for the mixture that is best on validation rows. Raises ConfigError for what cannot
        be asked, SearchError if there are not two adapters, ModelError if they cannot be mixed so, Diverged if a fusion
        comes to no end, InterruptedSearch after Ctrl-C.
        """
        from automl.compose.run import compose_study
        from automl.compose.wanted import DENSITIES, Wanted

        densities = DENSITIES if density is None else [density] if isinstance(density, float | int) else density
        hows = [how] if isinstance(how, str) else how
        wanted = Wanted(of=of, how=hows, densities=densities, majority=majority, rank=rank, steps=steps)
        stop, folder = StopRequest(), None if output is None else Path(output)

        def work() -> Composed:
            with self._read() as (database, spec):
                return compose_study(database, spec, wanted, folder, stop=stop)

        return watched(work, stop, progress.current, show=show_progress)

    def load_model(
        self, trial: int | None = None, *, adapters: Iterable[int | str | Path] | None = None
    ) -> tuple[Any, Any]:
        """The PEFT model with the adapter of a complete trial (default: the best), and its tokenizer.

        Class names and chat template are in place; it is on the CPU, in eval mode, with all weights frozen. adapters:
        numbers of trials, and folders of adapters of the same model, which are all held by one model under the names
        `trial-3` or the folder's own; the first is on, and `model.set_adapter(name)` puts another one on. Raises
        SearchError if a trial has no adapter any more, ModelError for adapters that cannot be on one model.
        """
        from automl.sweep.export import load_trial, load_trials

        if adapters is not None and trial is not None:
            raise ConfigError([Problem("", 0, 0, "adapters", "and trial say both which adapter; give one of them")])
        with self._read() as (database, spec):
            return load_trial(database, spec, trial) if adapters is None else load_trials(database, spec, adapters)

    def export(self, output: str | Path, trial: int | None = None, *, merged: bool = False, check: bool = True) -> Path:
        """Write a trial's adapter (default: the best), or the model with it merged in, to a new folder; returns that.

        check: load it in a fresh process and compare what it measures. Raises CheckpointError if that differs.
        """
        from automl.sweep.export import export_trial

        with self._read() as (database, spec):
            return Path(export_trial(database, spec, Path(output), trial, merged=merged, check=check).folder)

    def to_yaml(self, path: str | Path | None = None) -> str:
        """The space file of the study, which `automl search` goes on with; also written to `path` if one is given.

        Relative paths in it begin in the folder where the study was begun: with any, it can be written there only.
        """
        with self._read() as (database, spec):
            text, folder = spec.text, Path(str(database.store(self.name).sweep().provenance.get("folder", ".")))
        if path is not None:
            _check_folder(text, spec, begun_in=folder, place=Path(path).absolute())
            with durable.disk_errors_named(Path(path)):
                durable.replace_file(Path(path), text.encode())
        return text

    def __repr__(self) -> str:
        return f"<automl.Study {self.name!r} in {mask_url(self._url)}>"

    def _repr_html_(self) -> str:
        summary = self._summary()
        first = Trials(map(Trial.of, summary.ranked[:_SHOWN]))
        counts = ", ".join(f"{count} {state}" for state, count in summary.counts.items() if count)
        told = f"{len(summary.trials)} trials: {counts or 'none yet'}."
        return f"{paragraph(headline(summary))}{paragraph(told)}{first._repr_html_()}"

    @contextmanager
    def _opened(self) -> Iterator[Database]:
        with open_database(self._url, create=False) as database:
            yield database

    @contextmanager
    def _read(self) -> Iterator[tuple[Database, SweepSpec]]:
        with self._opened() as database:
            spec = recorded_spec(database, self.name)
            yield database, replace(spec, task=replace(spec.task, own_metrics=self._own_metrics))

    def _summary(self) -> Summary:
        with self._read() as (database, spec):
            return summarise(database, spec)


def _check_folder(text: str, spec: SweepSpec, *, begun_in: Path, place: Path) -> None:
    """Raise ConfigError if the relative paths of the text would mean something else in the folder of `place`."""
    there = parse_space(text, str(place), place.parent)
    if (there.model, there.task.data, there.keep) != (spec.model, spec.task.data, spec.keep):
        message = f"its relative paths begin in {begun_in}; write it there, or use absolute ones"
        raise ConfigError([Problem(str(place), 0, 0, "path", message)])
