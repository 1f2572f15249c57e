"""`automl schedule`: nightly sweeps. `automl scheduler` runs them."""

from __future__ import annotations

import shutil
import sys
import threading
from dataclasses import asdict
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import ZoneInfo

import typer

from automl.cli import console
from automl.cli.study_argument import DatabaseOption, JsonOption, database_url
from automl.errors import ConfigError, Problem

if TYPE_CHECKING:
    from automl.storage.jobs import Firing, Schedule

NameArgument = Annotated[str, typer.Argument(help="Name of a schedule.", metavar="NAME")]


class Manifest(StrEnum):
    """What `template` can print."""

    SYSTEMD = "systemd"
    CRONJOB = "cronjob"


class Overlapping(StrEnum):
    """What `--overlap` may be."""

    SKIP = "skip"
    QUEUE = "queue"


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    group = typer.Typer(no_args_is_help=True, help="Run a sweep every night: when, and what came of it.")
    app.add_typer(group, name="schedule")
    _register_changes(group)
    _register_questions(group)
    _register_running(group)


def _register_changes(group: typer.Typer) -> None:
    @group.command(
        epilog='Example: automl schedule add nightly.yaml --cron "0 2 * * *" --timezone Europe/Berlin --deadline 6h'
        " --notify mail:team@example.org"
    )
    def add(
        space: Annotated[Path, typer.Argument(help="The space file (YAML) of every night.", metavar="SPACE.YAML")],
        cron: Annotated[str, typer.Option("--cron", help="When: minute, hour, day of month, month, day of week.")],
        timezone: Annotated[
            str, typer.Option("--timezone", "--tz", help="IANA time zone whose clocks --cron goes by.")
        ] = "UTC",
        name: Annotated[
            str | None, typer.Option("--name", help="Default: the study of the space file.", metavar="NAME")
        ] = None,
        catch_up: Annotated[
            str,
            typer.Option("--catch-up", help="How late a slot may still be run after downtime: always, never or 12h."),
        ] = "12h",
        overlap: Annotated[
            Overlapping,
            typer.Option("--overlap", help="While the night before is not over: skip the slot, or queue it."),
        ] = Overlapping.SKIP,
        deadline: Annotated[
            str | None, typer.Option("--deadline", help="Stop a night after this time, for example 6h.")
        ] = None,
        warm_start: Annotated[
            bool,
            typer.Option("--warm-start/--no-warm-start", help="Try the best of the last successful night first."),
        ] = True,
        verify: Annotated[
            bool | None,
            typer.Option(
                "--verify/--no-verify",
                help="Verify each night's winner on test rows. Default: only if the file has verify.automatic: true.",
            ),
        ] = None,
        noise: Annotated[
            float | None,
            typer.Option("--noise", help="Least difference that counts. Default: by metric and number of rows."),
        ] = None,
        keep_nights: Annotated[int, typer.Option("--keep-nights", help="Nights whose studies stay in SQL.")] = 60,
        keep_artifacts: Annotated[int, typer.Option("--keep-artifacts", help="Nights whose files stay on disk.")] = 7,
        notify: Annotated[
            list[str] | None,
            typer.Option(
                "--notify",
                help="webhook:https://…, webhook:@FILE, webhook:$NAME, mail:ADDRESS or command:NAME; repeatable.",
                metavar="TARGET",
            ),
        ] = None,
        notify_always: Annotated[
            bool, typer.Option("--notify-always", help="Also of nights that went well; else of the others only.")
        ] = False,
        replace: Annotated[bool, typer.Option("--replace", help="Change a schedule that exists.")] = False,
        url: DatabaseOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Run the sweep of a space file at these times, each night as a fresh study."""
        from automl.results.folders import output_problem
        from automl.schedule.cron import check_cron
        from automl.schedule.options import ScheduleOptions, check_options
        from automl.space.derive import demands_verification
        from automl.space.load import load_space
        from automl.storage.claims import Claimant
        from automl.storage.schedules import Definition, ScheduleStore, find_schedule
        from automl.storage.sql import open_database

        spec = load_space(space)
        if spec.task.own_metrics:
            message = (
                "a schedule's space file lies in the database, from which no program or function is run; bring the"
                " metric in a package (docs/extending.md) and use its name"
            )
            raise ConfigError([Problem(str(space), 0, 0, "task.metric", message)])
        own = name or spec.study.replace(" ", "-")
        options = ScheduleOptions(
            warm_start=warm_start,
            verify=demands_verification(spec) if verify is None else verify,
            noise=noise,
            keep_nights=keep_nights,
            keep_artifacts=keep_artifacts,
            notify=tuple(notify or ()),
            notify_on="always" if notify_always else "alerts",
        )
        check_cron(cron, timezone)
        check_options(own, options)
        if problem := output_problem(space.absolute().parent, spec.run.output):
            raise ConfigError([Problem(str(space), 0, 0, "run.output", problem)])
        definition = Definition(
            cron=" ".join(cron.split()),
            timezone=timezone,
            space_text=spec.text,
            folder=str(space.absolute().parent),
            overlap=overlap.value,
            catch_up_seconds=_catch_up(catch_up),
            deadline_seconds=None if deadline is None else _seconds("--deadline", deadline),
            options=options.as_dict(),
        )
        with open_database(database_url(url) if url else spec.storage_url, create=True) as database:
            ScheduleStore(Claimant(database)).add(own, definition, replace=replace)
            stored = find_schedule(database, own)
        _show_next(stored, 1, as_json)

    @group.command(epilog="Example: automl schedule pause nightly")
    def pause(name: NameArgument, url: DatabaseOption = None, as_json: JsonOption = False) -> None:
        """Let nothing be due until `resume`; a night that runs goes on."""
        _change(name, url, as_json, "pause", "is paused")

    @group.command(epilog="Example: automl schedule resume nightly")
    def resume(name: NameArgument, url: DatabaseOption = None, as_json: JsonOption = False) -> None:
        """Go on after `pause`; what was due in between is not made up for."""
        _change(name, url, as_json, "resume", "goes on")

    @group.command(epilog="Example: automl schedule remove nightly")
    def remove(name: NameArgument, url: DatabaseOption = None, as_json: JsonOption = False) -> None:
        """Forget a schedule; its nights stay in the history, their studies in the database."""
        _change(name, url, as_json, "remove", "is removed")

    @group.command(epilog="Example: automl schedule accept nightly")
    def accept(name: NameArgument, url: DatabaseOption = None, as_json: JsonOption = False) -> None:
        """Take the latest regression as the new normal: later nights are compared with it."""
        from automl.storage.claims import Claimant
        from automl.storage.schedules import ScheduleStore
        from automl.storage.sql import open_database

        with open_database(database_url(url), create=False) as database:
            night = ScheduleStore(Claimant(database)).accept(name)
        if as_json:
            console.result_json(_as_json(night))
        else:
            console.result(f"{night.study}: {night.message}")


def _register_questions(group: typer.Typer) -> None:
    @group.command("list", epilog="Example: automl schedule list --json")
    def list_all(url: DatabaseOption = None, as_json: JsonOption = False) -> None:
        """Show all schedules: when they are due next, and how their last night went."""
        from automl.storage.schedules import list_firings, list_schedules
        from automl.storage.sql import open_database

        with open_database(database_url(url), create=False, read_only=True) as database:
            schedules = list_schedules(database)
            last = {each.name: next(iter(list_firings(database, each.name, limit=1)), None) for each in schedules}
        if as_json:
            documents = [{**(_as_json(each) or {}), "last_night": _as_json(last[each.name])} for each in schedules]
            console.result_json(documents)
            return
        rows = ((each.name, _times(each), _next_text(each), _outcome(last[each.name])) for each in schedules)
        console.table("", ("schedule", "when", "next", "last night"), rows)

    @group.command("next", epilog="Example: automl schedule next nightly --count 5")
    def upcoming(
        name: NameArgument,
        count: Annotated[int, typer.Option("--count", "-n", min=1, max=1000, help="How many.")] = 1,
        url: DatabaseOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Show when a schedule is due next, through every change of its clocks."""
        from automl.storage.schedules import find_schedule
        from automl.storage.sql import open_database

        with open_database(database_url(url), create=False, read_only=True) as database:
            schedule = find_schedule(database, name)
        _show_next(schedule, count, as_json)

    @group.command(epilog="Example: automl schedule history nightly --limit 14")
    def history(
        name: NameArgument,
        limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Show at most this many.")] = 30,
        url: DatabaseOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Show the nights of a schedule, the latest first: what ran, what did not, and what came of it."""
        from automl.schedule.cron import zone_of
        from automl.storage.schedules import list_firings, list_schedules
        from automl.storage.sql import open_database

        with open_database(database_url(url), create=False, read_only=True) as database:
            nights = list_firings(database, name, limit=limit)
            zones = {each.name: each.timezone for each in list_schedules(database)}
        if not nights and name not in zones:
            raise ConfigError([Problem("", 0, 0, name, f"no such schedule; there is: {', '.join(zones) or 'none'}")])
        if as_json:
            console.result_json([_as_json(night) for night in nights])
            return
        zone = zone_of(zones.get(name, "UTC"))
        rows = (
            (f"{night.slot.astimezone(zone):%Y-%m-%d %H:%M}", night.state, _value(night), _took(night), night.message)
            for night in nights
        )
        console.table("", ("night", "state", ">best", ">took", "what came of it"), rows)

    @group.command(epilog="Example: automl schedule template systemd nightly > automl-nightly.txt")
    def template(
        kind: Annotated[Manifest, typer.Argument(help="systemd or cronjob (Kubernetes).", metavar="KIND")],
        name: NameArgument,
        url: DatabaseOption = None,
    ) -> None:
        """Print a systemd timer or a Kubernetes CronJob that runs the schedule's due nights."""
        from automl.schedule.manifests import manifest
        from automl.storage.schedules import find_schedule
        from automl.storage.sql import open_database

        with open_database(database_url(url), create=False, read_only=True) as database:
            schedule = find_schedule(database, name)
        program = shutil.which("automl") or str(Path(sys.executable).with_name("automl"))
        console.result(manifest(kind.value, schedule, program))


def _register_running(group: typer.Typer) -> None:
    @group.command(epilog="Example: automl schedule run nightly --once")
    def run(
        name: NameArgument,
        once: Annotated[
            bool,
            typer.Option(
                "--once", help="Run the slot that is due, if it has not run yet: for cron, systemd, Kubernetes."
            ),
        ] = False,
        url: DatabaseOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Run a night here and now, and exit with its code; 6 is a regression against the last successful night."""
        from automl.cli.signals import signals_as_interruption
        from automl.schedule.job import Place
        from automl.schedule.run_once import run_due, run_now
        from automl.storage.claims import Claimant
        from automl.storage.sql import open_database
        from automl.storage.url import absolute_url

        given = database_url(url)
        stop = threading.Event()
        with open_database(given, create=False) as database, signals_as_interruption("any night began") as request:
            request.then(lambda _reason: stop.set())
            place = Place(url=absolute_url(given))
            done = (run_due if once else run_now)(Claimant(database), name, place, stop)
        if as_json:
            console.result_json(_as_json(done.night))
        else:
            console.result(f"{name}: {done.text}")
        if done.exit_code:
            raise typer.Exit(done.exit_code)


def _change(name: str, url: str | None, as_json: bool, method: str, words: str) -> None:
    from automl.storage.claims import Claimant
    from automl.storage.schedules import ScheduleStore
    from automl.storage.sql import open_database

    with open_database(database_url(url), create=False) as database:
        getattr(ScheduleStore(Claimant(database)), method)(name)
    if as_json:
        console.result_json({"schedule": name, "done": method})
    else:
        console.result(f"{name} {words}")


def _show_next(schedule: Schedule, count: int, as_json: bool) -> None:
    from automl.schedule.due import refuse
    from automl.schedule.options import schedule_problem

    if problem := schedule_problem(schedule):
        refuse(schedule, problem)
    slots = [] if schedule.is_paused else _next(schedule, count)
    if as_json:
        console.result_json({**(_as_json(schedule) or {}), "next": [slot.isoformat() for slot in slots]})
    elif schedule.is_paused:
        console.result(f"{schedule.name} is paused; go on with: automl schedule resume {schedule.name}")
    else:
        zone = ZoneInfo(schedule.timezone)
        console.results(f"{schedule.name}: {slot.astimezone(zone):%a %Y-%m-%d %H:%M %Z (UTC%z)}" for slot in slots)


def _next(schedule: Schedule, count: int) -> list[datetime]:
    from datetime import UTC

    from automl.schedule.cron import next_slots

    return next_slots(schedule.cron, schedule.timezone, max(schedule.fired_until, datetime.now(UTC)), count)


def _next_text(schedule: Schedule) -> str:
    from automl.schedule.options import schedule_problem

    if problem := schedule_problem(schedule):
        return f"cannot be read: {problem}"
    if schedule.is_paused:
        return "paused"
    slots = _next(schedule, 1)
    return f"{slots[0].astimezone(ZoneInfo(schedule.timezone)):%a %Y-%m-%d %H:%M}" if slots else "never"


def _times(schedule: Schedule) -> str:
    return f"{schedule.cron}  {schedule.timezone}"


def _outcome(night: Firing | None) -> str:
    return "none yet" if night is None else f"{night.state}: {night.message}" if night.message else str(night.state)


def _value(night: Firing) -> str:
    return "" if night.value is None else f"{night.value:.4f}"


def _took(night: Firing) -> str:
    if night.started_at is None or night.ended_at is None:
        return ""
    minutes = (night.ended_at - night.started_at).total_seconds() / 60
    return f"{minutes:.0f} min" if minutes >= 1 else f"{60 * minutes:.0f} s"


def _as_json(row: Schedule | Firing | None) -> dict[str, Any] | None:
    if row is None:
        return None
    return {name: item.isoformat() if isinstance(item, datetime) else item for name, item in asdict(row).items()}


def _catch_up(text: str) -> float | None:
    if text == "always":
        return None
    return 0.0 if text == "never" else _seconds("--catch-up", text)


def _seconds(option: str, text: str) -> float:
    from automl.space.schema_search import parse_seconds

    try:
        return parse_seconds(float(text) if text.isdecimal() else text)
    except ValueError as error:
        raise ConfigError([Problem("", 0, 0, option, f"{text!r} {error}")]) from None
