"""The command line: `automl COMMAND`. Builds the application and turns errors into one line and an exit code.

Each command lives in a module of its own and imports what it needs when it runs, so that `--help` and `validate` load
neither torch nor ray, peft or transformers.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import typer

import automl
from automl.cli import (
    best,
    compose,
    console,
    dashboard,
    db,
    doctor,
    export,
    gc,
    init,
    inspect,
    plan,
    presets,
    report,
    schedule,
    scheduler,
    schema,
    search,
    squeeze,
    status,
    suggest,
    trials,
    validate,
    verify,
)
from automl.cli.heartbeat import heartbeat
from automl.errors import AutomlError

_EXIT_CODES = """Exit codes: 0 done · 1 finished without a usable result · 2 usage or configuration · 3 storage ·
4 interrupted, the same command continues · 5 resources (disk, memory, device) · 6 nightly regression."""

app = typer.Typer(
    name="automl",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # what draws boxes takes as long to load as all the rest
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog=_EXIT_CODES,
)

LOG_FORMAT = "AUTOML_LOG_FORMAT"

_INTERNAL_ERROR = 1
_INTERRUPTED = 4


class LogFormat(StrEnum):
    """What `--log-format` may be."""

    TEXT = "text"
    JSON = "json"


def _show_version(wanted: bool) -> None:
    if wanted:
        console.result(f"automl {automl.__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug messages.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show results, warnings and errors only.")] = False,
    log_format: Annotated[
        LogFormat,
        typer.Option("--log-format", envvar=LOG_FORMAT, help="Of notes and warnings: text, or JSON lines."),
    ] = LogFormat.TEXT,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Search LoRA hyperparameters: which rank, alpha, dropout, learning rate and target modules suit your data.

    Start with: automl init MODEL DATA > space.yaml, then: automl search space.yaml
    """
    context.obj = debug
    console.set_quiet(quiet)
    os.environ[LOG_FORMAT] = log_format.value  # processes that this one starts log alike
    console.set_up_logging(debug=debug, json_lines=log_format is LogFormat.JSON)


_IN_ORDER = (
    *(init, presets, validate, plan, search, status, trials, best, verify, suggest, squeeze, compose, report, export),
    *(inspect, schedule, scheduler, dashboard, db, doctor, gc, schema),
)
for module in _IN_ORDER:
    module.register(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line (default: the process's own) and exit with its code; see `automl --help` for the codes."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    code = _run(given)
    console.flush()
    raise SystemExit(code)


def _run(arguments: Sequence[str]) -> int:
    debug = "--debug" in arguments
    try:
        with heartbeat(arguments):
            return int(app(list(arguments), standalone_mode=True) or 0)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except AutomlError as problem:
        if debug:
            console.err.print_exception()
        console.error(console.redact(str(problem)))
        return problem.exit_code
    except KeyboardInterrupt:
        console.error("interrupted; the same command continues")
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (`automl trials | head`) has gone; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as problem:  # noqa: BLE001 - the edge of the program: a person gets one line, not a traceback
        if debug:
            console.err.print_exception()
        console.error(
            console.redact(f"internal error: {type(problem).__name__}: {problem} (add --debug for the traceback)")
        )
        return _INTERNAL_ERROR


if __name__ == "__main__":
    main()
