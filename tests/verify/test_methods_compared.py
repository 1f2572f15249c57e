"""Which method: the best trial of each, tuned once more, held against LoRA with what it costs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from automl.space.load import load_space
from automl.space.spec import CategoricalParameter
from automl.storage.trials import TrialRow
from automl.storage.verification import Verification
from automl.sweep.run import run_sweep
from automl.trial import PEAK_BYTES, StopReason, TrialState
from automl.verify.arms import Candidates, choose_arms, choose_comparisons, reference_of
from automl.verify.conclude import conclude
from automl.verify.plan import GRID, Arm, all_trainings, trial_spec
from automl.verify.statistics import LEVEL, joint_level
from tests.sweep.tiny_world import make_world
from tests.verify.acting import On, acting
from tests.verify.test_arms import DERIVE, SPACE, trial
from tests.verify.test_verified_search import World
from tests.verify.verify_cases import arm, make_plan, noisy, run

METHODS = ("lora", "full", "ia3")
SEVERAL = replace(SPACE, parameters=(CategoricalParameter(name="method", choices=METHODS), *SPACE.parameters))


def candidates(*trials: TrialRow) -> Candidates:
    return Candidates(trials, SEVERAL, DERIVE, metric="accuracy", rows=100)


TRIALS = (
    trial(0, 0.80, method="lora"),
    trial(1, 0.90, method="full"),
    trial(2, 0.85, method="lora", rank=4),
    trial(3, 0.60, TrialState.PRUNED, method="ia3"),
    trial(4, 0.70, TrialState.PRUNED, method="ia3", learning_rate=2e-3),
    trial(5, 0.99, TrialState.PRUNED, method="ia3", learning_rate=0.5),
)
DIVERGED = replace(TRIALS[5], stop_reason=StopReason.DIVERGED)


def test_the_best_trial_of_each_method_is_a_finalist_and_tunes_its_rate() -> None:
    found = candidates(*TRIALS[:5], DIVERGED).of_methods()
    assert [(each.hyper.method, each.trial) for each in found] == [("full", 1), ("lora", 2), ("ia3", 4)]
    assert found[0].learning_rates == tuple(factor * 1e-3 for factor in GRID)
    assert [each.called for each in found] == ["full (trial 1)", "lora (trial 2)", "ia3 (trial 4)"]


def test_further_finalists_fill_what_is_left_and_no_configuration_is_there_twice() -> None:
    found = candidates(*TRIALS)
    assert [each.kind for each in choose_arms(found, finalists=1)] == ["method", "method", "method", "default"]
    four = choose_arms(found, finalists=4)  # the third complete one beside the best of the others
    assert [(each.kind, each.trial) for each in four[:3]] == [("method", 1), ("method", 2), ("method", 5)]
    assert len({each.hyper for each in four}) == len(four)
    assert ("finalist", 0) in [(each.kind, each.trial) for each in choose_arms(found, finalists=6)]


def test_where_one_method_is_searched_nothing_changes() -> None:
    one = Candidates([trial(0, 0.9), trial(1, 0.8, rank=4)], SPACE, DERIVE, metric="accuracy", rows=100)
    assert one.of_methods() == []
    assert choose_arms(one, finalists=2) == choose_arms(one, finalists=2, methods=False)
    assert reference_of(choose_arms(one, finalists=2)) is None
    assert (
        conclude(plan := make_plan(choose_arms(one, finalists=1), seeds=3), run(plan, noisy({}, sd=0.01, study=1))[0])[
            "methods"
        ]
        is None
    )


def test_all_methods_are_held_against_lora_jointly() -> None:
    pairs = {
        (each.arm, each.against): each.level
        for each in choose_comparisons(choose_arms(candidates(*TRIALS), finalists=1))
    }
    assert pairs == {
        ("trial-1", "default"): LEVEL,
        ("trial-1", "trial-2"): joint_level(2),
        ("trial-5", "trial-2"): joint_level(2),
    }


def test_without_lora_they_are_held_against_the_winner() -> None:
    found = choose_arms(candidates(TRIALS[1], TRIALS[4]), finalists=1)
    assert [(each.arm, each.against) for each in choose_comparisons(found)][-1] == ("trial-4", "trial-1")


def method(name: str, trial_number: int, *, params: int) -> Arm:
    made = arm(f"trial-{trial_number}", "method", params=params, rates=(5e-4, 1e-3, 2e-3))
    return replace(made, hyper=replace(made.hyper, method=name))


ARMS = [method("full", 1, params=9000), method("lora", 2, params=400), method("ia3", 3, params=90)]


def concluded(effects: Mapping[str, float]) -> dict[str, Any]:
    plan = make_plan([*ARMS, arm("default", "default")], seeds=6, rows=4000)
    return conclude(plan, run(plan, noisy(dict(effects), sd=0.002, study=5))[0])


def answer(effects: Mapping[str, float]) -> dict[str, Any]:
    found: dict[str, Any] = concluded(effects)["methods"]
    return found


def test_the_answer_names_what_is_better_what_is_worse_and_what_is_open() -> None:
    found = answer({"trial-1": 0.05, "trial-3": -0.05})
    assert found["reference"] == "lora"
    assert [(row["method"], row["verdict"]) for row in found["rows"]] == [
        ("full", "better"),
        ("lora", None),
        ("ia3", "worse"),
    ]
    assert found["text"].startswith("full has the best mean, accuracy 0.8")
    assert "better is full (+0.0" in found["text"]
    assert "worse is ia3 (-0.0" in found["text"]
    assert "no clear difference: full (" in answer({"trial-3": -0.05})["text"]


def test_the_headline_says_it_once() -> None:
    found = concluded({"trial-1": 0.05, "trial-3": -0.05})
    assert found["headline"].startswith("Full (trial 1) against the default configuration: better")
    assert found["headline"].count("full") == 2  # the best mean, and better
    assert found["headline"].endswith(found["methods"]["text"])
    assert found["recommendation"]["best"] == "trial-1"


def test_each_method_is_tuned_on_one_seed_that_no_arm_is_scored_on() -> None:
    plan = make_plan(ARMS, seeds=3)
    tuning = [each for each in all_trainings(plan) if each.split == "validation"]
    assert {each.seed for each in tuning} == {plan.tuning_seeds[0]}
    assert not {each.seed for each in tuning} & set(plan.seeds)
    assert len(tuning) == len(ARMS) * len(GRID)
    _, made = run(plan, noisy({}, sd=0.01, study=2))
    assert len(made) == len(tuning) + len(ARMS) * 3
    assert [each.split for each in made[: len(tuning)]] == ["validation"] * len(tuning)


def test_the_memory_of_a_method_is_asked_for_once() -> None:
    plan = make_plan([*ARMS, arm("default", "default")], seeds=3)
    asked = [
        (each.arm, each.seed)
        for each in all_trainings(plan)
        if (wanted := trial_spec(plan, each, 0).examination) is not None and wanted.memory
    ]
    assert set(asked) == {(each.name, plan.seeds[0]) for each in ARMS}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("methods")
    trials = [
        {"method": "lora", "rank": 8, "learning_rate": 0.01},
        {"method": "full", "learning_rate": 0.002},
        {"method": "ia3", "learning_rate": 0.02},
    ]
    path = make_world(folder, trials=3, steps=15)
    text = path.read_text(encoding="utf-8").replace(
        "space:\n",
        "space:\n  method: {type: categorical, choices: [lora, full, ia3]}\n"
        "  learning_rate.full: {type: float, low: 1.0e-4, high: 1.0e-1, log: true}\n",
    )
    text = text.replace("run: {executor", f"run: {{output: '{folder}/out', executor")
    text += f"enqueue: {json.dumps(trials)}\nstorage: {{url: 'sqlite:///{folder}/automl.db'}}\n"
    path.write_text(text, encoding="utf-8")
    spec = load_space(path)
    run_sweep(spec, folder / "cache")
    return World(spec, folder / "cache")


class Stopped(Exception):
    """As if the process were killed."""


def kill() -> None:
    raise Stopped


@pytest.fixture(scope="module")
def begun_before(world: World) -> Verification:
    """One that a version began that did not compare methods, killed after its first score, and gone on with."""
    with pytest.raises(Stopped), acting(On("1 of ", kill)):
        world.verify(seeds=3, finalists=1, methods=False)
    return world.verify(seeds=3, finalists=1)


@pytest.fixture(scope="module")
def verified(world: World, begun_before: Verification) -> Verification:
    return world.verify(seeds=3, finalists=1)


def test_what_was_begun_without_methods_is_finished_so(begun_before: Verification, verified: Verification) -> None:
    assert begun_before.result is not None
    assert begun_before.result["methods"] is None
    assert "method" not in {each["kind"] for each in begun_before.plan["arms"]}
    assert (begun_before.number, verified.number) == (1, 2)


def test_a_search_over_methods_ends_in_one_table(verified: Verification) -> None:
    assert verified.result is not None
    found = verified.result["methods"]
    rows = {row["method"]: row for row in found["rows"]}
    assert rows.keys() == set(METHODS)
    assert all(row["learning_rate"] in row["learning_rates"] and row["seeds"] == 3 for row in rows.values())
    assert all(row["seconds"] > 0.0 for row in rows.values())
    assert rows["full"]["trainable_params"] > rows["lora"]["trainable_params"] > rows["ia3"]["trainable_params"]
    assert rows["full"]["peak_bytes"] > 16 * rows["full"]["trainable_params"]  # value, gradient and two moments
    assert rows["full"]["peak_bytes"] > rows["lora"]["peak_bytes"] > rows["ia3"]["peak_bytes"] > 0
    assert json.loads(json.dumps(found)) == found
    scored = [each for each in verified.plan["arms"] if each["kind"] == "method"]
    assert [each["hyper"]["method"] for each in scored].count("lora") == 1
    assert PEAK_BYTES not in found
