"""`automl compose`: several trained adapters made into one, and whether that is better than the best of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from automl.cli import console
from automl.cli.study_argument import DatabaseOption, JsonOption, StudyArgument, opened, spec_to_measure
from automl.errors import ConfigError, Problem

if TYPE_CHECKING:
    from automl.compose.found import Composed, Mixture


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: automl compose bbc-topics --of best:3 --how soup,ties --output mixture")
    def compose(
        study: StudyArgument = None,
        url: DatabaseOption = None,
        of: Annotated[
            str | None,
            typer.Option("--of", help="Mix so many of the best adapters. Default: best:5.", metavar="best:N"),
        ] = None,
        trials: Annotated[
            str | None, typer.Option("--trials", help="Mix the adapters of these trials.", metavar="N,N,…")
        ] = None,
        how: Annotated[
            str | None,
            typer.Option(
                "--how",
                help="Ways of mixing: soup, svd, ties, dare_ties, linear, or several of them; fusion trains. "
                "Default: all that fit but fusion.",
                metavar="WAY,…",
            ),
        ] = None,
        density: Annotated[
            str | None,
            typer.Option(
                "--density",
                help="Shares of entries that ties and dare_ties keep, each a mixture of its own. Default: 0.2,0.5.",
                metavar="SHARE,…",
            ),
        ] = None,
        majority: Annotated[
            str, typer.Option("--majority", help="Whose sign counts in ties and dare_ties: total or frequency.")
        ] = "total",
        rank: Annotated[
            int | None,
            typer.Option("--rank", help="Rank of svd, ties and dare_ties. Default: the adapters' highest, by layer."),
        ] = None,
        steps: Annotated[
            int | None, typer.Option("--steps", help="Steps that fusion trains. Default: those of a trial.")
        ] = None,
        output: Annotated[
            Path | None, typer.Option("--output", "-o", help="Write the chosen mixture to this folder; must not exist.")
        ] = None,
        as_json: JsonOption = False,
    ) -> None:
        """Mix adapters of a study, choose a mixture by validation, compare it on test rows.

        It is held against the best trial alone. Nothing is trained but by fusion, which joins bottleneck adapters
        (method adapter) by learned attention. In every other way the heads of the adapters are averaged.
        """
        from automl.cli.signals import signals_as_interruption
        from automl.compose.run import compose_study
        from automl.compose.wanted import BEST, DENSITIES, Wanted

        if of is not None and trials is not None:
            raise _wrong("trials", "and --of say both which adapters; give one of them")
        wanted = Wanted(
            of=BEST if of is None and trials is None else _best(of) if trials is None else _numbers(trials),
            how=[] if how is None else _listed(how),
            densities=DENSITIES if density is None else [_share(each) for each in _listed(density)],
            majority=majority,
            rank=rank,
            steps=steps,
        )
        with signals_as_interruption("anything was written") as stop, opened(study, url) as (database, name):
            found = compose_study(database, spec_to_measure(database, name, study), wanted, output, stop=stop)
        if as_json:
            console.result_json(found.as_dict())
        else:
            _show(found)


def _best(text: str | None) -> int:
    said = re.fullmatch(r"best:(\d+)", text or "")
    if said is None:
        raise _wrong("of", f"{text!r} is not best:N, as in best:5; for certain trials there is --trials 3,7")
    return int(said[1])


def _numbers(text: str) -> list[int]:
    if wrong := next((each for each in _listed(text) if not each.isdecimal()), None):
        raise _wrong("trials", f"{wrong!r} is no number of a trial; as in 3,7,9")
    return [int(each) for each in _listed(text)]


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise _wrong("density", f"{text!r} is no number; as in 0.2,0.5") from None


def _listed(text: str) -> list[str]:
    return [each.strip() for each in text.split(",") if each.strip()]


def _wrong(option: str, message: str) -> ConfigError:
    return ConfigError([Problem("", 0, 0, f"--{option}", message)])


def _show(found: Composed) -> None:
    name = found.metric
    losses = [] if name == "loss" else [">loss"]
    console.table(
        f"{found.study}, on {found.rows:,} validation rows",
        ("", "trials", ">numbers", f">{name}", *losses, ""),
        _rows(found),
    )
    for note in found.notes:
        console.warning(note)
    console.result(found.headline())
    if found.output is None:
        console.result("nothing was written; add --output FOLDER for the chosen mixture")
    else:
        console.result(
            f"{found.chosen.name} written to {found.output}; load it with automl.load_adapter({found.output!r})"
        )


def _rows(found: Composed) -> Iterator[tuple[str, ...]]:
    alone = found.adapters if found.winner in found.adapters else (found.winner, *found.adapters)
    for each in sorted([*alone, *found.mixtures], key=lambda each: each.place(found.metric)):
        losses = [] if found.metric == "loss" else [f"{each.metrics['loss']:.4f}"]
        trials = "" if each.recipe is None else ", ".join(map(str, each.trials))
        yield (
            each.name,
            trials,
            f"{each.parameters:,}",
            f"{each.metrics[found.metric]:.4f}",
            *losses,
            _mark(found, each),
        )


def _mark(found: Composed, each: Mixture) -> str:
    return "chosen" if each is found.chosen else "winner" if each is found.winner else ""
