"""`automl search`: the main job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from automl.cli import console
from automl.cli.verify import show_verification, verify_after_search

if TYPE_CHECKING:
    from automl.results.summary import Summary


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: automl search space.yaml")
    def search(
        space: Annotated[Path, typer.Argument(help="The space file (YAML).", metavar="SPACE.YAML")],
        trials: Annotated[
            int | None, typer.Option("--trials", min=1, max=100_000, help="Override search.trials, also to add trials.")
        ] = None,
        time: Annotated[str | None, typer.Option("--time", help="Override search.time, for example 2h or 30m.")] = None,
        allow_space_change: Annotated[
            bool,
            typer.Option("--allow-space-change", help="Go on although the space, model or data of the study changed."),
        ] = False,
        verify: Annotated[
            bool | None,
            typer.Option("--verify/--no-verify", help="Override verify.automatic: train the best again afterwards."),
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
    ) -> None:
        """Run a search to its end, then verify its winner. The same command continues what was interrupted."""
        from automl.cli.progress import observe_all
        from automl.cli.signals import end_without_lease, signals_as_interruption
        from automl.results.folders import cache_folder
        from automl.setup.executors import Executors
        from automl.space.load import load_spaces, with_overrides
        from automl.sweep.together import run_sweeps

        specs = [with_overrides(spec, trials=trials, time=time) for spec in load_spaces(space)]
        wanted = specs[0].verify.automatic if verify is None else verify
        with Executors() as executors:
            with observe_all(specs) as observers, signals_as_interruption() as stop:
                summaries = run_sweeps(
                    specs,
                    cache_folder(),
                    observers=observers,
                    stop=stop,
                    on_lost=end_without_lease,
                    executors=executors if wanted else None,
                    allow_space_change=allow_space_change,
                )
            if not as_json:
                _show_all(summaries)
            verifications = [verify_after_search(spec, executors) if wanted else None for spec in specs]
        found = [{**each.as_dict(), "verification": of} for each, of in zip(summaries, verifications, strict=True)]
        if as_json:
            console.result_json({"studies": found} if len(found) > 1 else found[0])
            return
        for spec, verification in zip(specs, verifications, strict=True):
            if verification is not None:
                if len(specs) > 1:
                    console.result(f"{spec.study}:")
                show_verification(verification)
        _show_next(summaries, space)


def _show_all(summaries: Sequence[Summary]) -> None:
    """One study in full; of several a line each, with the best value and the adapter."""
    from automl.results.summary import headline

    if len(summaries) == 1:
        _show(summaries[0])
        return
    for summary in summaries:
        console.result(f"{summary.study}: {headline(summary)}")
        if summary.best is not None:
            console.result(f"  {summary.best.adapter}")
    console.result(f"database: {summaries[0].database}")


def _show(summary: Summary) -> None:
    from automl.results.squeezed import squeeze_headline, squeezed_adapter
    from automl.results.summary import SUMMARY_MARKDOWN, configuration_text, headline

    counts = summary.counts
    console.result(headline(summary))
    if summary.best is not None:
        console.result(f"  {configuration_text(summary.best.params, summary.best.trained_rate)}")
    if summary.squeeze is not None:
        console.result(f"smaller adapter: {squeeze_headline(summary.squeeze)}")
        if (folder := squeezed_adapter(Path(summary.folder), summary.squeeze)) is not None:
            console.result(f"  {folder}")
    console.result(
        f"{counts['COMPLETE']} trials complete, {counts['PRUNED']} pruned, {counts['FAIL']} failed; "
        f"{summary.spent_steps:,} training steps instead of {summary.full_steps:,} without pruning."
    )
    if summary.early_ends:
        console.result(f"{summary.early_ends}.")
    console.result(f"spent: {summary.spending}")
    console.result(f"database: {summary.database}")
    if summary.best is not None:
        console.result(f"adapter:  {summary.best.adapter}")
    console.result(f"summary:  {Path(summary.folder) / SUMMARY_MARKDOWN}")
    console.result(f"report:   {Path(summary.folder) / 'report.html'}")


def _show_next(summaries: Sequence[Summary], space: Path) -> None:
    console.result("next:")
    summary = summaries[0]
    if len(summaries) > 1:
        console.result(f"  automl report {summary.study}")
        console.result(f"  automl export {summary.study} --output my-adapter")
        return
    console.result(f"  automl {'trials' if summary.also_minimize is None else 'best'} {space}")
    console.result(f"  automl export {space} --output my-adapter")
    console.result(f"  optuna-dashboard {summary.database}")
