"""From a squeeze in SQL to ranks: the size, the label, the importances beside them, and what the command prints."""

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
from automl.storage.squeezes import CutRow, ModuleRow, SqueezeRow, store_squeeze
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


def squeezed(trial: int, *, rank: int, names: list[str]) -> SqueezeRow:
    """What a squeeze finds of a trial, strengths being squares of the scores; its knee is rank 1."""
    draw = random.Random(trial)
    rows = []
    for name in names:
        first = score(name, draw, 0.1) ** 2
        strengths = tuple(first * 0.4**index for index in range(rank))
        inputs, outputs = MODULES[name]
        rows.append(
            ModuleRow(
                module=name, in_features=inputs, out_features=outputs, rank=rank, knee_rank=0, strengths=strengths
            )
        )
    unit = sum(row.cost for row in rows)
    cuts = tuple(
        CutRow(kind=kind, parameters=size, even_rank=size / unit, kept=0.5, value=0.9, metrics={"accuracy": 0.9})  # type: ignore[arg-type]
        for kind, size in (("whole", rank * unit), ("global", unit))
    )
    return SqueezeRow(
        trial=trial,
        adapter_sha256="",
        metric="accuracy",
        margin=0.01,
        rows=100,
        seen=64,
        knee=unit,
        recovery_steps=0,
        seconds=1.0,
        cuts=cuts,
        modules=tuple(rows),
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

    def squeeze(self, trial: int, *, rank: int, names: list[str] | None = None) -> None:
        """Record that the trial's adapter was squeezed."""
        row = squeezed(trial, rank=rank, names=names or list(MODULES))
        store_squeeze(self.database, "topics", row, guard=lambda connection: None)


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    with open_database(fresh_sqlite(tmp_path), create=False) as database:
        yield Study(database)


def fill(study: Study, **options: Any) -> None:
    for number in range(5):
        study.add(0.9 - number / 100, **options)
    study.squeeze(0, rank=options.get("rank", 4))


def test_ranks_are_those_of_the_cut_at_the_knee(study: Study) -> None:
    fill(study)
    study.add(0.85, target="qv")
    found = suggestion_of(study.database, "topics")
    assert found.trial == 0
    assert found.status == "not_run"
    assert not found.is_verified
    assert found.is_knee
    assert found.budget_params == UNIT
    assert 0 <= found.budget_params - found.used_params < 96
    assert found.used_params == sum(rank * sum(MODULES[name]) for name, rank in found.ranks.items())
    assert set(found.ranks) == set(MODULES)
    assert found.ranks["bert.layer.0.key"] == 0
    assert found.ranks["bert.layer.2.value"] > found.ranks["bert.layer.0.value"]
    assert found.uniform_rank == 1
    assert found.scaling == pytest.approx(2.0)
    assert found.alpha == pytest.approx(2.0 * found.rank)
    assert found.peft["target_modules"] == [each.module for each in found.modules if each.rank_suggested]
    assert sum(each.energy for each in found.modules) == pytest.approx(1.0)
    assert all((each.energy > 0) == (each.rank_suggested > 0) for each in found.modules)
    assert found.stability is not None
    assert found.stability > 0.8
    assert found.notes == ()


def test_ranks_to_train_with_leave_no_module_out(study: Study) -> None:
    fill(study)
    found = suggestion_of(study.database, "topics")
    trained = suggested_ranks(study.database, "topics")
    assert trained is not None
    assert trained == found.trained_ranks
    assert min(trained.values()) == 1
    spent = sum(rank * sum(MODULES[name]) for name, rank in trained.items())
    assert 0 <= 2 * UNIT - spent < 96  # the knee is rank 1, which would leave nothing to give out


def test_the_budget_may_be_given(study: Study) -> None:
    fill(study)
    found = suggestion_of(study.database, "topics", budget=3 * UNIT)
    assert (found.budget_params, found.uniform_rank, found.is_knee) == (3 * UNIT, 3, False)
    json.dumps(found.as_dict(), allow_nan=False)
    whole = suggestion_of(study.database, "topics", budget=4 * UNIT)
    assert set(whole.ranks.values()) == {4}
    assert "its own ranks" in whole.notes[0]
    for budget, said in ((4 * UNIT + 1, "more than the 4,608"), (63, "keep nothing; one direction has 64")):
        with pytest.raises(NotEnoughEvidence, match=said):
            suggestion_of(study.database, "topics", budget=budget)


def test_another_trial_may_be_asked_for(study: Study) -> None:
    fill(study)
    study.add(0.5, rank=2, target="qv")
    with pytest.raises(NotEnoughEvidence, match=r"run: automl squeeze topics --trial 5$"):
        suggestion_of(study.database, "topics", trial=5)
    study.squeeze(5, rank=2, names=QV)
    found = suggestion_of(study.database, "topics", trial=5)
    assert (found.trial, set(found.ranks)) == (5, set(QV))


def test_keys_are_proposed_for_removal_separately(study: Study) -> None:
    fill(study)
    (line,) = suggestion_of(study.database, "topics").advice
    assert line.startswith("bert.layer.*.key has ")
    assert line.endswith("try a target set without it")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"noise": 4.0}, "rest on little: mean rank correlation between trials"),
        ({"done": 0.4}, "no trial with these modules has left importances"),
    ],
    ids=["disagreement", "too short"],
)
def test_importances_that_say_little_are_named_and_change_no_rank(
    study: Study, options: Mapping[str, Any], said: str
) -> None:
    fill(study, **options)
    found = suggestion_of(study.database, "topics")
    assert said in found.notes[0]
    assert found.ranks["bert.layer.2.value"] > found.ranks["bert.layer.0.key"] == 0


def test_a_study_of_before_there_were_squeezes_says_what_to_run(study: Study) -> None:
    study.add(0.9)
    with pytest.raises(NotEnoughEvidence, match=r"trial 0 was not squeezed.*run: automl squeeze topics$"):
        suggestion_of(study.database, "topics")
    assert suggested_ranks(study.database, "topics") is None


def test_without_a_complete_trial_there_is_nothing_to_cut(study: Study) -> None:
    with pytest.raises(NotEnoughEvidence, match="no complete trial"):
        suggestion_of(study.database, "topics")
    with pytest.raises(NotEnoughEvidence, match="no trial 7"):
        suggestion_of(study.database, "topics", trial=7)


def test_an_adapter_of_rank_two_gives_nothing_out(study: Study) -> None:
    fill(study, rank=2)
    assert suggestion_of(study.database, "topics").trained_ranks is None
    assert suggested_ranks(study.database, "topics") is None


def test_it_is_verified_only_by_a_verification_of_the_same_ranks(study: Study) -> None:
    fill(study)
    trained = suggested_ranks(study.database, "topics")
    assert trained is not None
    ranks = {name: rank for name, rank in trained.items() if rank != 4}
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
    assert shown.startswith("Ranks of trial 0's adapter cut to ")
    assert "UNVERIFIED as ranks to train with" in shown
    assert "target set: bert.layer.*.key" in shown
    assert run(["suggest", "topics", "--db", url, "--format", "peft"]) == 0
    assert capsys.readouterr().out.startswith("# UNVERIFIED")
    assert run(["suggest", "topics", "--db", url, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["verification"]["status"]) == ("importance/2", "not_run")


def test_the_command_abstains_with_exit_code_1(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    study.add(0.9)
    assert run(["suggest", "topics", "--db", study.database.url]) == 1
    assert "run: automl squeeze topics" in capsys.readouterr().err
