"""What in-trial ends save: trials end by their own curves, searches are paired, and no task chooses its own limits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from automl.training.early_stopping import LIMITS, Limits
from benchmarks import ended_trials
from benchmarks.curve_file import WHOLE, Curve, CurveFile, Key
from benchmarks.ended_trials import NEVER, Job, falling, left_out, limits_of, results, run_job, text_of

Document = Callable[[Any, list[str]], dict[str, Any]]

EVALUATIONS = 12


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets whose trainings overfit after four of twelve evaluations, the more the larger their rate."""
    folder = tmp_path_factory.mktemp("trainings")
    place = np.arange(1.0, EVALUATIONS + 1)
    for number, name in enumerate(("one", "two")):
        draws = np.random.default_rng(number)
        file = CurveFile(path=folder / f"{name}.npz", plan={}, metrics=["accuracy", "loss"])
        for configuration in range(WHOLE):
            rate, rank = 10 ** draws.uniform(-4, -1), int(draws.integers(1, 65))
            peak = 0.9 - 0.1 * abs(np.log10(rate / 1e-2))
            accuracy = peak - 0.02 * np.abs(place - 4)
            values = np.stack([accuracy, 1 - accuracy], axis=1)
            file.curves[Key(configuration, 0)] = Curve(
                configuration={"rank": rank, "learning_rate": rate, "alpha": 2.0 * rank},
                validation=values,
                test=values - 0.1,
                seconds=place,
                tokens=place,
                losses=1 / place,
            )
        file.add(Key(0, 0), file.curves[Key(0, 0)])
    return folder


def job(folder: Path, **changes: Any) -> Job:
    base: dict[str, Any] = {
        "kind": "lora",
        "task": "one",
        "pruner": "none",
        "limits": text_of(LIMITS),
        "losses": "recorded",
        "workers": 1,
        "seed": 1,
        "trials": 6,
        "evaluations": 0,
        "folder": str(folder),
    }
    return Job(**base | changes)


def test_a_trial_that_overfits_ends_and_is_worth_its_best(trainings: Path) -> None:
    whole, ended = (run_job(job(trainings, limits=limits)) for limits in (NEVER, text_of(LIMITS)))
    assert whole["steps"] == 1.0
    assert whole["ends"] == {}
    assert ended["steps"] == 6 / EVALUATIONS  # two evaluations, a sixth of all steps, after the fourth
    assert ended["ends"] == {"overfits": 6}
    assert (ended["winner"], ended["regret"]) == (whole["winner"], whole["regret"])


def test_training_losses_that_are_made_up_bound_what_is_ended(trainings: Path) -> None:
    least, most = (run_job(job(trainings, losses=losses)) for losses in ("least", "most"))
    assert least["ends"].get("overfits", 0) == 0
    assert most["ends"]["overfits"] > 0
    assert most["steps"] < least["steps"] <= 1.0


def test_a_trial_may_be_measured_less_often(trainings: Path) -> None:
    ground = ended_trials.ground_of("lora", "one", trainings, "recorded").of_few(3)
    whole = ended_trials.ground_of("lora", "one", trainings, "recorded")
    assert ground.table.evaluations == ground.test.shape[1] == ground.curves.training.shape[1] == 3
    assert (ground.table.curves == whole.table.curves[:, [3, 7, 11]]).all()
    assert run_job(job(trainings, limits=NEVER, evaluations=3))["steps"] == 1.0


def test_a_loss_falls_on_unless_it_is_back_where_it_began() -> None:
    found = falling(np.array([[1.0, 0.6, 0.5, 0.7, 0.99, np.nan]]))[0]
    assert (np.diff(found[:4]) < 0).all()
    assert found[:4] == pytest.approx([1.0, 0.6, 0.5, 0.5], rel=1e-4)
    assert found[4] == 0.99


def row(task: str, limits: str, seed: int, steps: float, regret: float) -> dict[str, Any]:
    made = job(Path(), task=task, limits=limits, seed=seed)
    given = {name: value for name, value in made._asdict().items() if name != "folder"}
    return {**given, "key": made.key, "steps": steps, "regret": regret, "winner": round(1000 * regret), "ends": {}}


def by_key(*rows: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["key"]: each for each in rows}


def test_winners_are_compared_with_those_of_the_same_seed() -> None:
    rows = by_key(
        *(row("one", NEVER, seed, 1.0, 0.1 * seed) for seed in (1, 2)),
        *(row("one", "2:0.167", seed, 0.4, 0.1 * seed + 0.01 * (seed - 1)) for seed in (1, 2)),
    )
    (found,) = (each for each in results(rows) if each["limits"] != NEVER)
    assert found["steps"] == pytest.approx(0.4)
    assert found["difference"][0] == pytest.approx(0.005)
    assert (found["same"], found["not_worse"]) == (0.5, 0.5)


def test_no_task_chooses_its_own_limits() -> None:
    # `1:0.1` saves most and does harm on `three` alone, which therefore is the only task that takes it.
    gaps = {"one": 0.0, "two": 0.0, "three": 0.3}
    rows = by_key(
        *(row(task, NEVER, 1, 1.0, 0.1) for task in gaps),
        *(row(task, "2:0.167", 1, 0.5, 0.1) for task in gaps),
        *(row(task, "1:0.1", 1, 0.3, 0.1 + gap) for task, gap in gaps.items()),
    )
    (found,) = left_out(rows, 0.005)
    assert found["chosen"] == "1:0.1 (1), 2:0.167 (2)"
    assert found["steps"] == f"{(0.3 + 0.5 + 0.5) / 3:.0%}"
    assert found["difference"] == "+0.100"


def test_limits_are_read_as_they_are_written() -> None:
    assert limits_of(text_of(LIMITS)) == LIMITS
    assert limits_of("3:0.25") == Limits(patience=3, share=0.25)
    assert limits_of(NEVER) is None
    assert all(limits_of(text_of(each)) == each for each in ended_trials.GRID)


def test_a_run_goes_on_where_it_stopped(trainings: Path, tmp_path: Path, document: Document) -> None:
    rows = tmp_path / "rows.jsonl"
    given = ["--quick", "--tables", "lora", "--losses", "recorded", "--trainings", str(trainings), "--rows", str(rows)]
    found = document(ended_trials.main, [*given, "--pruners", "halving"])
    lines = rows.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 * 2 * 3  # sets, seeds; never without and with the default pruner, and ends with it
    rows.write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
    again = document(ended_trials.main, [*given, "--pruners", "halving"])
    assert again["results"] == found["results"]
    assert len(rows.read_text(encoding="utf-8").splitlines()) == len(lines)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--tables", "lorra"], "there is no 'lorra'"),
        (["--losses", "some"], "there is no 'some'"),
        (["--limits", "often"], "'often': PATIENCE:SHARE is wanted, as 2:0.167"),
        (["--data", "nowhere"], "no curves of taskset under"),
        (["--tables", "lora", "--trainings", "nowhere"], "no curves of lora under"),
    ],
)
def test_what_cannot_be_replayed_is_said(given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended_trials.main(["--data", "nowhere", *given]) == 2
    assert said in capsys.readouterr().out


def test_losses_that_were_not_recorded_are_refused(
    trainings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in trainings.glob("*.npz"):
        with np.load(path, allow_pickle=False) as file:
            np.savez(tmp_path / path.name, **{name: file[name] for name in file if name != "losses"})
    assert ended_trials.main(["--tables", "lora", "--losses", "recorded", "--trainings", str(tmp_path)]) == 2
    assert "one.npz: holds no training losses; --losses least,most make them up" in capsys.readouterr().out
