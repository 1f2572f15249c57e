"""When a search ends its winner is squeezed: once, briefly, and never to the harm of what the search has found."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from automl.errors import InterruptedSearch
from automl.execution.stop import StopRequest
from automl.results.artifacts import STORED
from automl.results.squeezed import squeeze_of, squeezed_adapter
from automl.results.summary import Summary
from automl.space.load import load_space
from automl.squeeze.winner import LEAST_ROWS, affordable_rows
from automl.storage.artifacts import digest_folder
from automl.storage.sql import open_database
from automl.storage.squeezes import SqueezeRow
from automl.sweep.run import Observer, run_sweep
from automl.training.export import verify_manifest
from tests.sweep.tiny_world import make_world

Search = Callable[..., Summary]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished search of three trials whose winner was not squeezed."""
    folder = tmp_path_factory.mktemp("finished")
    space = make_world(folder, trials=3)
    space.write_text(space.read_text().replace("low: 1, high: 8", "low: 6, high: 8"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_sweep(load_space(space), folder / "cache")
    return folder


@pytest.fixture
def search(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Search:
    """Goes on with the finished search, of which nothing has been squeezed."""
    monkeypatch.chdir(finished)
    forget("DELETE FROM automl_squeezes", "DELETE FROM automl_squeeze_cuts", "DELETE FROM automl_squeezed_modules")
    text = (finished / "space.yaml").read_text()

    def run(
        squeeze: str = "auto",
        *,
        trials: int = 3,
        storage: str = "",
        stop: StopRequest | None = None,
        observer: Observer | None = None,
    ) -> Summary:
        stored = f"storage: {{artifacts: '{storage}'}}\n" if storage else ""
        now = stored + text.replace("squeeze: false", f"squeeze: {squeeze}").replace("trials: 3", f"trials: {trials}")
        (finished / "now.yaml").write_text(now)
        return run_sweep(load_space(finished / "now.yaml"), finished / "cache", stop=stop, observer=observer)

    return run


def forget(*statements: str) -> None:
    with open_database("sqlite:///automl.db", create=False) as database, database.writing("forget") as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def known(summary: Summary) -> SqueezeRow | None:
    assert summary.best is not None
    with open_database("sqlite:///automl.db", create=False) as database:
        return squeeze_of(database, "tiny", summary.best.number)


def test_it_is_recorded_and_its_adapter_written(search: Search) -> None:
    summary = search()
    row = known(summary)
    assert row is not None
    assert summary.squeeze == row
    cuts = row.cuts[1:]
    assert {cut.kind for cut in cuts} == {"global"}
    assert len(cuts) <= 3
    good = [cut.value >= row.whole.value - row.margin for cut in cuts]
    assert good == sorted(good, reverse=True), "sizes that are worse come after those that are not"
    assert row.knee == min(cut.parameters for cut, is_good in zip(cuts, good, strict=True) if is_good)
    folder = Path(summary.folder) / "squeezed"
    assert squeezed_adapter(Path(summary.folder), row) == folder
    assert squeezed_adapter(Path(summary.folder), replace(row, knee=1)) is None, (
        "a later squeeze has found another knee"
    )
    assert str(folder) in (Path(summary.folder) / "summary.md").read_text()
    about = verify_manifest(folder)
    assert about["squeezed"]["parameters"] == row.knee < row.whole.parameters
    assert about["trial"] == row.trial


def test_its_adapter_is_copied_to_where_artifacts_are_stored(search: Search) -> None:
    depot = Path.cwd() / "depot"
    summary = search(storage=f"file://{depot}")
    folder = Path(summary.folder) / "squeezed"
    with open_database("sqlite:///automl.db", create=False) as database:
        stored = (database.store("tiny").last_event(STORED) or {})["squeezed"]
    assert summary.squeeze is not None
    assert stored["trial"] == summary.squeeze.trial
    assert stored["name"] == f"tiny/squeezed/trial-{stored['trial']:05d}-{stored['sha256'][:16]}"
    assert digest_folder(depot / stored["name"]) == digest_folder(folder)
    assert digest_folder(folder).sha256 == stored["sha256"]
    before = sorted(depot.rglob("*"))
    search(storage=f"file://{depot}")
    assert sorted(depot.rglob("*")) == before, "the same adapter is there once"


def test_it_is_not_done_twice_but_anew_for_another_adapter(search: Search) -> None:
    first = search()
    assert search().squeeze == first.squeeze
    forget("UPDATE automl_squeezes SET adapter_sha256 = 'of an adapter that is gone'")
    again = search().squeeze
    assert again is not None
    assert first.squeeze is not None
    assert again.adapter_sha256 == first.squeeze.adapter_sha256
    assert again.at != first.squeeze.at


def test_a_study_begun_without_it_goes_on_with_it_and_the_other_way_round(search: Search) -> None:
    assert search("'off'").squeeze is None
    assert search("true").squeeze is not None
    assert search("false").squeeze is not None


def test_an_adapter_that_cannot_be_cut_costs_a_line_and_nothing_else(
    search: Search, caplog: pytest.LogCaptureFixture
) -> None:
    found = search("false")
    assert found.best is not None
    config = Path(found.best.adapter or "") / "adapter_config.json"
    before = config.read_text()
    config.write_text(json.dumps({**json.loads(before), "use_dora": True}))
    with caplog.at_level(logging.WARNING):
        again = search()
    config.write_text(before)
    assert again.best == found.best
    assert again.squeeze is None
    said = [record.getMessage() for record in caplog.records if "is not squeezed" in record.getMessage()]
    assert len(said) == 1
    assert "\n" not in said[0]
    assert (Path(again.folder) / "report.html").is_file()


class Stopping(Observer):
    """Asks for an end as soon as the winner is looked at."""

    def __init__(self) -> None:
        self.request = StopRequest()

    def stage(self, text: str) -> None:
        if "how small" in text:
            self.request.request("Ctrl-C")


def test_stopped_meanwhile_it_is_made_up_for_by_the_same_command(search: Search) -> None:
    watch = Stopping()
    with pytest.raises(InterruptedSearch, match="same command"):
        search(stop=watch.request, observer=watch)
    summary = search()
    assert summary.counts["COMPLETE"] == 3
    assert summary.squeeze is not None


def test_short_trainings_pay_for_the_least_and_long_ones_a_sixteenth() -> None:
    assert affordable_rows(80, 8) == LEAST_ROWS
    long = affordable_rows(1000, 16)
    assert (4 * long + 64) / (2.4 * 16_000) == pytest.approx(0.06, abs=1e-3)
