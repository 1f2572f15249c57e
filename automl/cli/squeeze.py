"""`automl squeeze`: how small a trained adapter can be, and the smaller adapter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from automl.cli import console
from automl.cli.study_argument import DatabaseOption, JsonOption, StudyArgument, opened, spec_to_measure
from automl.errors import ConfigError, Problem

if TYPE_CHECKING:
    from automl.squeeze.found import Squeezed


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: automl squeeze bbc-topics --output small-adapter")
    def squeeze(
        study: StudyArgument = None,
        url: DatabaseOption = None,
        trial: Annotated[
            int | None, typer.Option("--trial", help="Cut this trial's adapter. Default: the best.")
        ] = None,
        adapter: Annotated[
            Path | None, typer.Option("--adapter", help="Cut an adapter that PEFT has saved, in place of a trial's.")
        ] = None,
        model: Annotated[
            str | None, typer.Option("--model", help="With --adapter: hub id, folder or .gguf file of its base model.")
        ] = None,
        data: Annotated[
            str | None, typer.Option("--data", help="With --adapter: file, folder or hub id of data to measure it on.")
        ] = None,
        task: Annotated[
            str | None, typer.Option("--task", help="With --adapter: type of the task. Default: read off the data.")
        ] = None,
        budget: Annotated[int | None, typer.Option("--budget", "-b", help="Cut to so many parameters.")] = None,
        rank: Annotated[
            int | None, typer.Option("--rank", help="Cut to the parameters of this rank in every module.")
        ] = None,
        share: Annotated[float | None, typer.Option("--share", help="Cut to this share of its parameters.")] = None,
        recover: Annotated[
            int | None,
            typer.Option(
                "--recover",
                help="Train every global cut for so many steps, its head too; all at once where they can be packed.",
                metavar="STEPS",
            ),
        ] = None,
        output: Annotated[
            Path | None, typer.Option("--output", "-o", help="Write the cut adapter to this folder; must not exist.")
        ] = None,
        as_json: JsonOption = False,
    ) -> None:
        """Measure an adapter at smaller sizes, without training, and write the smallest that is not worse.

        Directions are ranked over all modules by what they add to outputs for each parameter; a module may lose all of
        its. An adapter trained at the small rank, with a learning rate of its own, may be better still.
        """
        from automl.cli.signals import signals_as_interruption
        from automl.squeeze.curve import Wanted
        from automl.squeeze.run import squeeze_folder, squeeze_trial

        wanted = Wanted(budget=budget, rank=rank, share=share)
        with signals_as_interruption("anything was written") as stop:
            if adapter is not None:
                _refuse_given(study=study, url=url, trial=trial)
                model, data = _needed("model", model), _needed("data", data)
                found = squeeze_folder(adapter, model, data, task, wanted, output, recover=recover, stop=stop)
            else:
                with opened(study, url) as (database, name):
                    spec = spec_to_measure(database, name, study)
                    found = squeeze_trial(database, spec, trial, wanted, output, recover=recover, stop=stop)
        if as_json:
            console.result_json(found.as_dict())
        else:
            _show(found)


def _needed(name: str, value: str | None) -> str:
    if value is None:
        raise ConfigError([Problem("", 0, 0, f"--{name}", "is needed with --adapter")])
    return value


def _refuse_given(**given: object) -> None:
    for name, value in given.items():
        if value is not None:
            option = {"study": "STUDY", "url": "--db", "trial": "--trial"}[name]
            raise ConfigError([Problem("", 0, 0, option, "and --adapter are two adapters; give one of them")])


def _show(found: Squeezed) -> None:
    name = found.metric
    losses = [] if name == "loss" else [">loss"]
    recovered = [f">after {found.recovery_steps} steps"] if found.recovery_steps else []
    console.table(
        f"{found.source}, on {found.rows:,} validation rows",
        (">parameters", ">share", "cut", f">{name}", *losses, *recovered, ""),
        _rows(found),
    )
    for note in found.notes:
        console.warning(note)
    if found.recovery_rate is not None:
        console.result(
            f"recovery: {found.recovery_steps} steps at rate {found.recovery_rate:.2g}, chosen on these rows"
        )
    console.result(found.headline())
    console.result("the rows are those the size was chosen on; score it on others before relying on it")
    if found.output is None:
        console.result("nothing was written; add --output FOLDER for the adapter")
    else:
        console.result(
            f"{found.chosen.parameters:,} parameters in {len(found.ranks)} modules{_which(found)} written to"
            f" {found.output}; load it"
            f" with PeftModel.from_pretrained(base, {found.output!r}), base from {found.base}"
        )
    console.result(f"note: {found.caution}")


def _which(found: Squeezed) -> str:
    """Whether what was written is the recovered adapter, where one was asked for."""
    if not found.recovery_steps or found.chosen.recovered is None:
        return ""
    return ", recovered," if found.chosen.is_better_recovered(found.metric) else ", as cut: recovery is no better,"


def _rows(found: Squeezed) -> Iterator[tuple[str, ...]]:
    kinds = {"whole": 0, "global": 1, "asked": 1, "even": 2}
    for cut in sorted(found.cuts, key=lambda cut: (-cut.parameters, kinds[cut.kind])):
        losses = [] if found.metric == "loss" else [f"{cut.metrics['loss']:.4f}"]
        marks = [name for name, which in (("knee", found.knee), ("written", found.chosen)) if which is cut]
        if found.output is None:
            marks = [mark for mark in marks if mark != "written"]
        value = f"{cut.metrics[found.metric]:.4f}"
        after = [f"{cut.recovered[found.metric]:.4f}" if cut.recovered else "–"] if found.recovery_steps else []
        yield f"{cut.parameters:,}", f"{cut.share:.1%}", cut.kind, value, *losses, *after, ", ".join(marks)
