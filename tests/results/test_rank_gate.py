"""Whether rank binds, as a search's own trials tell it: right where it is plain, silent where it is noise."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import create_trial

from automl.cli.main import main
from automl.lora import Hyperparameters
from automl.report.render import render
from automl.report.write import study_frame
from automl.results.rank_gate import RankGate, gate_of_trials, rank_gate
from automl.results.recorded import recorded_spec
from automl.storage.lease import StudyLease
from automl.storage.sql import Database, open_database
from automl.storage.trials import CurvePoint, TrialRow
from automl.storage.verification import VerificationStore
from automl.trial import BestCheckpoint, Measurement, TrialState
from tests.databases import fresh_sqlite

STEPS = 100
ROWS = 500
RANKS = (1, 2, 3, 4, 6, 8, 12, 16)


def row(number: int, curve: Mapping[int, float]) -> TrialRow:
    last = max(curve)
    state = TrialState.COMPLETE if last == STEPS else TrialState.PRUNED
    points = tuple(CurvePoint(step, value) for step, value in curve.items())
    return TrialRow(number=number, state=state, value=curve[last], steps=last, curve=points)


def gate(
    made: Sequence[tuple[int, float, Mapping[int, float]]], *, metric: str = "accuracy", rows: int = ROWS
) -> RankGate:
    """made: (rank, learning rate, curve) of each trial."""
    rows_at = {50: rows // 4, STEPS: rows}
    trials = [row(number, curve) for number, (_, _, curve) in enumerate(made)]
    hypers = {number: Hyperparameters(rank=rank, learning_rate=rate) for number, (rank, rate, _) in enumerate(made)}
    return gate_of_trials(trials, hypers, metric=metric, steps=STEPS, rows_at=rows_at)


def search(
    effect: float, *, top: float = 0.8, noise: float = 0.005, seed: int = 0, trials: int = 32
) -> list[tuple[int, float, Mapping[int, float]]]:
    """Trials whose best rate is 8e-3 / sqrt(rank), and whose best value grows by `effect` with each doubling."""
    draw = random.Random(seed)
    made = []
    for number in range(trials):
        rank = RANKS[number % len(RANKS)]
        rate = 8e-3 / math.sqrt(rank) * 10 ** draw.uniform(-0.7, 0.7)
        off = abs(math.log10(rate * math.sqrt(rank) / 8e-3))
        value = top + effect * (math.log2(rank) - 4) - 0.1 * off + draw.gauss(0, noise)
        made.append((rank, rate, {50: value - 0.1, STEPS: value}))
    return made


def test_a_lower_rank_that_is_better_at_its_own_rate_is_recommended() -> None:
    found = gate(search(-0.03))
    assert (found.answer, found.source, found.rank) == ("does not bind", "search", 1)
    assert found.learning_rate == pytest.approx(8e-3, rel=0.7)
    assert found.headline.startswith("rank does not bind here; train at rank 1 with rate 0.0")


def test_many_rows_show_that_the_lowest_rank_that_suffices_is_enough() -> None:
    """From rank 4 on nothing is gained: lower ones are worse by a tenth, and that many rows see it."""
    made = [(rank, rate, {STEPS: 0.8 if rank >= 4 else 0.7}) for rank, rate, _ in search(0.0, noise=0.0)]
    found = gate(made, rows=1_000_000)
    assert (found.answer, found.rank) == ("does not bind", 4)


def test_high_ranks_that_are_better_beyond_noise_bind() -> None:
    found = gate(search(0.06))
    assert (found.answer, found.rank, found.learning_rate) == ("binds", None, None)


def test_trials_that_overfit_are_compared_by_what_they_are_worth() -> None:
    """High ranks are better, fall behind, and half of them end themselves for it."""
    made = search(0.06)
    trials, hypers = [], {}
    for number, (rank, rate, curve) in enumerate(made):
        worth = curve[STEPS]
        past = {50: worth, STEPS: worth - 0.5} if rank > 4 else curve
        ended = row(number, {50: worth} if rank > 4 and number % 16 > 7 else past)
        best = BestCheckpoint(step=50 if rank > 4 else STEPS, metrics={"accuracy": worth})
        trials.append(replace(ended, state=TrialState.COMPLETE, value=worth, checkpoint=best))
        hypers[number] = Hyperparameters(rank=rank, learning_rate=rate)
    found = gate_of_trials(trials, hypers, metric="accuracy", steps=STEPS, rows_at={50: ROWS, STEPS: ROWS})
    assert found == gate(made)
    assert found.answer == "binds"


def test_more_rows_turn_not_known_into_an_answer() -> None:
    assert gate(search(0.0)).answer == "not known"
    assert gate(search(0.0), rows=100_000_000).answer == "does not bind"


@pytest.mark.parametrize(("effect", "wrong"), [(0.0, "binds"), (0.0101, "does not bind")])
def test_wrong_answers_are_rare(effect: float, wrong: str) -> None:
    """Ranks that are equal, and ranks of which each doubling gains the margin, with the noise of rows and seeds."""
    draw, answers = random.Random(1), []
    for seed in range(400):
        made = [
            (rank, rate, {STEPS: curve[STEPS] + draw.gauss(0, math.sqrt(0.8 * 0.2 / ROWS))})
            for rank, rate, curve in search(effect, seed=seed)
        ]
        answers.append(gate(made).answer)
    assert answers.count(wrong) <= 0.05 * 400


def test_low_ranks_that_were_not_tried_at_high_rates_prove_nothing() -> None:
    made = [(rank, rate if rank > 8 else 1e-5, curve) for rank, rate, curve in search(0.06)]
    assert gate(made).answer == "not known"


def test_trials_lean_where_they_prove_nothing() -> None:
    equal = gate([(rank, rate, {STEPS: 0.8}) for rank, rate, _ in search(0.0)])
    assert (equal.answer, equal.rank) == ("not known", None)
    assert equal.lean is not None
    assert equal.lean.probability == pytest.approx(NormalDist().cdf(0.01 / math.sqrt(2 * 0.8 * 0.2 / ROWS)))
    assert equal.headline.startswith(
        "not proven; most likely rank does not bind (probability 0.65 by the search's own trials): train at rank "
    )
    worse = [(rank, rate, {STEPS: 0.8 if rank > 4 else 0.77}) for rank, rate, _ in search(0.0)]
    assert gate(worse).headline.startswith("not proven; most likely rank binds (probability 0.")
    cold = [(rank, rate if rank > 4 else 1e-6, curve) for rank, rate, curve in worse]
    assert gate(cold).lean is None  # low ranks were not tried at high rates


def test_too_few_trials_and_too_early_ones_are_not_compared() -> None:
    assert "rank 8 alone" in gate([(8, 1e-3, {STEPS: 0.8})] * 9).evidence
    early = [(rank, rate, {25: 0.5, **({STEPS: 0.9} if rank == 16 else {})}) for rank, rate, _ in search(0.0)]
    assert gate(early).answer == "not known"
    assert gate([]).evidence == "no LoRA trial has a value"


def test_trials_are_compared_at_a_step_that_both_sides_reached() -> None:
    made = [(rank, rate, curve if rank > 4 else {50: 0.85}) for rank, rate, curve in search(0.0)]
    found = gate(made)
    assert "at step 50" in found.evidence
    assert found.answer == "does not bind"


def test_by_loss_the_noise_is_a_share_of_it() -> None:
    made = [(rank, rate, {STEPS: 0.2 if rank <= 2 else 0.26}) for rank, rate, _ in search(0.0)]
    assert gate(made, metric="loss").answer == "does not bind"
    nearly = [(rank, rate, {STEPS: 0.2 if rank <= 2 else 0.205}) for rank, rate, _ in search(0.0)]
    assert gate(nearly, metric="loss").answer == "not known"


SPACE = """
version: 1
study: topics
model: ./model
task: {type: classification, data: rows.jsonl, metric: accuracy, evaluate_rows: 500}
space:
  rank: {type: int, low: 1, high: 16}
  learning_rate: {type: float, low: 1.0e-5, high: 1.0, log: true}
