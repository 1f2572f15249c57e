"""The JSON API: what it answers, what may be submitted, and that a submitted sweep is run once, by a scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from automl.schedule.daemon import Scheduler, Settings
from automl.schedule.job import Place
from automl.storage.claims import Claimant
from automl.storage.sql import open_database
from automl.storage.submissions import find_submission, submit
from tests.dashboards.serving import Site, site
from tests.databases import fresh_sqlite
from tests.schedule.scheduling import tick_until

SUBMIT = "/api/v1/submissions"
SPACE = """\
version: 1
study: recorded
task: {type: table, file: curves.npz, log: [lr]}
search: {sampler: random, trials: TRIALS, steps: 8, evaluate_every: 1, seed: 3}
run: {slots: 2}
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return fresh_sqlite(tmp_path)


@pytest.fixture
def fresh(url: str) -> Iterator[Site]:
    with site(url) as running:
        yield running


def write_table(folder: Path) -> None:
    """Curves of 40 learning rates, beside which the search needs no model."""
    rates = np.logspace(-5, -1, 40)
    curves = 0.1 * np.abs(np.log10(rates) + 3)[:, None] + np.exp(-np.arange(8) / 2)
    np.savez(folder / "curves.npz", names=np.array(["lr"]), configurations=rates[:, None], curves=curves)


def test_studies_and_trials_are_as_in_the_database(served: Site) -> None:
    studies = {each["study"]: each for each in served.ask("/api/v1/studies").json}
    topics = studies["topics"]
    assert topics["trials"]["RUNNING"] == 2
    assert topics["trials"]["FAIL"] == 2
    assert topics["trials"]["COMPLETE"] + topics["trials"]["PRUNED"] == 24
    assert (topics["metric"], topics["direction"], topics["verified"]) == ("accuracy", "maximize", "yes")
    detail = served.ask("/api/v1/studies/topics").json
    assert detail["best"] == detail["best_trials"][0]["value"] == detail["improvements"][-1]["value"]
    assert [trial["state"] for trial in detail["running_trials"]] == ["RUNNING", "RUNNING"]
    assert set(detail["best_trials"][0]["params"]) == {"rank", "learning_rate", "target", "dropout"}
    page = served.ask("/api/v1/studies/topics/trials?state=FAIL&limit=1&offset=1").json
    assert page["total"] == 2
    assert [trial["number"] for trial in page["trials"]] == [24]
    best = [
        trial["value"] for trial in served.ask("/api/v1/studies/topics/trials?order=best&state=COMPLETE").json["trials"]
    ]
    assert best == sorted(best, reverse=True)


def test_schedules_and_the_doctor_answer(served: Site) -> None:
    (schedule,) = served.ask("/api/v1/schedules").json
    assert (schedule["name"], schedule["last"]["state"]) == ("nightly", "REGRESSION")
    nights = served.ask("/api/v1/schedules/nightly/nights?limit=2").json
    assert [night["value"] for night in nights] == [0.70, 0.85]
    found = served.ask("/api/v1/doctor").json["findings"]
    assert {each["id"] for each in found} <= {"I20"}  # trials without attempts, which these studies have


def test_everything_is_described(served: Site) -> None:
    described = served.ask("/api/v1/openapi.json").json
    assert set(described["paths"]) == {
        "/api/v1/studies",
        "/api/v1/studies/{study}",
        "/api/v1/studies/{study}/trials",
        "/api/v1/schedules",
        "/api/v1/schedules/{name}/nights",
        "/api/v1/doctor",
        "/api/v1/submissions",
        "/api/v1/submissions/{identity}",
        "/api/v1/submissions/{identity}/cancel",
    }
    documented = (Path(__file__).parents[2] / "docs" / "dashboards.md").read_text(encoding="utf-8")
    assert [path for path in described["paths"] if path not in documented] == []


