"""Searches of planted configurations, verified: what is said of them, and that nothing but this reads the test rows."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from automl.errors import ConfigError, DataError, SpaceChangedError
from automl.setup.machine import Layout
from automl.setup.packing import Packing, host_settings
from automl.setup.prepare import prepare
from automl.space.load import load_space
from automl.space.spec import SweepSpec
from automl.storage.sql import Database, open_database
from automl.storage.trials import list_trials
from automl.storage.verification import Score, Verification, VerificationStore, latest
from automl.study.seeding import trial_seed
from automl.sweep.run import run_sweep
from automl.tasks import make_task
from automl.verify.plan import fingerprint
from automl.verify.protocol import SECONDS
from automl.verify.run import VerifyOptions, obstacle, verify_study
from tests.faults.kill import WORKER_TITLES, title
from tests.sweep.tiny_world import make_world

GOOD = {"rank": 8, "learning_rate": 0.01, "weight_decay": 0.01}
COPY = {**GOOD, "weight_decay": 0.0100000001}
"""The same configuration under another name."""

ROOT = Path(__file__).resolve().parents[2]


class World(NamedTuple):
    spec: SweepSpec
    cache: Path

    @contextmanager
    def database(self) -> Iterator[Database]:
        with open_database(self.spec.storage_url, create=False) as database:
            yield database

    def verify(self, **options: Any) -> Verification:
        with self.database() as database:
            return verify_study(database, self.spec, self.cache, VerifyOptions(**options))

    def values(self) -> list[float | None]:
        """Validation values of the search."""
        with self.database() as database:
            return [row.value for row in list_trials(database, self.spec.study)]


def planted(folder: Path, trials: Sequence[dict[str, Any]], *, steps: int = 120, labels: str = "true") -> SweepSpec:
    """A space whose trials are these configurations. labels: true, or shuffled (nothing can be learnt)."""
    path = make_world(folder, trials=len(trials), steps=steps)
    text = path.read_text(encoding="utf-8").replace(
        "space:\n", "space:\n  weight_decay: {type: float, low: 0.0, high: 0.1}\n"
    )
    text += f"enqueue: {json.dumps(trials)}\nstorage: {{url: 'sqlite:///{folder}/automl.db'}}\n"
    text = text.replace("run: {executor", f"run: {{output: '{folder}/out', executor")
    path.write_text(text, encoding="utf-8")
    if labels == "shuffled":
        data = folder / "data.jsonl"
        rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
        drawn = [row["label"] for row in rows]
        random.Random(5).shuffle(drawn)
        lines = [json.dumps({**row, "label": label}) for row, label in zip(rows, drawn, strict=True)]
        data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return load_space(path)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A search over one good configuration, twice."""
    folder = tmp_path_factory.mktemp("planted")
    spec = planted(folder, [GOOD, COPY])
    run_sweep(spec, folder / "cache")
    return World(spec, folder / "cache")


@pytest.fixture(scope="module")
def verified(world: World) -> Verification:
    return world.verify(seeds=4, finalists=2)


def compared(found: Verification) -> dict[tuple[str, str], dict[str, Any]]:
    assert found.result is not None
    return {(each["arm"], each["against"]): each for each in found.result["comparisons"]}


def winner(found: Verification) -> int:
    """Number of the trial that the search took for the best: chance decides between the copies."""
    return int(found.plan["arms"][0]["trial"])


def test_two_copies_are_not_clearly_different(verified: Verification) -> None:
    best = winner(verified)
    assert compared(verified)[f"trial-{1 - best}", f"trial-{best}"]["verdict"] == "no clear difference"


def test_a_clearly_better_learning_rate_is_better_after_few_seeds(verified: Verification) -> None:
    found = compared(verified)[f"trial-{winner(verified)}", "default"]  # learning rate 0.01 against 2e-4
    assert (found["verdict"], found["seeds"], found["wins"]) == ("better", 4, 4)
    assert found["low"] > 0.1


def test_the_result_has_the_keys_that_others_read(verified: Verification, world: World) -> None:
    result = verified.result
    assert result is not None
    assert set(result) == {
        *("metric", "majority", "beats_majority", "headline", "seeds", "planned_seeds", "arms", "comparisons"),
        *("selection_optimism", "recommendation", "deploy", "methods", "suggestion", "rank"),
    }
    assert result["metric"] == {"name": "accuracy", "direction": "maximize"}
    assert result["beats_majority"] is True
    best = winner(verified)
    assert result["headline"].startswith(f"Trial {best} against the default configuration: better, accuracy +0.")
    assert [arm["name"] for arm in result["arms"]] == [f"trial-{best}", f"trial-{1 - best}", "default"]
    assert all(len(arm["scores"]) == 4 and arm["seconds"] > 0 for arm in result["arms"])
    optimism = result["selection_optimism"]
    assert optimism["validation"] == world.values()[best]
    assert optimism["optimism"] == pytest.approx(optimism["validation"] - optimism["fresh"])
    assert optimism["low"] < optimism["optimism"] < optimism["high"]
    assert result["recommendation"]["arm"] in ("trial-0", "trial-1")
    assert result["suggestion"] == {"status": "not_run"}
    json.dumps(result, allow_nan=False)