search: {steps: 100, evaluate_every: 50}
"""


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """A search in which low ranks are better, in a real database."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with open_database(fresh_sqlite(tmp_path), create=False) as database:
        with StudyLease(database, "topics") as lease:
            lease.take(SPACE, "a" * 64, {"folder": "/nowhere"})
        study = optuna.create_study(study_name="topics", storage=database.optuna_storage(), direction="maximize")
        store = database.store("topics")
        store.add_event("ground", {"rows": {"validation": 2000}, "model_parameters": 1000})
        made = [(rank, 8e-3 / rank * factor, 0.99 - rank / 50) for rank in (1, 8) for factor in (0.5, 0.8, 1.1, 1.4)]
        study.add_trials(
            create_trial(
                params={"rank": rank, "learning_rate": rate},
                distributions={"rank": IntDistribution(1, 16), "learning_rate": FloatDistribution(1e-5, 1.0, log=True)},
                value=value,
                intermediate_values={STEPS: value},
            )
            for rank, rate, value in made
        )
        store.add_measurements(
            [Measurement(trial=n, step=STEPS, metrics={"accuracy": value}) for n, (_, _, value) in enumerate(made)]
        )
        yield database


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code == 0


def test_report_best_and_suggest_say_so(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    gate = rank_gate(database, recorded_spec(database, "topics"))
    assert gate is not None
    assert gate.answer == "does not bind"
    frame = study_frame(database, recorded_spec(database, "topics"))
    page = render(frame).texts["markdown"]
    assert "Rank does not bind here; train at rank 1 with rate" in page
    for command in ("best", "suggest"):
        run(command, "topics", "--db", database.url)
        assert gate.headline in capsys.readouterr().out
    run("best", "topics", "--db", database.url, "--json")
    assert json.loads(capsys.readouterr().out)["rank_gate"] == gate.as_dict()


def test_a_verification_has_the_last_word(database: Database) -> None:
    store = VerificationStore(database, "topics")
    store.begin(1, {})
    spec = recorded_spec(database, "topics")
    store.finish(1, {"headline": "a result as older versions wrote it"})
    before = rank_gate(database, spec)
    store.begin(2, {})
    answer = RankGate(answer="binds", evidence="by test rows", source="verification")
    store.finish(2, {"rank": answer.as_dict()})
    assert before is not None
    assert (before.source, rank_gate(database, spec)) == ("search", answer)