def test_a_submitted_sweep_is_run_once_by_a_scheduler(fresh: Site, url: str, tmp_path: Path) -> None:
    write_table(tmp_path)
    answer = fresh.post(SUBMIT, {"space": SPACE.replace("TRIALS", "6"), "submitted_by": "a program"})
    assert (answer.status, answer.json["state"]) == (201, "QUEUED")
    identity = answer.json["id"]
    assert fresh.post(SUBMIT, {"space": SPACE.replace("TRIALS", "6")}).status == 409
    with open_database(url, create=False) as database:
        scheduler = Scheduler(Claimant(database), Place(url=url, folder=tmp_path), Settings(poll_seconds=0.05))
        try:
            tick_until(
                scheduler.tick,
                lambda: find_submission(database, identity).state not in ("QUEUED", "RUNNING"),
                most=20_000,
            )
        finally:
            scheduler.leave()
    done = fresh.ask(f"{SUBMIT}/{identity}").json
    assert (done["state"], done["attempts"], done["exit_code"]) == ("DONE", 1, 0), done
    detail = fresh.ask("/api/v1/studies/recorded").json
    assert (detail["state"], detail["trials"]["COMPLETE"] + detail["trials"]["PRUNED"]) == ("finished", 6)
    assert detail["runs"] == 1


def test_a_queued_sweep_can_be_taken_back(fresh: Site) -> None:
    identity = fresh.post(SUBMIT, {"space": SPACE.replace("TRIALS", "6")}).json["id"]
    assert fresh.ask(f"{SUBMIT}/{identity}/cancel").status == 405
    assert fresh.post(f"{SUBMIT}/{identity}/cancel", {}).json["state"] == "CANCELLED"
    assert fresh.post(SUBMIT, {"space": SPACE.replace("TRIALS", "6")}).status == 201
    assert fresh.post(f"{SUBMIT}/{'f' * 32}/cancel", {}).status == 404


def test_a_full_queue_takes_no_more(fresh: Site, url: str) -> None:
    with open_database(url, create=False) as database:
        for number in range(100):
            submit(database, f"queued-{number}", "study: x", "a test")
    answer = fresh.post(SUBMIT, {"space": SPACE.replace("TRIALS", "6")})
    assert (answer.status, "100 sweeps are queued already" in answer.json["error"]) == (429, True)


_REFUSED = {
    "absolute": SPACE.replace("curves.npz", "/etc/passwd"),
    "home": SPACE.replace("curves.npz", "~/curves.npz"),
    "upwards": SPACE.replace("curves.npz", "a/../../curves.npz"),
    "output": SPACE.replace("slots: 2", "output: /tmp/elsewhere"),
    "output upwards": SPACE.replace("slots: 2", "output: ../elsewhere"),
    "output home": SPACE.replace("slots: 2", "output: ~root/x"),
    "cluster": SPACE.replace("slots: 2", "address: 'ray://10.0.0.1:10001'"),
    "database": SPACE + "storage: {url: 'sqlite:////tmp/other.db'}\n",
    "unknown key": SPACE + "run_this: rm\n",
    "tag": SPACE + "x: !!python/object/apply:os.system [id]\n",
    "alias": "a: &a [x]\nb: *a\n" + SPACE,
    "deep": "a: " + "[" * 200 + "]" * 200,
    "no YAML": "\x01\x02",
    "study name": SPACE.replace("recorded", "../../etc"),
}


@pytest.mark.parametrize("name", _REFUSED)
def test_a_space_that_reaches_out_is_refused(served: Site, name: str) -> None:
    answer = served.post(SUBMIT, {"space": _REFUSED[name].replace("TRIALS", "6")})
    assert answer.status == 422, answer.text
    assert "Traceback" not in answer.text
    assert served.ask(SUBMIT).json == []


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"space": 1}', b'{"space": ""}', b'{"space": "x", "more": 1}', b"\xff", b'{"space": NaN}'],
    ids=repr,
)
def test_a_body_that_is_not_as_described_is_refused(served: Site, body: bytes) -> None:
    answer = served.ask(
        SUBMIT,
        "POST",
        body,
        Content_Type="application/json",
        Authorization="Bearer a-token-of-more-than-thirty-two-characters",
    )
    assert answer.status in (400, 422)
    assert set(answer.json) == {"error"}
