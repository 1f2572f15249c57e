"""Rows of the catalogue that are tests of their own: run through pytest and counted like the others."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from functools import partial

from tests.faults.kill import ROOT
from tests.faults.scenario import Findings, Scenario, SkipScenario, Trial, sizes

_CASES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("R-06 lost answers", "connection lost around every commit", ("tests/storage/test_database_away.py",)),
    ("R-12", "Optuna's own storage suite on both databases", ("tests/storage/test_optuna_contract.py",)),
    ("R-14/R-15", "schedules: zones, clock jumps, overlap, several daemons", ("tests/schedule",)),
    ("R-17", "bad data sets", ("tests/tasks/test_bad_data.py",)),
    ("R-18", "trials that raise, diverge, hang or end their worker", ("tests/contracts/test_executor.py",)),
    ("R-19", "lack of memory", ("tests/training/test_lack_of_memory.py",)),
    ("R-20 slots", "damaged slot files and adapters", ("tests/training/test_slot_files.py",)),
    ("R-22 ray", "signals to a driver of a Ray cluster", ("tests/faults/test_signals.py",)),
    ("R-23", "data prepared by several processes", ("tests/tasks/test_prepare.py",)),
    ("R-24..R-28", "web: tokens, origins, XSS, traversal, schema", ("tests/dashboards",)),
    ("R-30", "pickles and remote code refused", ("tests/models/test_backbone.py", "tests/test_architecture.py")),
    ("R-31", "listeners and secrets under Ray", ("tests/execution/test_ray_executor.py",)),
    ("R-32", "best adapter in a fresh process", ("tests/training/test_adapter_export.py",)),
    ("R-34", "a worker that hangs", ("tests/test_watchdog.py",)),
    ("R-33 upgrade", "upgrade of older databases", ("tests/storage/test_migrations.py",)),
)
_SECONDS = 1800


def pytest_cases() -> list[Scenario]:
    """One scenario for each; not in the CI tier, where the test suite itself runs them."""
    return [
        Scenario(id=name, title=title, injected="tests", sizes=sizes(0, 1, 1), run=partial(_run, paths=paths))
        for name, title, paths in _CASES
    ]


def _run(trial: Trial, *, paths: Sequence[str]) -> Findings:
    there = [path for path in paths if (ROOT / path).exists()]
    if not there:
        raise SkipScenario(f"{', '.join(paths)} is not there")
    report = trial.folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junit-xml={report}", *there]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=_SECONDS)
    findings = Findings()
    if not report.exists():
        findings.violations.append(f"pytest ended with {done.returncode}: {done.stdout[-500:]}{done.stderr[-500:]}")
        return findings
    cases = list(ElementTree.parse(report).iter("testcase"))
    skipped = [case for case in cases if case.find("skipped") is not None]
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    findings.count = len(cases) - len(skipped)
    findings.violations = [f"{case.get('classname')}::{case.get('name')}" for case in failed]
    findings.details["skipped_tests"] = len(skipped)
    return findings
