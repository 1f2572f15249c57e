"""`automl validate`: check a space file without touching model or data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from automl.cli import console

if TYPE_CHECKING:
    from automl.space.spec import SweepSpec


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: automl validate space.yaml")
    def validate(
        space: Annotated[Path, typer.Argument(help="The space file (YAML).", metavar="SPACE.YAML")],
        as_json: Annotated[bool, typer.Option("--json", help="Print the problems as JSON.")] = False,
    ) -> None:
        """Check a space file and report everything that is wrong with it at once, then what is rarely meant."""
        from automl.errors import ConfigError
        from automl.space.load import load_spaces

        try:
            specs = load_spaces(space)
            advice = list(dict.fromkeys(text for spec in specs for text in _advice(spec)))
        except ConfigError as problems:
            if not as_json:
                raise
            console.result_json({"valid": False, "problems": [_as_dict(problem) for problem in problems.problems]})
            raise typer.Exit(ConfigError.exit_code) from None
        if as_json:
            studies = [{"study": spec.study, "sha256": spec.sha256} for spec in specs]
            said = studies[0] if len(studies) == 1 else {"studies": studies}
            console.result_json({"valid": True, **said, "problems": [], "advice": advice})
            return
        console.results(f"{space}: valid; {_in_words(spec)}" for spec in specs)
        console.results(f"advice: {text}" for text in advice)


def _in_words(spec: SweepSpec) -> str:
    names = ", ".join([*(parameter.name for parameter in spec.space.parameters), *spec.space.auto])
    budget = f"{spec.search.trials:,} trials of up to {spec.search.length or f'{spec.search.steps:,} steps'}"
    held = f", the backbone held in {spec.model.quantization}" if spec.model.quantization else ""
    return f"study {spec.study!r} searches {names or 'nothing'} in {budget}{held}"


def _advice(spec: SweepSpec) -> list[str]:
    """What can be said without weights and data. Raises ConfigError for what a search would refuse.

    Of a model that is on this machine its JSON files are read.

    A server is only asked if the file starts from another study, for it may not be there where a file is checked.
    Without a database at all what reads it is not even imported.
    """
    from automl.space.advice import search_advice
    from automl.space.defaults import resolve

    found = []
    if spec.search.warm_start is not None or _is_file(spec.storage_url):
        from automl.setup.database_check import database_remarks

        found = database_remarks(spec)
    if spec.task.type == "table":  # whose columns are the space
        return found
    from automl.setup.fitness import model_remarks

    space = resolve(spec.space, model_parameters=0, steps=spec.search.steps)
    return [*found, *model_remarks(spec), *search_advice(space, spec.search)]


def _is_file(url: str) -> bool:
    scheme, _, path = url.partition(":///")
    return scheme.startswith("sqlite") and Path(path.partition("?")[0]).is_file()


def _as_dict(problem: object) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(problem)  # type: ignore[call-overload, no-any-return]  # always a Problem
