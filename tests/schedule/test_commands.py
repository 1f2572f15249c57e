"""`automl schedule`, its templates, and the metrics endpoint, as a user and a monitoring system see them."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from automl.cli.main import main
from automl.schedule.manifests import calendar_lines, manifest
from automl.schedule.metrics import ServiceCollector, serving
from automl.storage.claims import Claimant
from automl.storage.jobs import FiringState
from automl.storage.lease import StudyLease
from automl.storage.schedules import find_schedule
from automl.storage.sql import Database, open_database
from automl.storage.submissions import submit
from tests.schedule.scheduling import SPACE, HandClock, add_schedule


@pytest.fixture
def automl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Run a command line in a folder of its own; its exit code, and what it has said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AUTOML_LOG_FORMAT", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        said = capsys.readouterr()
        code = ended.value.code
        return int(code or 0) if not isinstance(code, str) else 1, said.out, said.err

    yield run
    monkeypatch.setenv("AUTOML_LOG_FORMAT", "text")


@pytest.fixture
def space(tmp_path: Path) -> str:
    (tmp_path / "nightly.yaml").write_text(SPACE, encoding="utf-8")
    return "nightly.yaml"


def test_the_life_of_a_schedule(automl, space: str) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = automl("schedule", "add", space, "--cron", "0 2 * * *", "--timezone", "Europe/Berlin")
    assert code == 0
    assert re.fullmatch(r"nightly: \w{3} \d{4}-\d\d-\d\d 02:00 CES?T \(UTC\+0[12]00\)\n", out)
    code, out, _ = automl("schedule", "next", "nightly", "--count", "400", "--json")
    assert len(json.loads(out)["next"]) == 400
    code, _, err = automl("schedule", "add", space, "--cron", "0 3 * * *")
    assert (code, "change it with --replace" in err) == (3, True)
    options = [
        "--replace",
        "--overlap",
        "queue",
        "--catch-up",
        "always",
        "--deadline",
        "6h",
        "--notify",
        "mail:a@b.org",
    ]
    assert automl("schedule", "add", space, "--cron", "0 3 * * 1-5", *options)[0] == 0
    (found,) = json.loads(automl("schedule", "list", "--json")[1])
    assert (found["overlap"], found["catch_up_seconds"], found["deadline_seconds"]) == ("queue", None, 21_600.0)
    assert found["options"]["notify"] == ["mail:a@b.org"]
    assert automl("schedule", "pause", "nightly")[1] == "nightly is paused\n"
    assert "paused" in automl("schedule", "list")[1]
    assert automl("schedule", "resume", "nightly")[0] == 0
    assert automl("schedule", "run", "nightly", "--once")[:2] == (0, "nightly: nothing is due\n")
    assert json.loads(automl("schedule", "history", "nightly", "--json")[1]) == []
    assert automl("schedule", "remove", "nightly")[0] == 0
    assert automl("schedule", "history", "nightly")[0] == 2


# A search verifies by default, a night does not: only what somebody has written counts.
def test_nights_are_verified_if_command_or_file_says_so(automl, space: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "verified.yaml").write_text(SPACE + "verify: {automatic: true}\n", encoding="utf-8")
    cases = ((space, ()), (space, ("--verify",)), ("verified.yaml", ()), ("verified.yaml", ("--no-verify",)))
    for number, (file, said) in enumerate(cases):
        assert automl("schedule", "add", file, "--cron", "0 2 * * *", "--name", f"night-{number}", *said)[0] == 0
    found = json.loads(automl("schedule", "list", "--json")[1])
    assert [each["options"]["verify"] for each in found] == [False, True, True, False]


# A relative output begins beside the space file; where nothing can be written there, every night would fail.
def test_an_output_that_cannot_be_written_is_refused_at_once(automl, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "taken").write_text("a file", encoding="utf-8")
    path = tmp_path / "nightly.yaml"
    path.write_text(SPACE.replace("inline}", "inline, output: taken/results}"), encoding="utf-8")
    code, _, err = automl("schedule", "add", str(path), "--cron", "0 2 * * *")
    assert code == 2
    assert "run.output" in err
    assert f"{tmp_path}/taken/results cannot be made, {tmp_path}/taken is not writable" in err
    assert "Write an absolute one" in err
    path.write_text(SPACE.replace("inline}", f"inline, output: {tmp_path}/results}}"), encoding="utf-8")
    assert automl("schedule", "add", str(path), "--cron", "0 2 * * *")[0] == 0


def test_all_mistakes_are_named(automl, space: str) -> None:  # type: ignore[no-untyped-def]
    code, _, err = automl("schedule", "add", space, "--cron", "0 2 * *", "--timezone", "Mars")
    assert code == 2
    assert err.count("\n") == 2
    code, _, err = automl(
        "schedule", "add", space, "--cron", "0 2 * * *", "--name", "../x", "--notify", "x", "--noise", "-1"
    )
    assert code == 2
    assert [line.split(":")[0] for line in err.splitlines()] == ["--name", "--noise", "--notify"]
    assert automl("schedule", "add", space, "--cron", "0 2 * * *", "--deadline", "soon")[0] == 2
    code, _, err = automl("schedule", "next", "nightlie")
    assert code == 3


def test_logs_are_json_lines_on_request(automl, space: str) -> None:  # type: ignore[no-untyped-def]
    assert automl("schedule", "add", space, "--cron", "0 2 * * *")[0] == 0
    code, _, err = automl("--log-format", "json", "schedule", "next", "nightlie")
    (line,) = [json.loads(line) for line in err.splitlines()]
    assert code == 3
    assert (line["level"], line["logger"]) == ("ERROR", "automl.cli")
    assert "did you mean 'nightly'?" in line["message"]
    assert set(line) == {"time", "level", "logger", "message", "pid"}


def test_gc_says_what_it_frees(automl) -> None:  # type: ignore[no-untyped-def]
    assert automl("db", "init")[0] == 0
    assert automl("gc", "--dry-run")[1] == "0.0 MiB would be freed, 0 things\n"
    assert json.loads(automl("gc", "--json")[1])["removed"] == []


# A cron job, a systemd timer or a Kubernetes job: exit code 6 is what they see of a regression.
def test_a_night_run_by_hand_exits_with_its_code(database: Database, clock: HandClock, tmp_path: Path) -> None:
    import threading

    from automl.errors import StudyBusyError
    from automl.schedule.job import Place
    from automl.schedule.run_once import run_due, run_now
    from tests.schedule.scheduling import ONE_TRIAL, plan_values, program

    url = f"sqlite:///{database.address.database}"
    claimant, stop = Claimant(database, clock=clock), threading.Event()
    store = add_schedule(claimant, tmp_path)
    place = Place(url=url, folder=tmp_path, program=program(tmp_path, ONE_TRIAL))
    plan_values(tmp_path, 0.9, 0.6)
    clock.forward(days=1)
    assert run_due(claimant, "nightly", place, stop).exit_code == 0
    assert run_due(claimant, "nightly", place, stop).text == "nothing is due"
    clock.forward(seconds=1)
    done = run_now(claimant, "nightly", place, stop)
    assert done.exit_code == 6
    assert done.night is not None
    assert done.night.study == "nightly-20260804-140001"
    clock.forward(seconds=1)
    assert store.take("nightly", store.fire_by_hand("nightly").slot) is not None
    with pytest.raises(StudyBusyError, match="is RUNNING"):
        run_now(claimant, "nightly", place, stop)


class TestTemplates:
    @pytest.mark.parametrize(
        ("cron", "expected"),
        [
            ("0 2 * * *", ["*-*-* 2:0:00 Europe/Berlin"]),
            ("*/15 * * * *", ["*-*-* *:0/15:00 Europe/Berlin"]),
            ("30 1 1,15 JAN-MAR *", ["*-1..3-1,15 1:30:00 Europe/Berlin"]),
            ("0 2 * * 1-5", ["Mon,Tue,Wed,Thu,Fri *-*-* 2:0:00 Europe/Berlin"]),
            ("0 2 * * SUN", ["Sun *-*-* 2:0:00 Europe/Berlin"]),
            ("0 2 13 * FRI", ["*-*-13 2:0:00 Europe/Berlin", "Fri *-*-* 2:0:00 Europe/Berlin"]),
        ],
    )
    def test_calendar_of_systemd(
        self, cron: str, expected: list[str], database: Database, clock: HandClock, tmp_path: Path
    ) -> None:
        add_schedule(Claimant(database, clock=clock), tmp_path, cron=cron)
        found = calendar_lines(find_schedule(database, "nightly"))
        assert found == expected
        if shutil.which("systemd-analyze"):
            subprocess.run(["systemd-analyze", "calendar", *found], check=True, capture_output=True)

    def test_systemd(self, database: Database, clock: HandClock, tmp_path: Path) -> None:
        add_schedule(Claimant(database, clock=clock), tmp_path)
        text = manifest("systemd", find_schedule(database, "nightly"), "/opt/automl/bin/automl")
        service, timer = text.split("# ---- automl-nightly.timer ----")
        assert "ExecStart=/opt/automl/bin/automl --log-format json schedule run nightly --once" in service
        assert "OnCalendar=*-*-* 2:0:00 Europe/Berlin\n" in timer
        assert not re.search(r"[{}]", text)
        assert "AUTOML_DB_URL" not in service.split("[Unit]")[1]  # the address comes from a file

    def test_cronjob(self, database: Database, clock: HandClock, tmp_path: Path) -> None:
        add_schedule(Claimant(database, clock=clock), tmp_path, "My.Nightly_1", overlap="queue", catch_up_seconds=600.0)
        job = yaml.safe_load(manifest("cronjob", find_schedule(database, "My.Nightly_1"), "automl"))
        assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?", job["metadata"]["name"])
        spec = job["spec"]
        assert (spec["schedule"], spec["timeZone"]) == ("0 2 * * *", "Europe/Berlin")
        assert (spec["concurrencyPolicy"], spec["startingDeadlineSeconds"]) == ("Allow", 600)
        pod = spec["jobTemplate"]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert container["args"][2:] == ["schedule", "run", "My.Nightly_1", "--once"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
        assert job["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [1, 2, 6]


class TestMetrics:
    def test_the_service_in_numbers(self, database: Database, clock: HandClock, tmp_path: Path) -> None:
        claimant = Claimant(database, clock=clock)
        store = add_schedule(claimant, tmp_path)
        night = store.take("nightly", store.fire_by_hand("nightly").slot)
        assert night is not None
        store.end(night, FiringState.SUCCEEDED, "", value=0.9)
        submit(database, "asked", "version: 1", "somebody")
        with StudyLease(database, "driven") as lease:
            lease.take("version: 1", "0" * 64, {})
            found = {
                (sample.name, *sample.labels.values()): sample.value
                for family in ServiceCollector(database).collect()
                for sample in family.samples
            }
        assert found["automl_up",] == 1
        assert found["automl_queue_length", "submissions"] == 1
        assert found["automl_nights", "nightly", "SUCCEEDED"] == 1
        assert found["automl_last_successful_night_timestamp_seconds", "nightly"] == clock.time.timestamp()
        assert 0 < found["automl_lease_seconds", "driven"] <= 30
        assert ("automl_next_night_timestamp_seconds", "nightly") in found

    def test_the_endpoint_answers_local_names_only(self, database: Database) -> None:
        with serving(database, 0) as port:

            def ask(method: str, path: str, host: str) -> tuple[int, str]:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                connection.putrequest(method, path, skip_host=True)
                connection.putheader("Host", host)
                connection.endheaders()
                answer = connection.getresponse()
                text = answer.read().decode()
                connection.close()
                return answer.status, text

            status, text = ask("GET", "/metrics", f"127.0.0.1:{port}")
            assert status == 200
            assert "automl_up 1.0" in text
            assert ask("GET", "/metrics", f"localhost:{port}")[0] == 200
            assert ask("GET", "/metrics", "evil.example")[0] == 421
            assert ask("GET", "/metrics", f"127.0.0.1.evil.example:{port}")[0] == 421
            assert ask("POST", "/metrics", "localhost")[0] == 405
            assert ask("GET", "/", "localhost")[0] == 404

    def test_a_database_that_is_away_is_a_number_too(self, tmp_path: Path) -> None:
        with open_database(f"sqlite:///{tmp_path}/a.db", create=True) as database:
            (tmp_path / "a.db").rename(tmp_path / "b.db")
            database._engine.dispose()
            (family,) = ServiceCollector(database).collect()
        assert family.samples[0].value == 0
