"""A verification of a winner whose adapter was squeezed: its cuts, a lower rank, rows as a sample, and resuming."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from automl.outcomes import decoded
from automl.storage.lease import StudyLease
from automl.storage.squeezes import CutRow, ModuleRow, SqueezeRow, store_squeeze
from automl.storage.verification import Verification, VerificationStore
from automl.sweep.run import run_sweep
from automl.verify.run import VerifyOptions, verify_study
from tests.verify.acting import On, acting
from tests.verify.test_verified_search import GOOD, World, planted

SEEDS = 3
MODULES = [f"bert.encoder.layer.{layer}.attention.self.{kind}" for layer in (0, 1) for kind in ("query", "value")]
COST = 64
"""Parameters of one rank in one module of the tiny model."""


def squeeze(world: World, knee: int) -> None:
    """Record that the winner's adapter can be cut to so many parameters, whatever it really is."""
    size = 8 * COST * len(MODULES)
    cuts = [("whole", size), ("global", knee)]
    row = SqueezeRow(
        trial=0,
        adapter_sha256="a" * 64,
        metric="accuracy",
        margin=0.01,
        rows=24,
        seen=192,
        knee=knee,
        recovery_steps=0,
        seconds=1.0,
        cuts=tuple(
            CutRow(kind=kind, parameters=size, even_rank=1.0, kept=1.0, value=0.9, metrics={"accuracy": 0.9})  # type: ignore[arg-type]
            for kind, size in cuts
        ),
        modules=tuple(
            ModuleRow(module=name, in_features=32, out_features=32, rank=8, knee_rank=2, strengths=(1.0,) * 8)
            for name in MODULES
        ),
    )
    with world.database() as database, StudyLease(database, "tiny") as lease:
        recorded = database.store("tiny").sweep()
        lease.claim(recorded.space_text, recorded.space_sha256, recorded.provenance)
        store_squeeze(database, "tiny", row, guard=lease.verify)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("squeezed")
    spec = planted(folder, [GOOD], steps=120)
    run_sweep(spec, folder / "cache")
    found = World(spec, folder / "cache")
    squeeze(found, knee=2 * COST * len(MODULES))
    return found


class Stopped(Exception):
    """As if the process were killed."""


def kill() -> None:
    raise Stopped


@pytest.fixture(scope="module")
def verified(world: World) -> Verification:
    """Killed after the first scores on test rows, and gone on with; meanwhile the adapter was squeezed again."""
    options = VerifyOptions(seeds=SEEDS, finalists=1, squeeze="auto")
    with pytest.raises(Stopped), world.database() as database, acting(On("default, seed", kill)):
        verify_study(database, world.spec, world.cache, options)
    squeeze(world, knee=4 * COST * len(MODULES))
    with world.database() as database:
        return verify_study(database, world.spec, world.cache, options)


def test_its_arms_are_the_whole_a_lower_rank_and_two_cuts(verified: Verification) -> None:
    assert verified.number == 1
    assert verified.result is not None
    arms = {arm["name"]: arm for arm in verified.result["arms"]}
    assert list(arms) == ["trial-0", "default", "rank-2", "squeezed", "even-cut"]
    assert all(len(arm["scores"]) == SEEDS for arm in arms.values())
    whole = arms["trial-0"]["trainable_params"]
    assert whole - arms["squeezed"]["trainable_params"] == (8 - 2) * COST * len(MODULES)
    assert arms["squeezed"]["trainable_params"] == arms["rank-2"]["trainable_params"]
    pairs = [(each["arm"], each["against"]) for each in verified.result["comparisons"]]
    assert [pair for pair in pairs if pair[0] == "squeezed"] == [
        ("squeezed", "trial-0"),
        ("squeezed", "rank-2"),
        ("squeezed", "even-cut"),
    ]


def test_no_cut_is_trained(verified: Verification, world: World) -> None:
    with world.database() as database:
        scores = VerificationStore(database, "tiny").scores(verified.number)
    trained = {score.arm for score in scores if score.metric == "seconds"}
    assert trained == {"trial-0", "default", "rank-2"}