def test_the_summary_says_what_was_verified_and_what_is_recommended(verified: Verification, world: World) -> None:
    assert verified.result is not None
    page = (world.spec.run.output / world.spec.study / "summary.md").read_text(encoding="utf-8")
    assert "untouched" not in page
    assert verified.result["headline"] in page
    assert f"**Recommended: {verified.result['recommendation']['text']}**" in page
    values = json.loads((world.spec.run.output / world.spec.study / "summary.json").read_text(encoding="utf-8"))
    assert values["verification"]["recommendation"] == verified.result["recommendation"]


def test_the_same_verification_is_not_made_twice_and_another_one_has_fresh_seeds(
    verified: Verification, world: World
) -> None:
    assert world.verify(seeds=4, finalists=2) == verified
    with world.database() as database:
        assert latest(database, world.spec.study) == verified
        other = verify_study(database, world.spec, world.cache, VerifyOptions(seeds=3, finalists=1))
        search = {trial_seed(world.spec.search.seed, number) for number in range(2)}
    assert other.number == verified.number + 1
    first, second = (set(plan["seeds"]) | set(plan["tuning_seeds"]) for plan in (verified.plan, other.plan))
    assert not first & second
    assert not (first | second) & search


def test_another_margin_is_another_verification(verified: Verification, world: World) -> None:
    assert verified.plan["margin"] == 0.01
    other = world.verify(seeds=3, finalists=1, margin=0.4)
    assert (other.plan["margin"], other.number > verified.number) == (0.4, True)
    assert other.result is not None
    assert other.result["recommendation"]["margin"] == 0.4


def test_a_spent_budget_ends_it_after_the_first_stage(verified: Verification, world: World) -> None:
    found = world.verify(seeds=3, finalists=1, budget_seconds=1e-3)
    assert found.result is not None
    assert (len(found.result["seeds"]), found.result["planned_seeds"]) == (3, 24)
    assert [each["level"] for each in found.result["comparisons"]] == [pytest.approx(0.99)]
    assert world.verify(seeds=3, finalists=1, budget_seconds=1e-3) == found


@pytest.mark.parametrize("margin", [0.0, -0.1, 0.5, float("nan")])
def test_a_margin_that_is_no_difference_of_the_metric_is_refused(world: World, margin: float) -> None:
    with pytest.raises(
        ConfigError, match=r"margin: \S+ is no difference of accuracy: it must be above 0 and below 0\.5"
    ):
        world.verify(seeds=3, margin=margin)


def test_shuffled_labels_beat_no_majority_class(tmp_path: Path) -> None:
    spec = planted(tmp_path, [GOOD], steps=20, labels="shuffled")
    run_sweep(spec, tmp_path / "cache")
    result = World(spec, tmp_path / "cache").verify(seeds=3, finalists=1).result
    assert result is not None
    assert result["headline"].startswith("No configuration beats the majority class: accuracy 0.")
    assert result["beats_majority"] is False
    assert result["recommendation"]["arm"] is None


def test_the_workers_of_a_search_cannot_ask_for_test_rows(world: World) -> None:
    inputs = prepare(world.spec, world.cache)
    layout = Layout(workers=1, threads=1, device="cpu")
    settings = host_settings(world.spec, inputs, layout, Packing(slots=1))
    task = make_task(settings.task)
    assert settings.judged_on == "validation"
    with pytest.raises(DataError, match="the test rows are kept from a search"):
        task.rows(settings.prepared, "test")


def test_a_search_finds_the_same_without_any_test_rows_on_disk(world: World, tmp_path: Path) -> None:
    spec = planted(tmp_path, [GOOD, COPY])
    inputs = prepare(spec, tmp_path / "cache")
    shutil.rmtree(inputs.prepared.path / "test")
    run_sweep(spec, tmp_path / "cache")
    assert World(spec, tmp_path / "cache").values() == world.values()


