"""Inject faults, count what was injected and what was violated, and say what the numbers bound.

    scripts/faults --ci | --full | --soak [--seed S] [--only R-01,R-06] [--json FILE] [--jobs 2]

Every scenario draws from its own generator (seed and id), so one of them can be repeated alone. Without a violation in
N independent injections, the rate is below 3/N with 95 % confidence (the rule of three).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tests.faults import dashboard_faults, database_faults, driver_faults, input_faults, stock_control
from tests.faults.pytest_cases import pytest_cases
from tests.faults.scenario import Findings, Scenario, SkipScenario, Tier, Trial, sizes

SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        id="R-01 sqlite",
        title="driver killed at a random moment, SQLite",
        injected="kills",
        sizes=sizes(8, 80),
        run=driver_faults.kill_drivers_on_sqlite,
    ),
    Scenario(
        id="R-01 postgresql",
        title="driver killed at a random moment, PostgreSQL",
        injected="kills",
        sizes=sizes(6, 60),
        run=driver_faults.kill_drivers_on_postgres,
    ),
    Scenario(
        id="R-02",
        title="driver killed before a commit, rename, deletion or opening",
        injected="kills",
        sizes=sizes(4, 60),
        run=driver_faults.kill_at_durable_points,
    ),
    Scenario(
        id="R-03/R-04",
        title="worker or driver of a real Ray cluster killed",
        injected="kills",
        sizes=sizes(2, 15),
        run=driver_faults.kill_under_ray,
    ),
    Scenario(
        id="R-04 node",
        title="one of the two machines of a Ray cluster killed",
        injected="kills",
        sizes=sizes(0, 5),
        run=driver_faults.kill_nodes,
    ),
    Scenario(
        id="R-05",
        title="database server killed, back after seconds",
        injected="kills",
        sizes=sizes(3, 20),
        run=database_faults.kill_servers,
    ),
    Scenario(
        id="R-06",
        title="database refused, swallowed, reset, hung; too long; signals meanwhile",
        injected="outages",
        sizes={"ci": 5, "full": 30, "soak": 30},
        run=database_faults.outages,
    ),
    Scenario(
        id="R-07",
        title="second driver of a study",
        injected="second drivers",
        sizes=sizes(3, 40),
        run=driver_faults.second_drivers,
    ),
    Scenario(
        id="R-08",
        title="driver stopped beyond its lease, replaced, continued",
        injected="zombies",
        sizes=sizes(1, 10),
        run=driver_faults.zombies_on_postgres,
    ),
    Scenario(
        id="R-09",
        title="disk of the database full, freed or not",
        injected="full disks",
        sizes=sizes(2, 12),
        run=database_faults.full_disks,
    ),
    Scenario(
        id="R-10",
        title="places that cannot be written",
        injected="commands",
        sizes=sizes(0, 6, 6),
        run=input_faults.read_only_places,
    ),
    Scenario(
        id="R-11 sqlite",
        title="32 concurrent writers, SQLite",
        injected="trials written",
        sizes=sizes(1, 10, 100),
        run=database_faults.crowds_on_sqlite,
    ),
    Scenario(
        id="R-11 postgresql",
        title="32 concurrent writers, PostgreSQL",
        injected="trials written",
        sizes=sizes(1, 10, 100),
        run=database_faults.crowds_on_postgres,
    ),
    Scenario(
        id="R-16",
        title="fuzzed space files",
        injected="files",
        sizes=sizes(300, 5000, 200_000),
        run=input_faults.fuzzed_spaces,
    ),
    Scenario(
        id="R-20",
        title="damaged SQLite files",
        injected="files",
        sizes=sizes(20, 200),
        run=database_faults.damaged_files,
    ),
    Scenario(
        id="R-13/R-21",
        title="many trials in one driver: memory, descriptors, threads, time",
        injected="trials",
        sizes=sizes(0, 500, 3000),
        run=input_faults.leaks,
    ),
    Scenario(
        id="R-22",
        title="SIGINT, SIGTERM, two signals",
        injected="signals",
        sizes=sizes(2, 24),
        run=driver_faults.signals,
    ),
    Scenario(
        id="R-29",
        title="password in the database's URL",
        injected="commands",
        sizes=sizes(0, 21, 21),
        run=input_faults.secrets,
    ),
    Scenario(
        id="R-33",
        title="backup while a driver writes, restored elsewhere",
        injected="backups",
        sizes=sizes(2, 30),
        run=database_faults.backups,
    ),
    Scenario(
        id="R-35",
        title="driver killed, SQLite file deleted without its log, then begun anew or restored",
        injected="kills",
        sizes=sizes(2, 20),
        run=database_faults.left_logs,
    ),
    Scenario(
        id="dashboards",
        title="both dashboards looked at during searches on SQLite at full speed",
        injected="requests",
        sizes={"ci": 15, "full": 600, "soak": 3600},  # seconds
        run=dashboard_faults.looked_at,
    ),
    Scenario(
        id="control: checker",
        title="the checker sees every damage done to a finished study",
        injected="damages",
        sizes=sizes(7, 7, 7),
        run=driver_faults.check_can_fail,
    ),
    Scenario(
        id="control: stock",
        title="the checker finds violations in stock OptunaSearch, ask and tell, enqueue_trial",
        injected="stock operations",
        sizes=sizes(0, 1, 1),
        run=stock_control.stock_is_caught,
    ),
    # What the test suite proves by itself: run here too when it is not run anyway.
    *pytest_cases(),
)


@dataclass(kw_only=True)
class Outcome:
    """A scenario and what came of it; `skipped` says why it did not run."""

    scenario: Scenario
    findings: Findings
    seconds: float
    skipped: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values; `bound_95` is the rule of three, None where something was violated or nothing injected."""
        count, violations = self.findings.count, self.findings.violations
        return {
            "id": self.scenario.id,
            "title": self.scenario.title,
            "n": count,
            "injected": self.scenario.injected,
            "violations": len(violations),
            "bound_95": round(min(1.0, 3 / count), 5) if count and not violations else None,
            "seconds": round(self.seconds, 1),
            "skipped": self.skipped,
            "details": self.findings.details,
            "first_violations": violations[:5],
        }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tier = parser.add_mutually_exclusive_group()
    for name, text in (("ci", "small numbers, minutes"), ("full", "the table"), ("soak", "hours")):
        tier.add_argument(f"--{name}", dest="tier", action="store_const", const=name, help=text)
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default 0)")
    parser.add_argument("--only", default="", help="ids of scenarios, separated by commas")
    parser.add_argument("--json", type=Path, help="also write the summary to this file, after every scenario")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="scenarios at the same time (default 1)")
    options = parser.parse_args(arguments)
    chosen: Tier = options.tier or "ci"
    if threading.current_thread() is threading.main_thread():  # servers and mounts are undone on the way out
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    outcomes: list[dict[str, Any]] = []
    for outcome in _run(_chosen(options.only, chosen), chosen, options.seed, options.jobs):
        outcomes.append(outcome)
        if options.json:
            draft = options.json.with_name(f".{options.json.name}.new")
            draft.write_text(json.dumps(summary(outcomes, chosen, options.seed), indent=1) + "\n", encoding="utf-8")
            draft.replace(options.json)
    total = summary(outcomes, chosen, options.seed)
    shown = ("tier", "seed", "kills", "violations", "skipped", "seconds")
    sys.stdout.write(json.dumps({key: total[key] for key in shown}) + "\n")
    return int(total["violations"] > 0)


