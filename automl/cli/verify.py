"""`automl verify`: train the best configurations again and say what may be believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from automl.cli import console
from automl.cli.study_argument import DatabaseOption, JsonOption, StudyArgument, opened, spec_to_measure

if TYPE_CHECKING:
    from automl.setup.executors import Executors
    from automl.space.spec import SweepSpec
    from automl.storage.sql import Database
    from automl.storage.verification import Verification
    from automl.verify.run import VerifyOptions

_SEEDS = 8


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: automl verify bbc-topics --seeds 8 --finalists 2")
    def verify(
        study: StudyArgument = None,
        url: DatabaseOption = None,
        seeds: Annotated[
            int, typer.Option("--seeds", "-n", min=3, max=1000, help="Trainings of each configuration, fresh seeds.")
        ] = _SEEDS,
        finalists: Annotated[
            int, typer.Option("--finalists", "-k", min=1, max=20, help="Best trials of the search to verify.")
        ] = 2,
        margin: Annotated[
            float | None,
            typer.Option(
                "--margin",
                help="Loss of the metric below which a smaller configuration is not worse. Default: the space file's"
                " verify.margin, else 1 % of the metric's range, 2 % of a loss.",
            ),
        ] = None,
        patterns: Annotated[
            bool, typer.Option("--patterns/--no-patterns", help="Verify suggested ranks too (from 8 seeds on).")
        ] = True,
        squeeze: Annotated[
            Literal["auto", "all", "cuts", "off"] | None,
            typer.Option(
                "--squeeze",
                help="Smaller adapters to hold against the winner's: a quarter of its rank, trained, and cuts; all:"
                " more trained ranks; cuts: none is trained. Default: the space file's verify.squeeze.",
            ),
        ] = None,
        as_json: JsonOption = False,
    ) -> None:
        """Train the best configurations again on fresh seeds and compare them on the untouched test rows.

        Run the same command again to continue an interrupted one.
        """
        from automl.results.suggestion import suggested_ranks
        from automl.verify.run import VerifyOptions

        with opened(study, url) as (database, name):
            spec = spec_to_measure(database, name, study)
            options = VerifyOptions(
                seeds=seeds,
                finalists=finalists,
                margin=spec.verify.margin if margin is None else margin,
                budget_seconds=spec.verify.budget,
                suggest=suggested_ranks if patterns else None,
                squeeze=spec.verify.squeeze if squeeze is None else squeeze,
            )
            database.retry.seconds = spec.storage_grace_seconds
            found = _verified(database, spec, options)
        assert found.result is not None
        if as_json:
            console.result_json(found.result)
        else:
            show_verification(found.result)


def verify_after_search(spec: SweepSpec, executors: Executors) -> Mapping[str, Any] | None:
    """What `verify:` asks for, done as soon as the search is complete; None, with a note, if it cannot be done.

    executors: the search's.
    """
    from automl.results.suggestion import suggested_ranks
    from automl.storage.sql import open_database
    from automl.verify.run import VerifyOptions, obstacle

    options = VerifyOptions(
        seeds=spec.verify.seeds,
        finalists=spec.verify.finalists,
        margin=spec.verify.margin,
        budget_seconds=spec.verify.budget,
        suggest=suggested_ranks,
        squeeze=spec.verify.squeeze,
    )
    with open_database(spec.storage_url, create=False, grace_seconds=spec.storage_grace_seconds) as database:
        if hindrance := obstacle(database, spec):
            console.note(f"not verified: {hindrance}")
            return None
        return _verified(database, spec, options, executors).result


def _verified(
    database: Database, spec: SweepSpec, options: VerifyOptions, executors: Executors | None = None
) -> Verification:
    from automl.cli.signals import end_without_lease, signals_as_interruption
    from automl.results.folders import cache_folder
    from automl.verify.run import verify_study

    with signals_as_interruption("anything was verified") as stop:
        return verify_study(
            database, spec, cache_folder(), options, stop=stop, on_lost=end_without_lease, executors=executors
        )


def show_verification(result: Mapping[str, Any]) -> None:
    """The headline, a line for each arm, the recommendation."""
    metric = result["metric"]["name"]
    console.result(result["headline"])
    is_kept = any(arm.get("forgetting") for arm in result["arms"])
    columns = ("configuration", f">{metric} (test)", ">± sd", ">seeds", ">parameters", ">learning rate")
    console.table(
        "",
        (*columns, *([">forgetting"] if is_kept else [])),
        (
            (
                arm["title"],
                f"{arm['mean']:.4f}",
                f"{arm['sd']:.4f}",
                len(arm["scores"]),
                f"{arm['trainable_params']:,}",
                f"{arm['learning_rate']:.3g}",
                *([_forgetting(arm.get("forgetting"))] if is_kept else []),
            )
            for arm in result["arms"]
        ),
    )
    if result.get("methods"):
        _show_methods(result["methods"], metric)
    optimism = result["selection_optimism"]
    if optimism is not None:
        from automl.results.summary import chosen_text

        interval = f" [{optimism['low']:+.4f}, {optimism['high']:+.4f}]" if "low" in optimism else ""
        console.result(
            f"trial {optimism['trial']}: {metric} {optimism['validation']:.4f} in the search,"
            f" {optimism['verified']:.4f} on the test rows{chosen_text(optimism)}; the search flattered it by"
            f" {optimism['optimism']:+.4f}{interval}"
        )
    console.result(f"recommended: {result['recommendation']['text']}")
    if result.get("deploy"):
        console.result(f"to deploy: {result['deploy']['text']}")


def _forgetting(found: Mapping[str, Any] | None) -> str:
    return "–" if found is None else f"{found['mean']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"


def _show_methods(methods: Mapping[str, Any], metric: str) -> None:
    """Which method, as a table; the headline says it in words."""
    from automl.results.summary import memory_text

    console.table(
        "",
        (
            "method",
            f">{metric} (test)",
            f">against {methods['reference']}",
            ">interval",
            "verdict",
            ">parameters",
            ">peak memory",
            ">seconds",
            ">learning rate",
        ),
        (
            (
                row["method"],
                f"{row['mean']:.4f}",
                "–" if row["difference"] is None else f"{row['difference']:+.4f}",
                "–" if row["low"] is None else f"[{row['low']:+.4f}, {row['high']:+.4f}]",
                row["verdict"] or "–",
                f"{row['trainable_params']:,}",
                memory_text(row["peak_bytes"]),
                "–" if row["seconds"] is None else f"{row['seconds']:.1f}",
                f"{row['learning_rate']:.3g}",
            )
            for row in methods["rows"]
        ),
    )
