"""From importances in SQL to ranks: the budget, the label, the abstentions, and what the command prints."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest

from automl.cli.main import main
from automl.errors import NotEnoughEvidence
from automl.results.suggestion import suggested_ranks, suggestion_of
from automl.storage.lease import StudyLease
from automl.storage.sql import Database, open_database
from automl.storage.verification import VerificationStore
from automl.trial import Measurement, ModuleImportance
from tests.databases import fresh_sqlite

SPACE = """
version: 1
study: topics
model: ./model
task: {type: classification, data: rows.jsonl, metric: accuracy}
space:
  rank: {type: int, low: 1, high: 16}
  target: {type: categorical, choices: [qv, all-linear]}
fixed: {alpha_ratio: 2}
search: {steps: 40, evaluate_every: 10}
"""
KINDS = {"query": (32, 32), "key": (32, 32), "value": (32, 32), "up": (32, 64), "down": (64, 32)}
MODULES = {f"bert.layer.{layer}.{kind}": shape for layer in range(3) for kind, shape in KINDS.items()}
QV = [name for name in MODULES if name.endswith(("query", "value"))]
UNIT = sum(sum(shape) for shape in MODULES.values())  # parameters of rank 1 everywhere


def score(name: str, draw: random.Random, noise: float) -> float:
    """Deeper is more, keys are hardly anything, the same in every trial up to a factor."""
    layer = int(name.split(".")[2])
    return (1 + layer) * (0.01 if name.endswith("key") else 1.0) * math.exp(draw.gauss(0, noise))


def modules(
    names: list[str], rank: int, *, seed: int, noise: float = 0.1, against: tuple[str, ...] = (), done: float = 1.0
) -> tuple[ModuleImportance, ...]:
    draw = random.Random(seed)
    return tuple(
        ModuleImportance(
            module=name,
            rank=rank,
            in_features=MODULES[name][0],
            out_features=MODULES[name][1],
            step=40,
            fraction_done=done,
            samples=7,
            sensitivity=(value := score(name, draw, noise)),
            uncertainty=value / 3,
            effective_rank=1.5,
            relative_update=0.02,
            components=tuple(value * 0.5**index for index in range(rank)),
            held_out=-1e-3 if name in against else 1e-3,
            held_out_error=1e-4,
        )
        for name in names
    )


class Study:
    """A study in a database, filled trial by trial."""

    def __init__(self, database: Database) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.database = database
        with StudyLease(database, "topics") as lease:
            lease.take(SPACE, "a" * 64, {"folder": "/nowhere"})
        self.store = database.store("topics")
        self.optuna = optuna.create_study(study_name="topics", storage=database.optuna_storage(), direction="maximize")

    def add(self, accuracy: float, *, rank: int = 4, target: str = "all-linear", **options: Any) -> None:
        self.optuna.enqueue_trial({"rank": rank, "target": target})
        trial = self.optuna.ask()
        trial.set_user_attr("stop_reason", "finished")
        trial.suggest_int("rank", 1, 16)
        trial.suggest_categorical("target", ("qv", "all-linear"))
        names = QV if target == "qv" else list(MODULES)
        carried = modules(names, rank, seed=trial.number, **options)
        self.store.add_measurements(
            [Measurement(trial=trial.number, step=40, metrics={"accuracy": accuracy}, importances=carried)]
        )
        trial.report(accuracy, 40)
        self.optuna.tell(trial, accuracy)


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    with open_database(fresh_sqlite(tmp_path), create=False) as database:
        yield Study(database)


def fill(study: Study, **options: Any) -> None:
    for number in range(5):
        study.add(0.9 - number / 100, **options)


def test_ranks_follow_the_scores_within_the_winners_budget(study: Study) -> None:
    fill(study)
    study.add(0.85, target="qv")
    found = suggestion_of(study.database, "topics")
    assert found.trial == 0
    assert found.status == "not_run"
    assert not found.is_verified
    assert found.budget_params == 4 * UNIT
    assert 0 <= found.budget_params - found.used_params < 96
    assert found.used_params == sum(rank * sum(MODULES[name]) for name, rank in found.ranks.items())
    assert set(found.ranks) == set(MODULES)
    assert min(found.ranks.values()) == 2
    assert max(found.ranks.values()) <= 16
    assert found.ranks["bert.layer.2.value"] > found.ranks["bert.layer.0.value"]
    assert found.uniform_rank == 4
    assert found.scaling == pytest.approx(2.0)
    assert found.alpha == pytest.approx(2.0 * found.rank)
    assert found.peft["target_modules"] == [module.module for module in found.modules]
    assert all(module.rank_low <= module.rank_suggested <= module.rank_high for module in found.modules)
    assert found.stability > 0.8
    assert suggested_ranks(study.database, "topics") == found.ranks


def test_the_budget_may_be_given(study: Study) -> None:
    fill(study)
    found = suggestion_of(study.database, "topics", budget=10 * UNIT)
    assert found.budget_params == 10 * UNIT
    assert found.uniform_rank == 10
    assert min(found.ranks.values()) == 5
    json.dumps(found.as_dict(), allow_nan=False)


def test_another_trial_may_be_asked_for(study: Study) -> None:
    fill(study)
    study.add(0.5, rank=2, target="qv")
    found = suggestion_of(study.database, "topics", trial=5)
    assert (found.trial, set(found.ranks)) == (5, set(QV))


def test_keys_are_proposed_for_removal_separately(study: Study) -> None:
    fill(study)
    found = suggestion_of(study.database, "topics")
    (line,) = found.advice
    assert line.startswith("bert.layer.*.key has ")
    assert line.endswith("try a target set without it")
    assert found.ranks["bert.layer.0.key"] == 2  # not by rank 0


def test_held_out_rows_take_rank_away(study: Study) -> None:
    deep = ("bert.layer.2.value",)
    fill(study, against=deep)
    found = suggestion_of(study.database, "topics")
    assert found.ranks[deep[0]] == 2
    (row,) = [module for module in found.modules if module.module == deep[0]]
    assert (row.rank_low, row.rank_high) == (2, 2)  # held out rows speak against it in every draw of trials
    assert found.notes == ("held-out rows speak against 1 of 15 modules, which keep the least rank, 2",)


def test_too_many_votes_against_are_left_aside_and_said(study: Study) -> None:
    fill(study, against=tuple(MODULES))
    found = suggestion_of(study.database, "topics")
    assert found.used_params > 3.9 * UNIT
    assert "too many to follow" in found.notes[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": 4.0}, "mean rank correlation between trials"),
        ({"done": 0.4}, "no trial with these modules is half done"),
        ({"rank": 1}, "every one keeps at least rank 1, so nothing is left to give out"),
    ],
    ids=["disagreement", "too short", "rank 1"],
)
def test_it_abstains(study: Study, options: Mapping[str, Any], message: str) -> None:
    fill(study, **options)
    with pytest.raises(NotEnoughEvidence, match=message):
        suggestion_of(study.database, "topics")
    assert suggested_ranks(study.database, "topics") is None


def test_one_trial_is_not_enough(study: Study) -> None:
    study.add(0.9)
    with pytest.raises(NotEnoughEvidence, match=r"not enough evidence for a rank suggestion: 1\.0 effective trials"):
        suggestion_of(study.database, "topics")


def test_without_importances_it_says_where_they_come_from(study: Study) -> None:
    with pytest.raises(NotEnoughEvidence, match="importance: true"):
        suggestion_of(study.database, "topics")
    with pytest.raises(NotEnoughEvidence, match="trial 7 has no importances"):
        suggestion_of(study.database, "topics", trial=7)


def test_it_is_verified_only_by_a_verification_of_the_same_ranks(study: Study) -> None:
    fill(study)
    ranks = {name: rank for name, rank in suggestion_of(study.database, "topics").ranks.items() if rank != 4}
    verifications = VerificationStore(study.database, "topics")
    for number, pattern in enumerate(({}, ranks), start=1):
        verifications.begin(number, {})
        arms = [{"kind": "finalist"}, {"kind": "suggested", "rank_pattern": pattern}]
        verifications.finish(number, {"arms": arms, "suggestion": {"status": "passed"}})
        assert suggestion_of(study.database, "topics").status == ("passed" if pattern else "not_run")


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return int(stop.value.code or 0)


def test_the_command_labels_what_it_prints(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    fill(study)
    url = study.database.url
    assert run(["suggest", "topics", "--db", url]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("UNVERIFIED: a hypothesis.")
    assert "target set: bert.layer.*.key" in shown
    assert run(["suggest", "topics", "--db", url, "--format", "peft"]) == 0
    assert capsys.readouterr().out.startswith("# UNVERIFIED")
    assert run(["suggest", "topics", "--db", url, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["verification"]["status"]) == ("importance/1", "not_run")


def test_the_command_abstains_with_exit_code_1(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    study.add(0.9)
    assert run(["suggest", "topics", "--db", study.database.url]) == 1
    assert "not enough evidence" in capsys.readouterr().err
