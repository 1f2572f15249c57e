"""Every local time that an expression names is due exactly once, whatever the clocks of the zone do."""

from __future__ import annotations

import functools
import itertools
import operator
import random
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automl.errors import ConfigError
from automl.schedule.cron import check_cron, due_slots, next_slots

# Each 400 days hold what the zone is known for: a day that was skipped, a gap of 30 minutes, a gap at midnight.
ZONES = {
    "Europe/Berlin": datetime(2025, 12, 1, tzinfo=UTC),
    "America/New_York": datetime(2027, 12, 1, tzinfo=UTC),
    "Australia/Lord_Howe": datetime(2026, 1, 1, tzinfo=UTC),
    "Pacific/Apia": datetime(2011, 1, 1, tzinfo=UTC),
    "America/Sao_Paulo": datetime(2018, 1, 1, tzinfo=UTC),
    "UTC": datetime(2028, 1, 1, tzinfo=UTC),
}
NIGHTLY = ("0 2 * * *", "30 2 * * *", "0 0 * * *", "45 1 * * *", "30 23 * * *")


def local(slots: list[datetime], zone: str) -> list[str]:
    return [slot.astimezone(ZoneInfo(zone)).isoformat(timespec="minutes") for slot in slots]


@pytest.mark.parametrize("cron", NIGHTLY)
@pytest.mark.parametrize("zone", ZONES)
def test_every_day_that_exists_has_one_night(zone: str, cron: str) -> None:
    start = ZONES[zone]
    slots = due_slots(cron, zone, start, start + timedelta(days=400))
    days = [slot.astimezone(ZoneInfo(zone)).date() for slot in slots]
    assert len(set(days)) == len(days)
    every = {days[0] + timedelta(days=number) for number in range((days[-1] - days[0]).days + 1)}
    assert every - set(days) == ({date(2011, 12, 30)} if zone == "Pacific/Apia" else set())


@pytest.mark.parametrize(
    ("cron", "zone", "start", "expected"),
    [
        pytest.param(
            "0 2 * * *",
            "Europe/Berlin",
            datetime(2026, 3, 28, 12, tzinfo=UTC),
            ["2026-03-29T03:00+02:00", "2026-03-30T02:00+02:00"],
            id="skipped time: as soon as the clocks have jumped",
        ),
        pytest.param(
            "0,15,30 2 * * *",
            "Europe/Berlin",
            datetime(2026, 3, 28, 12, tzinfo=UTC),
            ["2026-03-29T03:00+02:00", "2026-03-30T02:00+02:00"],
            id="several skipped times: once",
        ),
        pytest.param(
            "30 2 * * *",
            "Europe/Berlin",
            datetime(2026, 10, 24, 12, tzinfo=UTC),
            ["2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"],
            id="time shown twice: the first",
        ),
        pytest.param(
            "15 2 * * *",
            "Australia/Lord_Howe",
            datetime(2026, 10, 3, 0, tzinfo=UTC),
            ["2026-10-04T02:30+11:00", "2026-10-05T02:15+11:00"],
            id="half an hour skipped",
        ),
        pytest.param(
            "0 0 * * *",
            "America/Sao_Paulo",
            datetime(2018, 11, 3, 12, tzinfo=UTC),
            ["2018-11-04T01:00-02:00", "2018-11-05T00:00-02:00"],
            id="midnight skipped",
        ),
        pytest.param(
            "30 23 * * *",
            "America/Nuuk",
            datetime(2026, 3, 27, 12, tzinfo=UTC),
            ["2026-03-27T23:30-02:00", "2026-03-29T00:00-01:00", "2026-03-29T23:30-01:00"],
            id="skipped until midnight",
        ),
        pytest.param(
            "0 2 * * *",
            "Pacific/Apia",
            datetime(2011, 12, 29, 13, tzinfo=UTC),
            ["2011-12-31T02:00+14:00", "2012-01-01T02:00+14:00"],
            id="a day that does not exist",
        ),
    ],
)
def test_changes_of_the_clocks(cron: str, zone: str, start: datetime, expected: list[str]) -> None:
    assert local(next_slots(cron, zone, start, len(expected)), zone) == expected


def test_an_hourly_job_goes_by_elapsed_time() -> None:
    berlin = "Europe/Berlin"
    for start in (datetime(2026, 10, 24, 20, tzinfo=UTC), datetime(2026, 3, 28, 20, tzinfo=UTC)):
        slots = due_slots("30 * * * *", berlin, start, start + timedelta(hours=12))
        assert [later - earlier for earlier, later in itertools.pairwise(slots)] == [timedelta(hours=1)] * 11


def test_a_leap_day_comes_every_four_years() -> None:
    slots = next_slots("0 2 29 2 *", "Europe/Berlin", datetime(2026, 1, 1, tzinfo=UTC), 2)
    assert [slot.year for slot in slots] == [2028, 2032]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    zone=st.sampled_from(sorted(ZONES)),
    cron=st.sampled_from([*NIGHTLY, "*/20 * * * *", "0 */6 * * *", "15 1 1,15 * *", "0 3 * * MON-FRI"]),
)
def test_slots_do_not_depend_on_how_the_time_is_cut_up(seed: int, zone: str, cron: str) -> None:
    generator = random.Random(seed)
    start = ZONES[zone] + timedelta(days=generator.uniform(0, 360))
    end = start + timedelta(days=generator.uniform(1, 40))
    whole = due_slots(cron, zone, start, end)
    cuts = sorted(start + (end - start) * generator.random() for _ in range(6))
    parts = [due_slots(cron, zone, low, high) for low, high in zip([start, *cuts], [*cuts, end], strict=True)]
    assert functools.reduce(operator.iadd, parts, []) == whole
    assert all(later > earlier for earlier, later in itertools.pairwise(whole))
    assert next_slots(cron, zone, start, len(whole)) == whole if whole else True


@pytest.mark.parametrize(
    ("cron", "zone", "message"),
    [
        ("0 2 * *", "UTC", "has not five fields"),
        ("0 0 2 * * *", "UTC", "has not five fields"),
        ("61 2 * * *", "UTC", "bad minute"),
        ("0 2 30 2 *", "UTC", "bad day-of-month"),
        ("a b c d e", "UTC", "bad minute"),
        ("0 2 * * *", "Mars/Olympus", "'Mars/Olympus' is not an IANA time zone"),
        ("0 2 * * *", "../../etc/passwd", "is not an IANA time zone"),
    ],
)
def test_what_cannot_be_is_refused(cron: str, zone: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_cron(cron, zone)


def test_both_mistakes_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        check_cron("x", "y")
    assert len(caught.value.problems) == 2
