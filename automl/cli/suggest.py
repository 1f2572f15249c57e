"""`automl suggest`: a rank for every module, those of the winner's cut adapter; to train with, a hypothesis."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from automl.cli import console
from automl.cli.study_argument import DatabaseOption, JsonOption, StudyArgument, opened, recorded_spec

if TYPE_CHECKING:
    from automl.results.rank_gate import RankGate
    from automl.results.suggestion import Suggestion

_STATUS = {
    "not_run": "UNVERIFIED as ranks to train with: a hypothesis, which automl verify tests.",
    "passed": "Verified as ranks to train with: better than even ranks and than random ranks of the same size.",
    "no_gain": "UNVERIFIED as ranks to train with: no measurable gain over even ranks when it was verified.",
    "worse": "UNVERIFIED as ranks to train with: worse than even ranks when it was verified.",
}


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: automl suggest bbc-topics --budget 40000 --format peft")
    def suggest(
        study: StudyArgument = None,
        url: DatabaseOption = None,
        budget: Annotated[
            int | None,
            typer.Option("--budget", "-b", min=1, help="Parameters of the low-rank matrices. Default: the knee's."),
        ] = None,
        trial: Annotated[
            int | None,
            typer.Option("--from", help="Take the cut adapter of this trial, not of the best."),
        ] = None,
        form: Annotated[
            Literal["peft", "axolotl", "ludwig"] | None, typer.Option("--format", help="Print only text to paste.")
        ] = None,
        as_json: JsonOption = False,
    ) -> None:
        """Show the rank of every module when the winner's adapter is cut to a size, as its squeeze has found them."""
        from automl.importance.pattern import snippet
        from automl.results.rank_gate import rank_gate
        from automl.results.suggestion import suggestion_of

        with opened(study, url) as (database, name):
            gate = rank_gate(database, recorded_spec(database, name))
            if gate is not None and gate.answer == "does not bind" and not as_json and budget is None and trial is None:
                _show_gate(gate)
                console.result("# No ranks by module are suggested; --budget or --from show them as a hypothesis.")
                if form is not None:
                    console.results(_even(suggestion_of(database, name), gate, form))
                return
            found = suggestion_of(database, name, budget=budget, trial=trial)
        if as_json:
            console.result_json({**found.as_dict(), "rank_gate": gate.as_dict() if gate else None})
            return
        if gate is not None and gate.says_something:
            _show_gate(gate)
        if form is not None:
            console.results([f"# {_STATUS[found.status]}", *snippet(found.peft, form, found.task_type).splitlines()])
        else:
            _show(found)


def _show_gate(gate: RankGate) -> None:
    """Whether ranks matter at all, before a map of them or instead of it; comments in every format."""
    console.result(f"# {gate.headline}.")
    console.result(f"# {gate.evidence}")


def _even(found: Suggestion, gate: RankGate, form: Literal["peft", "axolotl", "ludwig"]) -> Iterator[str]:
    """The low rank in every module of the winner, as text to paste."""
    from automl.importance.pattern import snippet

    rank = gate.rank or 1
    alpha = gate.alpha or found.scaling * (math.sqrt(rank) if found.peft["use_rslora"] else rank)
    even = {"r": rank, "lora_alpha": alpha, "rank_pattern": {}, "alpha_pattern": {}}
    block = {**found.peft, "target_modules": [module.module for module in found.modules], **even}
    yield f"# learning rate {gate.learning_rate:.3g}"
    yield from snippet(block, form, found.task_type).splitlines()


def _show(found: Suggestion) -> None:
    size = "the knee" if found.is_knee else "as asked"
    console.result(f"Ranks of trial {found.trial}'s adapter cut to {found.used_params:,} parameters ({size}).")
    console.result(_STATUS[found.status])
    if found.stability is not None and found.least_stability is not None:
        console.result(
            f"Importances: {len(found.weights)} trials ({found.n_eff:.1f} effective), rank correlation"
            f" {found.stability:.2f} on average, {found.least_stability:.2f} at least: how well trials agree, not"
            " whether they are right."
        )
    columns = ("module", ">rank", ">of", ">strength", ">importance", ">90 %", ">held out")
    console.table("", columns, _rows(found))
    console.results(f"note: {note}" for note in found.notes)
    console.results(f"target set: {line}" for line in found.advice)
    console.result("Tuning the learning rate, and all-linear against qv at equal size, help more often than ranks do.")
    console.result(f"next: automl suggest {found.study} --format peft")


def _rows(found: Suggestion) -> Iterator[tuple[str, ...]]:
    for module in found.modules:
        known = module.share is not None
        error = f" ± {module.held_out_error:.2g}" if module.held_out_error is not None else ""
        yield (
            module.module,
            str(module.rank_suggested),
            str(module.rank_whole),
            f"{module.energy:.1%}",
            f"{module.share:.1%}" if known else "-",
            f"{module.low:.1%} to {module.high:.1%}" if known else "-",
            f"{module.held_out:+.2g}{error}" if module.held_out is not None else "-",
        )
