"""Real, tiny sweeps, night after night: after downtime, across a change of the clocks, and with spoilt data."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from pathlib import Path

import pytest
from scheduling import HandClock, add_schedule, space_of, states, tick_until

from automl.schedule.daemon import Scheduler
from automl.schedule.options import Options
from automl.schedule.work import Place
from automl.storage.claims import Claimant
from automl.storage.invariants import check
from automl.storage.schedules import list_firings
from automl.storage.sql import Database, open_database
from tests.sweep.tiny_world import make_world


@pytest.fixture
def world(tmp_path: Path) -> str:
    text = make_world(tmp_path, trials=2, steps=60).read_text(encoding="utf-8")
    return text + "enqueue: [{rank: 8, learning_rate: 0.03}]\n"  # learns these sentences wholly


def spoil(data: Path) -> None:
    """Give every example a label at random: nothing can be learnt any more."""
    generator = random.Random(1)
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    labels = [row["label"] for row in rows]
    generator.shuffle(labels)
    lines = [json.dumps({**row, "label": label}) for row, label in zip(rows, labels, strict=True)]
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """Where a notifier's command writes what it is told."""
    return tmp_path / "told"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_four_nights(sqlite_url: str, database: Database, world: str, told: Path, tmp_path: Path) -> None:
    # 2026-10-25: Berlin puts its clocks back at 03:00; 02:30 is shown twice.
    clock = HandClock(datetime(2026, 10, 21, 12, tzinfo=UTC))
    claimant = Claimant(database, clock=clock)
    options = Options(
        noise=0.05,
        notify=("command:/bin/false", f"command:/usr/bin/tee -a {told}"),
        keep_artifacts=2,
    )
    add_schedule(claimant, tmp_path, space_text=world, cron="30 2 * * *", options=options)
    scheduler = Scheduler(claimant, Place(url=sqlite_url))
    try:
        for moment in (
            datetime(2026, 10, 22, 0, 31, tzinfo=UTC),  # on time
            datetime(2026, 10, 24, 6, 0, tzinfo=UTC),  # after downtime over one slot; the next is six hours late
            datetime(2026, 10, 25, 0, 31, tzinfo=UTC),  # 02:31 for the first time
            datetime(2026, 10, 25, 1, 31, tzinfo=UTC),  # 02:31 for the second time: nothing is due
        ):
            clock.time = moment
            scheduler.tick()
            tick_until(scheduler.tick, lambda: not scheduler.running, most=20_000)
        spoil(tmp_path / "data.jsonl")
        clock.time = datetime(2026, 10, 26, 1, 31, tzinfo=UTC)
        scheduler.tick()
        tick_until(scheduler.tick, lambda: not scheduler.running, most=20_000)
    finally:
        scheduler.leave()
    last, third, second, missed, first = list_firings(database)
    assert states(database)[1] == "MISSED"
    assert missed.study is None
    assert [night.study for night in (first, second, third, last)] == [
        "nightly-20261022-0230",
        "nightly-20261024-0230",
        "nightly-20261025-0230",
        "nightly-20261026-0230",
    ]
    assert first.state == "SUCCEEDED"
    assert {second.state, third.state} <= {"SUCCEEDED", "NO_IMPROVEMENT"}
    # The second night began with the first one's best, trained it again, and was held against it.
    assert second.comparison is not None
    assert second.comparison["previous_study"] == first.study
    assert second.comparison["re_evaluated"] is not None
    assert second.comparison["same_data"] is True
    assert second.comparison["same_model"] is True
    # The spoilt data are noticed.
    assert (last.state, last.exit_code) == ("REGRESSION", 6)
    assert last.comparison is not None
    assert last.comparison["same_data"] is False
    assert "the data changed" in last.message
    # A notifier that fails changes nothing; the other one was told of what went wrong, and only of that.
    stories = [json.loads(line) for line in told.read_text(encoding="utf-8").replace("}{", "}\n{").splitlines()]
    assert [story["state"] for story in stories] == ["MISSED", "REGRESSION"]
    # Files stay of the last two nights, the best one and the last successful one.
    output = tmp_path / "automl-output"
    best = max((third, second, first), key=lambda night: night.value or 0.0)  # the latest of equals
    kept = {str(night.study) for night in (third, last, best)}
    assert {path.name for path in output.iterdir()} == kept
    assert space_of(output / str(last.study))["search"]["warm_start"] == third.study  # type: ignore[index]
    with open_database(sqlite_url, create=False) as fresh:
        assert [check(fresh, study, finished=True) for study in sorted(kept)] == [[]] * len(kept)
