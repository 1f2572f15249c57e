"""`automl suggest`: a rank for every module, as a hypothesis, from what the trials of a study have left."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from automl.cli import console
from automl.cli.study_argument import DatabaseOption, JsonOption, StudyArgument, opened, recorded_spec

if TYPE_CHECKING:
    from automl.results.rank_gate import RankGate
    from automl.results.suggestion import Suggestion

_STATUS = {
    "not_run": "UNVERIFIED: a hypothesis. Scores that repeat are not yet ranks that help; automl verify tests them.",
    "passed": "Verified: better than even ranks and than random ranks of the same size.",
    "no_gain": "UNVERIFIED: no measurable gain over even ranks when it was verified.",
    "worse": "UNVERIFIED: worse than even ranks when it was verified.",
}


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: automl suggest bbc-topics --budget 40000 --format peft")
    def suggest(
        study: StudyArgument = None,
        url: DatabaseOption = None,
        budget: Annotated[
            int | None,
            typer.Option("--budget", "-b", min=1, help="Parameters of the low-rank matrices. Default: the trial's."),
        ] = None,
        trial: Annotated[
            int | None,
            typer.Option("--from", help="Take target set, scaling and budget from this trial, not the best."),
        ] = None,
        form: Annotated[
            Literal["peft", "axolotl", "ludwig"] | None, typer.Option("--format", help="Print only text to paste.")
        ] = None,
        as_json: JsonOption = False,
    ) -> None:
        """Suggest a rank for every module from the importances that were measured while trials trained."""
        from automl.importance.pattern import snippet
        from automl.results.rank_gate import rank_gate
        from automl.results.suggestion import suggestion_of

        with opened(study, url) as (database, name):
            gate = rank_gate(database, recorded_spec(database, name))
            if gate is not None and gate.answer == "does not bind" and not as_json and budget is None and trial is None:
                _show_gate(gate, form)
                return
            found = suggestion_of(database, name, budget=budget, trial=trial)
        if as_json:
            console.result_json({**found.as_dict(), "rank_gate": gate.as_dict() if gate else None})
        elif form is not None:
            console.results([f"# {_STATUS[found.status]}", *snippet(found.peft, form, found.task_type).splitlines()])
        else:
            _show(found)


def _show_gate(gate: RankGate, form: str | None) -> None:
    """What to do where ranks do not matter, instead of a map of them."""
    mark = "# " if form else ""
    console.result(f"{mark}{gate.headline}.")
    console.result(f"{mark}{gate.evidence}")
    console.result(f"{mark}No ranks by module are suggested; --budget or --from show them as a hypothesis.")


def _show(found: Suggestion) -> None:
    console.result(_STATUS[found.status])
    console.result(
        f"{found.used_params:,} of {found.budget_params:,} parameters, alpha / rank as in trial {found.trial};"
        f" even ranks would be {found.uniform_rank}."
    )
    console.result(
        f"{len(found.weights)} trials ({found.n_eff:.1f} effective), rank correlation {found.stability:.2f} on average,"
        f" {found.least_stability:.2f} at least: how well trials agree, not whether they are right."
    )
    columns = ("module", ">share", ">90 %", ">held out", ">rank", ">90 %")
    console.table("", columns, _rows(found))
    console.results(f"note: {note}" for note in found.notes)
    console.results(f"target set: {line}" for line in found.advice)
    console.result("Tuning the learning rate, and all-linear against qv at equal size, help more often than ranks do.")
    console.result(f"next: automl suggest {found.study} --format peft")


def _rows(found: Suggestion) -> Iterator[tuple[str, ...]]:
    for module in found.modules:
        looked = module.held_out is not None
        error = f" ± {module.held_out_error:.2g}" if module.held_out_error is not None else ""
        yield (
            module.module,
            f"{module.share:.1%}",
            f"{module.low:.1%} to {module.high:.1%}",
            f"{module.held_out:+.2g}{error}" if looked else "-",
            str(module.rank_suggested),
            f"{module.rank_low} to {module.rank_high}",
        )