def _run(scenarios: Sequence[Scenario], tier: Tier, seed: int, jobs: int) -> Iterator[dict[str, Any]]:
    """Run and report every scenario: one after the other here, or `jobs` at a time in processes of their own."""
    if jobs == 1:
        for scenario in scenarios:
            outcome = run_scenario(scenario, tier, seed)
            _say(outcome, tier, seed)
            yield outcome.as_dict()
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        yield from pool.map(_run_named, [scenario.id for scenario in scenarios], repeat(tier), repeat(seed))


def _run_named(name: str, tier: Tier, seed: int) -> dict[str, Any]:
    (scenario,) = [each for each in SCENARIOS if each.id == name]
    return next(_run([scenario], tier, seed, jobs=1))


def run_scenario(scenario: Scenario, tier: Tier, seed: int) -> Outcome:
    """Run one scenario; an error of the scenario itself is a violation, not an end of the suite."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="automl-faults-", ignore_cleanup_errors=True) as name:
        chance = random.Random(f"{seed}:{scenario.id}")
        trial = Trial(tier=tier, size=scenario.sizes[tier], chance=chance, folder=Path(name))
        skipped, findings = None, Findings()
        try:
            findings = scenario.run(trial)
        except SkipScenario as reason:
            skipped = str(reason)
        except Exception:  # noqa: BLE001 - the suite goes on and reports it
            findings.violations.append(traceback.format_exc()[-2000:])
    return Outcome(scenario=scenario, findings=findings, seconds=time.monotonic() - began, skipped=skipped)


def summary(outcomes: Sequence[dict[str, Any]], tier: Tier, seed: int) -> dict[str, Any]:
    """The whole run as one JSON document."""
    kills = sum(one["n"] for one in outcomes if one["injected"] == "kills")
    return {
        "tier": tier,
        "seed": seed,
        "machine": {"processors": os.cpu_count(), "python": platform.python_version(), "system": platform.system()},
        "kills": kills,
        "kills_bound_95": round(3 / kills, 5) if kills else None,
        "violations": sum(one["violations"] for one in outcomes),
        "skipped": sum(one["skipped"] is not None for one in outcomes),
        "seconds": round(sum(one["seconds"] for one in outcomes), 1),
        "scenarios": list(outcomes),
    }


def _chosen(only: str, tier: Tier) -> list[Scenario]:
    wanted = [each.strip() for each in only.split(",") if each.strip()]
    found = [
        scenario
        for scenario in SCENARIOS
        if scenario.sizes[tier] and (not wanted or any(scenario.id.startswith(each) for each in wanted))
    ]
    if not found:
        known = ", ".join(scenario.id for scenario in SCENARIOS)
        raise SystemExit(f"no scenario of tier {tier} is called {only!r}; there are: {known}")
    return found


def _say(outcome: Outcome, tier: Tier, seed: int) -> None:
    findings, scenario = outcome.findings, outcome.scenario
    verdict = f"{len(findings.violations)} VIOLATIONS" if findings.violations else "ok"
    if outcome.skipped:
        verdict = f"skipped: {outcome.skipped}"
    counted = f"{findings.count:6} {scenario.injected:18}"
    sys.stderr.write(f"{scenario.id:18} {counted} {outcome.seconds:7.1f} s  {verdict}\n")
    for violation in findings.violations[:5]:
        sys.stderr.write(f"    {violation}\n")
    if findings.violations:
        sys.stderr.write(f"    REPLAY: scripts/faults --{tier} --seed {seed} --only '{scenario.id}'\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
