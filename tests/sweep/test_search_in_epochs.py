"""A search that says epochs: trials of several batch sizes in one pack see as many rows, up to their verification."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from automl.training.export import verify_manifest
from tests.sweep.test_search_end_to_end import answer, automl, query
from tests.sweep.tiny_world import make_world

EPOCHS = 1.5
STUDIES = ("tiny", "second")


def rewritten(space: Path, **changes: str) -> Path:
    """The space file with other words in it."""
    text = space.read_text(encoding="utf-8")
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    space.write_text(text, encoding="utf-8")
    return space


def in_epochs(space: Path, steps: int, said: str, **changes: str) -> None:
    rewritten(space, **{f"steps: {steps}": said, **changes})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> tuple[Path, dict[str, Any]]:
    """A finished search over batch sizes, verified, and what is recorded of it."""
    folder = tmp_path_factory.mktemp("epochs")
    space = make_world(folder, trials=8, pruner="halving", slots=3, verify=True)
    batches = "space:\n  batch_size: {type: categorical, choices: [4, 16]}"
    in_epochs(
        space,
        20,
        f"epochs: {EPOCHS}",
        **{
            "high: 1.0e-1, log: true}": "high: 1.0e-1, log: true, at_alpha: 32}",
            "space:": batches,
            " batch_size: 8,": "",
            "evaluate_every: 5, ": "",
            "automatic: true": "seeds: 3",
        },
    )
    said = automl(folder, "search", "space.yaml", cache=shared_cache)
    assert said.returncode == 0, said.stderr
    return folder, ground_of(folder)


def test_every_trial_sees_as_many_rows(world: tuple[Path, dict[str, Any]]) -> None:
    folder, ground = world
    steps = math.ceil(EPOCHS * ground["rows"]["train"] / 4)
    assert ground["length"] == {"unit": "epochs", "amount": EPOCHS, "steps": steps, "step_rows": 4}
    trials = answer(automl(folder, "trials", "tiny", "--json", cache=folder))
    complete = {(row["params"]["batch_size"], row["steps"]) for row in trials if row["state"] == "COMPLETE"}
    assert complete
    assert complete <= {(4, steps), (16, math.floor(steps / 4 + 0.5))}
    grid = {step for step, _ in ground["evaluations"]}
    assert query(folder, "SELECT steps FROM automl_runs") == [(steps,)]
    assert {step for (step,) in query(folder, "SELECT DISTINCT step FROM trial_intermediate_values")} <= grid
    assert automl(folder, "doctor", "tiny", cache=folder).returncode == 0


def test_both_rates_are_told(world: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = world
    for row in answer(automl(folder, "trials", "tiny", "--json", cache=folder)):
        assert row["trained_rate"] == pytest.approx(row["params"]["learning_rate"] * math.sqrt(32 / 16))
    best = answer(automl(folder, "best", "tiny", "--json", cache=folder))
    assert best["configuration"]["learning_rate"] == best["best"]["trained_rate"]
    ((adapter,),) = query(
        folder, f"SELECT path FROM automl_artifacts WHERE trial = {best['best']['number']} AND kind = 'adapter'"
    )
    about = verify_manifest(Path(adapter))
    assert about["hyperparameters"]["learning_rate"] == best["best"]["trained_rate"]
    assert "trained at rate" in automl(folder, "trials", "tiny", cache=folder).stdout.replace("\n", " ")
    ((plan,),) = query(folder, "SELECT plan FROM automl_verifications")
    assert json.loads(plan)["arms"][0]["learning_rates"] == [best["best"]["trained_rate"]]


def test_what_was_saved_is_told_in_steps_of_each_trial(world: tuple[Path, dict[str, Any]]) -> None:
    folder, ground = world
    said = answer(automl(folder, "best", "tiny", "--json", cache=folder))
    steps = ground["length"]["steps"]
    assert said["spent_steps"] < said["full_steps"] < 8 * steps
    page = automl(folder, "report", "tiny", "--output", "report.html", cache=folder)
    assert page.returncode == 0, page.stderr
    assert "steps of 4 rows" in (folder / "report.html").read_text(encoding="utf-8")


def test_arms_of_a_verification_train_to_steps_of_their_own(world: tuple[Path, dict[str, Any]]) -> None:
    folder, ground = world
    ((plan,),) = query(folder, "SELECT plan FROM automl_verifications")
    assert json.loads(plan)["step_rows"] == 4
    assert json.loads(plan)["steps"] == ground["length"]["steps"]


def test_the_same_command_continues_with_the_same_steps(world: tuple[Path, dict[str, Any]], shared_cache: Path) -> None:
    folder, ground = world
    rewritten(folder / "space.yaml", **{"trials: 8": "trials: 9"})
    said = automl(folder, "search", "space.yaml", "--no-verify", cache=shared_cache)
    assert said.returncode == 0, said.stderr
    details = [json.loads(each) for (each,) in query(folder, "SELECT detail FROM automl_events WHERE kind = 'ground'")]
    assert [each["length"] for each in details] == [ground["length"]] * len(details)
    rewritten(folder / "space.yaml", **{f"epochs: {EPOCHS}": "epochs: 3"})
    said = automl(folder, "search", "space.yaml", cache=shared_cache)
    assert said.returncode != 0
    assert "allow-space-change" in said.stderr


def test_epochs_of_one_batch_size_are_steps_to_the_bit(tmp_path: Path, shared_cache: Path) -> None:
    searched(tmp_path / "epochs", "epochs: 1", cache=shared_cache)
    steps = ground_of(tmp_path / "epochs")["length"]["steps"]
    searched(tmp_path / "steps", f"steps: {steps}", cache=shared_cache)
    assert "length" not in ground_of(tmp_path / "steps")
    assert len(curves(tmp_path / "epochs")) >= 2 * steps // 5
    assert curves(tmp_path / "epochs") == curves(tmp_path / "steps")


def test_tokens_are_those_that_a_trial_sees(tmp_path: Path, shared_cache: Path) -> None:
    searched(tmp_path / "tokens", "tokens: 2000", cache=shared_cache)
    seen = query(tmp_path / "tokens", "SELECT MAX(tokens) FROM automl_measurements GROUP BY trial")
    assert all(2000 <= tokens <= 2000 + 8 * 12 for (tokens,) in seen)
    again = {"study: tiny": "study: second", "tokens: 2000": "tokens: 2000, learn_from: auto"}
    rewritten(tmp_path / "tokens" / "space.yaml", **again)
    result = automl(tmp_path / "tokens", "search", "space.yaml", cache=shared_cache)
    assert result.returncode == 0, result.stderr
    first, second = (automl(tmp_path / "tokens", "trials", name, "--json", cache=shared_cache) for name in STUDIES)
    (begun,) = [row for row in answer(second) if row["number"] == 0]
    assert begun["params"] == answer(first)[0]["params"]


def searched(folder: Path, said: str, *, cache: Path) -> None:
    """A search of two trials, as long as is said."""
    folder.mkdir()
    in_epochs(make_world(folder, trials=2, slots=2), 20, said)
    result = automl(folder, "search", "space.yaml", cache=cache)
    assert result.returncode == 0, result.stderr


def ground_of(folder: Path) -> dict[str, Any]:
    ((detail,),) = query(folder, "SELECT detail FROM automl_events WHERE kind = 'ground'")
    found: dict[str, Any] = json.loads(detail)
    return found


def curves(folder: Path) -> list[tuple[Any, ...]]:
    return query(folder, "SELECT trial, step, metric, value FROM automl_metric_values ORDER BY 1, 2, 3")