def test_the_plan_holds_the_fingerprint_of_the_test_rows(verified: Verification, world: World) -> None:
    prepared = prepare(world.spec, world.cache).prepared
    rows = make_task(world.spec.task).rows(prepared, "test")
    assert verified.plan["test"] == fingerprint(rows)
    assert verified.plan["test_rows"] == len(rows) == prepared.rows["test"]
    assert fingerprint([*rows[1:], rows[0]]) != fingerprint(rows)
    train = make_task(world.spec.task).rows(prepared, "train")
    assert not {tuple(row["input_ids"]) for row in rows} & {tuple(row["input_ids"]) for row in train}


def test_other_test_rows_than_at_the_search_are_refused(world: World, tmp_path: Path) -> None:
    data = Path(world.spec.task.data.files["train"])
    before = data.read_bytes()
    data.write_bytes(before + b'{"text": "w3 w20 w31", "label": "negative"}\n')
    try:
        with pytest.raises(SpaceChangedError, match="the data of study 'tiny' changed since its search"):
            world.verify(seeds=3)
    finally:
        data.write_bytes(before)


def test_a_study_without_test_rows_says_so(tmp_path: Path) -> None:
    spec = planted(tmp_path, [GOOD], steps=5)
    path = Path(spec.source)
    path.write_text(path.read_text(encoding="utf-8").replace("  seed: 3\n", "  seed: 3\n  split: {test: 0.0001}\n", 1))
    spec = load_space(path)
    run_sweep(spec, tmp_path / "cache")
    with World(spec, tmp_path / "cache").database() as database:
        assert obstacle(database, spec).startswith("the data has no test rows")
        with pytest.raises(DataError, match="study 'tiny' cannot be verified: the data has no test rows"):
            verify_study(database, spec, tmp_path / "cache", VerifyOptions())


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.full  # tests/contracts/test_executor stops verifications of the same engine, and kills their workers
def test_a_killed_worker_and_a_killed_driver_change_nothing(world: World, tmp_path: Path) -> None:
    seeds = 5
    undisturbed = world.verify(seeds=seeds, finalists=1)
    with world.database() as database:
        expected = VerificationStore(database, "tiny").scores(undisturbed.number)
    shutil.copy(world.cache.parent / "automl.db", tmp_path / "copy.db")
    url = _without(tmp_path / "copy.db", undisturbed)
    command = [sys.executable, "-m", "tests.verify.drive_verification", url, "tiny", str(world.cache), str(seeds)]
    with (tmp_path / "log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=ROOT, stderr=log)
        _await_scores(process, url, undisturbed.number, 1)
        _workers(process)[0].kill()
        _await_scores(process, url, undisturbed.number, len(_stored(url, undisturbed.number)) + 1)
        workers = _workers(process)
        process.kill()
        process.wait()
    assert "died and is started again" in (tmp_path / "log").read_text(encoding="utf-8")
    _, alive = psutil.wait_procs(workers, timeout=240)
    assert not alive  # they end with their driver
    kept = _stored(url, undisturbed.number)
    assert {_key(score) for score in kept} < {_key(score) for score in expected}
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    scores = _stored(url, undisturbed.number)
    assert all(score in scores for score in kept)  # to the second: nothing that was stored was trained again
    assert _values(scores) == pytest.approx(_values(expected), rel=1e-5)  # whatever was packed with what
    with open_database(url, create=False) as database:
        found = latest(database, "tiny")
    assert found is not None
    assert found.is_done
    assert found.plan == undisturbed.plan


def _without(path: Path, verification: Verification) -> str:
    """URL of the database without anything of this verification, and with a folder of its own."""
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE automl_sweeps SET folder = ?", (str(path.parent / "out/tiny"),))
        for table, column in (("automl_verification_scores", "verification"), ("automl_verifications", "number")):
            connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (verification.number,))
    connection.close()
    return f"sqlite:///{path}"


def _await_scores(process: subprocess.Popen[bytes], url: str, number: int, count: int) -> None:
    """Until so many metrics of trainings are stored."""
    while len(_stored(url, number)) < count:
        assert process.poll() is None, f"ended with {process.returncode}"
        time.sleep(0.02)


def _workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes of this driver that train."""
    return [
        each for each in psutil.Process(process.pid).children(recursive=True) if title(each).startswith(WORKER_TITLES)
    ]


def _stored(url: str, number: int) -> list[Score]:
    with open_database(url, create=False) as database:
        return VerificationStore(database, "tiny").scores(number)


def _key(score: Score) -> tuple[str, int, float, str]:
    return score.arm, score.seed, score.learning_rate, score.metric


def _values(scores: Sequence[Score]) -> dict[tuple[str, int, float, str], float]:
    return {_key(score): score.value for score in scores if score.metric != SECONDS}
