"""A whole search that its budget ends: told beforehand, ended to the evaluation, told everywhere, and gone on with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from automl.cli.main import main
from automl.results.standing import spending_of
from automl.schedule.metrics import ServiceCollector
from automl.storage.lease import StudyLease
from automl.storage.overview import study_totals
from automl.storage.sql import open_database
from dashboards.api import StudyAnswer, _study
from dashboards.views import Views
from tests.sweep.tiny_world import make_world

Run = Callable[..., tuple[int, str, str]]

EVERY = 5 * 8
"""Examples between two measurements: 5 steps of 8 rows."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shared_cache: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOML_CACHE", str(shared_cache))

    def command(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(list(words))
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    return command


def allow(space: Path, budget: str) -> None:
    """Write the budget into the file, in the place of an earlier one."""
    lines = [line for line in space.read_text(encoding="utf-8").splitlines() if not line.startswith("  budget:")]
    at = next(number for number, line in enumerate(lines) if line.startswith("search:"))
    lines.insert(at + 1, f"  budget: {budget},")
    space.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_a_budget_ends_a_search_and_a_larger_one_continues_it(run: Run, tmp_path: Path) -> None:
    space = make_world(tmp_path, trials=4, steps=20, slots=1)
    cost = "cost: {per_gpu_hour: 3600, limit: 100000, currency: EUR}"
    allow(space, f"{{examples: {6 * EVERY - 1}, {cost}}}")
    code, out, err = run("plan", "space.yaml", "--no-probe")
    assert code == 0, err
    assert f"budget: examples: about 640 examples if nothing is pruned; {6 * EVERY - 1} may be spent" in out
    assert "advice: search.budget.examples: 239 examples are less than the about 640 that the search takes" in out

    code, _, err = run("search", "space.yaml")
    assert code == 4
    assert f"search.budget.examples: {6 * EVERY} of {6 * EVERY - 1} examples are spent" in err
    assert "nothing is lost, with more, the same command continues" in err
    assert "it will end after about 37% of its work" in err
    with open_database(f"sqlite:///{tmp_path / 'automl.db'}", create=False) as database:
        assert [(item.trial, item.step) for item in database.store("tiny").measurements()] == [
            *((0, step) for step in (5, 10, 15, 20)),
            *((1, step) for step in (5, 10)),
        ]
        (totals,) = study_totals(database, ["tiny"])
        assert totals.last_run is not None
        assert (totals.state, totals.last_run.ended) == ("stopped", "budget")
        spent = totals.spent
        assert (spent.examples, spent.currency) == (6 * EVERY, "EUR")
        assert spent.device_seconds is not None
        assert spent.cost == pytest.approx(spent.device_seconds), "at one EUR a second"
        texts = spending_of(database, totals).texts()
        assert texts[2] == f"{6 * EVERY} of {6 * EVERY - 1} examples"
        assert texts[3].endswith(" of 100,000 EUR")
        view = Views(database).study("tiny")
        assert view.spending.texts() == texts
        assert StudyAnswer(**_study(view.line)).cost == spent.cost
        with StudyLease(database, "tiny") as lease:
            lease.take(database.store("tiny").sweep().space_text, totals.space_sha256, {})
            registry = CollectorRegistry(auto_describe=False)
            registry.register(ServiceCollector(database))
            said = generate_latest(registry).decode()
        assert f'automl_study_examples{{study="tiny"}} {6 * EVERY}.0' in said
        assert 'automl_study_cost{currency="EUR",study="tiny"}' in said
        assert 'automl_study_budget_share{budget="examples",study="tiny"} 1.00' in said
    _, out, _ = run("status", "space.yaml", "--json")
    told = json.loads(out)
    assert told["spent"]["budget"]["examples"] == {"spent": 6 * EVERY, "limit": 6 * EVERY - 1}
    assert told["ended"] == "budget"
    report = (next(tmp_path.glob("automl-output/*/report.md"))).read_text(encoding="utf-8")
    assert "of 100,000 EUR" in report

    code, _, err = run("search", "space.yaml")
    assert code == 4
    assert "nothing was trained (search.budget.examples: " in err
    assert "preparing model" not in err

    allow(space, "{tokens: 1000000, cost: {per_gpu_hour: 3600, limit: 100000, currency: USD}}")
    code, _, err = run("search", "space.yaml")
    assert code == 2
    assert "was paid for in EUR, and search.budget.cost.currency is USD" in err

    allow(space, "{examples: 640}")
    code, _, err = run("search", "space.yaml")
    assert code == 0, err
    with open_database(f"sqlite:///{tmp_path / 'automl.db'}", create=False) as database:
        store = database.store("tiny")
        assert len(store.measurements()) == 16
        assert [attempt.state.value for attempt in store.attempts(1)] == ["INTERRUPTED", "SUCCEEDED"]
        (totals,) = study_totals(database, ["tiny"])
        assert (totals.state, totals.spent.examples) == ("finished", 640)
        assert totals.tokens == totals.spent.tokens > 640
