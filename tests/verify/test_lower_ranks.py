"""Ranks below the winner's, each at its own rate: how they are made, and what is said of whether rank binds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from automl.results.rank_gate import Lean, RankGate
from automl.verify.arms import choose_arms, choose_comparisons, lower_ranks
from automl.verify.conclude import conclude
from automl.verify.plan import GRID, Arm, Plan, Training
from automl.verify.statistics import LEVEL, joint_level
from tests.verify.test_arms import ADALORA, DERIVE, SPACE, Candidates, candidates, trial
from tests.verify.verify_cases import arm, make_plan, noisy, run


def test_a_lower_rank_keeps_the_scaling_and_tunes_around_a_higher_rate() -> None:
    (quarter, half) = candidates(trial(0, 0.9, rank=16, learning_rate=1e-3)).lower_ranks([4, 8])
    assert [(each.name, each.hyper.rank, each.hyper.scaling) for each in (quarter, half)] == [
        ("rank-4", 4, 2.0),
        ("rank-8", 8, 2.0),
    ]
    assert quarter.learning_rates == pytest.approx([factor * 2e-3 for factor in GRID])
    assert half.learning_rates == pytest.approx([factor * 2**0.5 * 1e-3 for factor in GRID])
    assert quarter.trainable_params < half.trainable_params
    assert quarter.called == "rank 4 at its own rate"


def test_its_rate_is_that_of_the_search_where_enough_trials_had_about_the_rank() -> None:
    tried = [trial(number, 0.8 - number / 100, rank=4 + number % 2, learning_rate=4e-3) for number in range(1, 6)]
    (found,) = candidates(trial(0, 0.9, rank=16), *tried).lower_ranks([4])
    assert found.learning_rates == pytest.approx([4e-3 * (5 / 4) ** 0.5])  # the best of them has rank 5
    (tuned,) = candidates(trial(0, 0.9, rank=16), *tried[:4]).lower_ranks([4])
    assert len(tuned.learning_rates) == len(GRID)
    others = [replace(each, params={**each.params, "target": "qv"}) for each in tried]
    assert len(candidates(trial(0, 0.9, rank=16), *others).lower_ranks([4])[0].learning_rates) == len(GRID)


def test_a_lower_rank_keeps_alpha_where_the_space_does_and_then_the_rate() -> None:
    space = replace(SPACE, fixed={"alpha": 16})
    for rslora, factor in ((False, 1.0), (True, 2**0.5)):
        fixed = {**space.fixed, "use_rslora": rslora}
        trials = [trial(0, 0.9, rank=16, learning_rate=1e-3)]
        found = Candidates(trials, replace(space, fixed=fixed), DERIVE, metric="accuracy", rows=100)
        (quarter,) = found.lower_ranks([4])
        assert (quarter.hyper.rank, quarter.hyper.alpha) == (4, 16.0)
        assert quarter.learning_rates == pytest.approx([each * factor * 1e-3 for each in GRID])


def test_at_a_fixed_alpha_a_found_rate_is_that_of_its_rank() -> None:
    tried = [trial(number, 0.8 - number / 100, rank=5, learning_rate=4e-3) for number in range(1, 6)]
    space = replace(SPACE, fixed={"alpha": 16})
    found = Candidates([trial(0, 0.9, rank=16), *tried], space, DERIVE, metric="accuracy", rows=100)
    assert found.lower_ranks([4])[0].learning_rates == (4e-3,)


def test_below_rank_1_and_beside_adalora_there_is_none() -> None:
    assert candidates(trial(0, 0.9, rank=1)).lower_ranks(lower_ranks(1, "all")) == []
    assert Candidates([trial(0, 0.9)], ADALORA, DERIVE, metric="accuracy", rows=100).lower_ranks([2]) == []
    assert (lower_ranks(16, "off"), lower_ranks(16, "cuts")) == ([], [])
    assert (lower_ranks(16, "auto"), lower_ranks(2, "auto")) == ([4], [1])
    assert lower_ranks(16, "all") == [4, 8]


def test_lower_ranks_are_a_question_of_their_own() -> None:
    found = choose_arms(candidates(trial(0, 0.9, rank=16)), finalists=1, squeeze="all")
    assert [each.kind for each in found] == ["finalist", "default", "lower", "lower"]
    levels = {(each.arm, each.against): each.level for each in choose_comparisons(found)}
    assert levels == {
        ("trial-0", "default"): LEVEL,
        ("rank-4", "trial-0"): joint_level(2),
        ("rank-8", "trial-0"): joint_level(2),
    }


WINNER = arm("trial-3", "finalist", params=4000)


def lower(rank: int) -> Arm:
    made = arm("trial-3", "lower", params=250 * rank, rates=(4e-3,))
    return replace(made, name=f"rank-{rank}", hyper=replace(made.hyper, rank=rank))


def result(effects: Mapping[str, float], *, sd: float = 0.001, seeds: int = 4) -> dict[str, Any]:
    winner = replace(WINNER, hyper=replace(WINNER.hyper, rank=16))
    plan = make_plan([winner, lower(4), lower(8)], seeds=seeds, rows=4000)
    return conclude(plan, run(plan, noisy(effects, sd=sd, study=3))[0])


def test_rank_does_not_bind_where_the_low_one_is_shown_not_to_be_worse() -> None:
    found = result({"rank-4": 0.001})
    gate = RankGate.from_dict(found["rank"])
    assert (gate.answer, gate.source, gate.rank, gate.learning_rate) == ("does not bind", "verification", 4, 4e-3)
    assert gate.alpha == WINNER.hyper.alpha
    assert found["headline"].endswith("Rank does not bind here; train at rank 4 with rate 0.004.")
    assert found["recommendation"]["arm"] == "rank-4"
    assert "rank 4 at rate 0.004 against trial 3 of rank 16: accuracy better by +0.00" in gate.evidence


def test_the_lowest_rank_that_suffices_is_advised() -> None:
    assert RankGate.from_dict(result({"rank-4": -0.1})["rank"]).rank == 8


def test_rank_binds_where_half_of_it_is_worse() -> None:
    found = result({"rank-4": -0.1, "rank-8": -0.05})
    assert RankGate.from_dict(found["rank"]).headline == "rank binds here: lower ranks are worse"
    assert found["headline"].endswith("Rank binds here: lower ranks are worse.")


def test_otherwise_it_says_how_many_seeds_would_tell() -> None:
    gate = RankGate.from_dict(result({}, sd=0.02)["rank"])
    assert (gate.answer, gate.rank) == ("not known", None)
    assert "seeds would decide (it had 4)" in gate.evidence


def test_what_is_not_proven_leans_to_the_likelier_side() -> None:
    found = result({"rank-4": -0.1, "rank-8": -0.015}, sd=0.02)
    gate = RankGate.from_dict(found["rank"])
    assert (gate.answer, gate.rank, gate.lean and gate.lean.rank) == ("not known", None, 8)
    assert gate.lean is not None
    assert gate.lean.towards == "does not bind"
    assert 0.7 < gate.lean.probability < 0.9
    assert gate.headline == (
        f"not proven; most likely rank does not bind (probability {gate.lean.probability:.2f} by 4 seeds; about"
        f" {gate.lean.seeds_to_decide} seeds would decide): train at rank 8 with rate 0.004"
    )
    assert found["headline"].endswith(f"N{gate.headline[1:]}.")
    assert found["rank"]["lean"]["towards"] == "does not bind"
    (of_rank_8,) = (each for each in found["recommendation"]["candidates"] if each["arm"] == "rank-8")
    assert of_rank_8["probability"] == gate.lean.probability


def test_what_is_shown_worse_below_an_undecided_rank_proves_nothing() -> None:
    # Rank 4 is worse beyond doubt, yet likely by less than the margin; whether rank 8 is worse is open.
    winner = replace(WINNER, hyper=replace(WINNER.hyper, rank=16))
    plan = make_plan([winner, lower(4), lower(8)], seeds=8, rows=40_000)
    gains = {
        "rank-4": [-0.0055, -0.0115] * 4,
        "rank-8": [-0.04, 0.02, -0.03, 0.01] * 2,
    }

    def scorer(training: Training) -> float:
        return 0.9 + gains.get(training.arm, [0.0] * 8)[plan.seeds.index(training.seed)]

    gate = RankGate.from_dict(conclude(plan, run(plan, scorer)[0])["rank"])
    assert (gate.answer, gate.lean and gate.lean.rank) == ("not known", 8)


def test_what_was_begun_keeps_the_alphas_and_rates_of_its_lower_ranks() -> None:
    def made(alpha: float, rate: float) -> Plan:
        rates = tuple(factor * rate for factor in GRID)
        each = lower(4)
        hyper = replace(each.hyper, alpha=alpha, learning_rate=rate)
        return make_plan([WINNER, replace(each, hyper=hyper, learning_rates=rates)], seeds=4)

    before, now = json.loads(json.dumps(made(4.0, 2e-3).as_dict())), made(16.0, 1e-3)
    assert now.as_dict() != before
    assert now.as_begun(before) == made(4.0, 2e-3)
    assert now.as_begun(before).as_dict() == before
    assert now.as_begun(make_plan([WINNER], seeds=4).as_dict()) == now


def test_it_leans_to_worse_alike() -> None:
    gate = RankGate.from_dict(result({"rank-4": -0.1, "rank-8": -0.035}, sd=0.02)["rank"])
    assert (gate.answer, gate.lean and gate.lean.towards) == ("not known", "binds")
    assert gate.headline.startswith("not proven; most likely rank binds (probability 0.")


def test_results_of_versions_that_knew_no_lean_are_read() -> None:
    old = {"answer": "not known", "evidence": "e", "source": "verification", "rank": None, "learning_rate": None}
    assert RankGate.from_dict(old).headline == "whether rank binds here is not known"


@pytest.mark.parametrize(("probability", "side"), [(0.6, "does not bind"), (0.59, None), (0.41, None), (0.4, "binds")])
def test_near_a_half_nothing_is_said(probability: float, side: str | None) -> None:
    lean = Lean(probability=probability, rank=4, learning_rate=4e-3, alpha=8.0, seeds=4, seeds_to_decide=20)
    assert lean.towards == side
    gate = RankGate(answer="not known", evidence="e", lean=lean)
    assert gate.says_something == (side is not None)
    assert RankGate.from_dict(gate.as_dict()) == gate
    if side is None:
        assert gate.headline == (
            f"whether rank binds here is not known, and nothing leans either way (probability {probability} that rank 4"
            " is not worse by 4 seeds; about 20 seeds would decide)"
        )


def test_without_lower_ranks_nothing_is_said() -> None:
    plan = make_plan([WINNER], seeds=4)
    assert conclude(plan, run(plan, noisy({}, sd=0.01, study=1))[0])["rank"] is None