def test_the_result_says_what_to_deploy_and_whether_rank_binds(verified: Verification, world: World) -> None:
    assert verified.result is not None
    deploy, rank = verified.result["deploy"], verified.result["rank"]
    assert deploy["arm"] in {"trial-0", "squeezed", "rank-2"}
    assert "cut globally" in deploy["text"]
    assert "trained at rank 2" in deploy["text"]
    assert rank["source"] == "verification"
    page = (Path(world.spec.run.output) / "tiny" / "report.md").read_text(encoding="utf-8")
    assert "the winner cut globally" in page
    json.dumps(verified.result, allow_nan=False)


def test_rows_and_fresh_seeds_on_validation_rows_are_kept(verified: Verification, world: World) -> None:
    assert verified.result is not None
    rows = verified.plan["test_rows"]
    with world.database() as database:
        told = VerificationStore(database, "tiny").outcomes(verified.number)
        scores = VerificationStore(database, "tiny").scores(verified.number)
    by_key = {(each.arm, each.seed): decoded(each.outcomes) for each in told}
    assert len(by_key) == 5 * SEEDS
    accuracies = {(s.arm, s.seed): s.value for s in scores if (s.metric, s.split) == ("accuracy", "test")}
    assert all(sum(found.rows) / rows == pytest.approx(accuracies[key]) for key, found in by_key.items())
    assert all(each["row_error"] is None or each["row_error"] > 0.0 for each in verified.result["comparisons"])
    assert any(each["row_error"] for each in verified.result["comparisons"])
    optimism = verified.result["selection_optimism"]
    fresh = [s.value for s in scores if (s.arm, s.metric, s.split) == ("trial-0", "accuracy", "validation")]
    assert optimism["fresh"] == pytest.approx(sum(fresh) / SEEDS)
    assert optimism["low"] < optimism["optimism"] == pytest.approx(optimism["validation"] - optimism["fresh"])


def test_the_same_command_again_knows_the_result_until_the_cut_is_another(world: World, verified: Verification) -> None:
    assert verified.result is not None
    squeeze(world, knee=2 * COST * len(MODULES))
    assert world.verify(seeds=SEEDS, finalists=1, squeeze="auto").number == verified.number


def test_a_plan_without_cuts_is_recorded_as_before_there_were_any(world: World) -> None:
    found = world.verify(seeds=SEEDS, finalists=1)
    assert found.result is not None
    assert all("cut" not in arm for arm in found.plan["arms"])
    assert [arm["name"] for arm in found.plan["arms"]] == ["trial-0", "default"]
    assert (found.result["deploy"], found.result["rank"]) == (None, None)


def test_what_was_begun_with_other_rates_for_lower_ranks_is_finished_so(world: World) -> None:
    options = VerifyOptions(seeds=SEEDS, finalists=1, squeeze="all")
    begun = _killed(world, options)
    with closing(sqlite3.connect(world.spec.storage_url.removeprefix("sqlite:///"))) as connection, connection:
        text = json.dumps(_at_twice_the_rates(begun))
        connection.execute("UPDATE automl_verifications SET plan = ? WHERE number = ?", (text, begun.number))
    assert _killed(world, options).number == begun.number


def _killed(world: World, options: VerifyOptions) -> Verification:
    """A verification that is killed after its first score."""
    with world.database() as database:
        with pytest.raises(Stopped), acting(On("1 of ", kill)):
            verify_study(database, world.spec, world.cache, options)
        found = VerificationStore(database, "tiny").latest()
    assert found is not None
    return found


def _at_twice_the_rates(begun: Verification) -> dict[str, Any]:
    """Its plan, as a version had made it that raised the rates of lower ranks by another law."""
    plan: dict[str, Any] = json.loads(json.dumps(begun.plan))
    lower = [arm for arm in plan["arms"] if arm["kind"] == "lower"]
    assert len(lower) == 2
    for arm in lower:
        arm["learning_rates"] = [2.0 * rate for rate in arm["learning_rates"]]
        arm["hyper"]["learning_rate"] *= 2.0
    return plan
