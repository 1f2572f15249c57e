"""Recorded LoRA trainings: equal examples whatever the batch, stored at once, the same when resumed or alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import lora_curves
from benchmarks.curve_file import TARGETS, WHOLE, Curve, CurveFile, Key, read_curves
from benchmarks.lora_curves_world import SETS, points

Document = Callable[[Any, list[str]], dict[str, Any]]


def options(work: Path, configurations: str = "0:4") -> list[str]:
    return ["--quick", "--configurations", configurations, "--repeated", "1", "--work", str(work)]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> CurveFile:
    """Four configurations of a tiny model, the first with two seeds."""
    work = tmp_path_factory.mktemp("curves")
    assert lora_curves.main(options(work)) == 0
    return read_curves(work / "recorded" / "tiny.npz")


def test_all_trainings_have_seen_the_same_tokens_at_every_evaluation(recorded: CurveFile) -> None:
    first = [curve for key, curve in recorded.curves.items() if key.repeat == 0]
    assert len({curve.configuration["batch_size"] for curve in first}) > 1
    assert len({tuple(curve.tokens) for curve in first}) == 1
    assert (np.diff(first[0].tokens) > 0).all()
    assert all((np.diff(curve.seconds) > 0).all() for curve in first)


def test_alpha_is_there_as_a_ratio_and_as_a_value(recorded: CurveFile) -> None:
    for curve in recorded.curves.values():
        given = curve.configuration
        assert given["alpha"] == given["alpha_ratio"] * given["rank"]
        assert given["target"] in range(len(TARGETS))


def test_test_rows_are_other_rows_and_a_second_seed_is_another_training(recorded: CurveFile) -> None:
    first, again = recorded.curves[Key(0, 0)], recorded.curves[Key(0, 1)]
    assert first.configuration == again.configuration
    assert not np.allclose(first.validation, again.validation)
    assert not np.allclose(first.validation, first.test)
    assert recorded.metrics == ["accuracy", "loss"]
    assert first.validation.shape == first.test.shape == (3, 2)


def test_a_run_goes_on_where_it_stopped_and_a_neighbour_changes_nothing(
    recorded: CurveFile, document: Document
) -> None:
    file = read_curves(recorded.path)
    del file.curves[Key(2, 0)]
    file.add(Key(3, 0), recorded.curves[Key(3, 0)])
    document(lora_curves.main, options(recorded.path.parent.parent))
    found = read_curves(recorded.path)
    assert found.curves.keys() == recorded.curves.keys()
    alone, beside = found.curves[Key(2, 0)], recorded.curves[Key(2, 0)]
    np.testing.assert_allclose(alone.validation, beside.validation, rtol=1e-4)
    assert (alone.seconds != beside.seconds).any()
    assert (found.curves[Key(3, 0)].seconds == recorded.curves[Key(3, 0)].seconds).all()
    assert len(found.runs) == 2


def test_a_part_goes_on_elsewhere(recorded: CurveFile, tmp_path: Path) -> None:
    """With nothing but the file: another checkout, another work folder, data somewhere else."""
    part = replace(recorded, path=tmp_path / "there" / "recorded" / "tiny.npz", curves={})
    part.add(Key(1, 0), recorded.curves[Key(1, 0)])
    assert str(recorded.path.parent.parent) not in str(part.plan)
    assert lora_curves.main(options(tmp_path / "there")) == 0
    found = read_curves(part.path)
    assert found.curves.keys() == recorded.curves.keys()
    assert (found.curves[Key(1, 0)].seconds == recorded.curves[Key(1, 0)].seconds).all()
    np.testing.assert_allclose(found.curves[Key(3, 0)].validation, recorded.curves[Key(3, 0)].validation, rtol=1e-4)


def test_training_losses_are_kept_and_may_be_unknown(recorded: CurveFile, tmp_path: Path) -> None:
    assert all(np.isfinite(curve.losses).all() for curve in recorded.curves.values())
    with np.load(recorded.path, allow_pickle=False) as file:
        np.savez(tmp_path / "older.npz", **{name: file[name] for name in file if name != "losses"})
    older = read_curves(tmp_path / "older.npz").curves[Key(0, 0)]
    assert older.losses.shape == older.seconds.shape
    assert np.isnan(older.losses).all()


def test_what_was_recorded_otherwise_is_refused(recorded: CurveFile, capsys: pytest.CaptureFixture[str]) -> None:
    other = CurveFile(path=recorded.path, plan={**recorded.plan, "examples": 9}, metrics=recorded.metrics)
    other.add(Key(0, 0), recorded.curves[Key(0, 0)])
    assert lora_curves.main(options(recorded.path.parent.parent)) == 2
    assert "was recorded with other examples" in capsys.readouterr().out


def test_a_configuration_of_another_sequence_is_refused(
    recorded: CurveFile, capsys: pytest.CaptureFixture[str]
) -> None:
    key, curve = Key(0, 0), recorded.curves[Key(0, 0)]
    file = CurveFile(path=recorded.path, plan=recorded.plan, metrics=recorded.metrics)
    file.add(key, replace(curve, configuration={**curve.configuration, "rank": 65.0}))
    assert lora_curves.main(options(recorded.path.parent.parent)) == 2
    assert "configuration 0 is another one here" in capsys.readouterr().out


def test_one_process_records_a_set(recorded: CurveFile, capsys: pytest.CaptureFixture[str]) -> None:
    folder = recorded.path.parent
    with lora_curves._alone(folder, "tiny"):
        assert lora_curves.main(options(folder.parent)) == 2
    assert "another process is recording tiny" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "said"),
    [(["--sets", "trek"], "there is no 'trek'"), (["--sets", "trec", "--data", "nowhere"], "no trec/train.jsonl")],
)
def test_what_cannot_be_recorded_is_said(given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert lora_curves.main(given) == 2
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("text", ["3", "5:5", "9:2", "a:b", ":"])
def test_a_part_has_two_ends(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        lora_curves.main(["--configurations", text])
    assert "FIRST:LAST is wanted" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(lora_curves.RECORDED.glob("*.npz")), ids=lambda path: path.stem)
def test_what_is_kept_here_is_what_its_set_says(path: Path) -> None:
    file, its = read_curves(path), SETS[path.stem]
    assert {key.configuration for key in file.curves} <= set(range(WHOLE))
    assert file.metrics == its.metrics
    assert {name: file.plan[name] for name in ("examples", "evaluations", "longest")} == {
        "examples": its.examples,
        "evaluations": its.evaluations,
        "longest": its.longest,
    }
    for key, curve in file.curves.items():
        assert curve.configuration == pytest.approx(its.configuration(key))
        alike = next(each for other, each in file.curves.items() if other.repeat == key.repeat)
        assert (curve.tokens == alike.tokens).all() or np.isnan(
            [curve.validation[-1, 0], alike.validation[-1, 0]]
        ).any()


@pytest.mark.parametrize("name", SETS)
def test_every_evaluation_falls_between_two_batches(name: str) -> None:
    each = SETS[name]
    assert all(each.examples % (batch * each.evaluations) == 0 for batch in each.batches)
    assert each.examples <= 2 * each.text_set.train


def test_the_points_cover_the_space_and_more_of_them_begin_alike() -> None:
    space = SETS["trec"].space
    found = points(space, 64)
    assert points(space, 96)[:64] == found
    for parameter in space.parameters:
        values = {point[parameter.name] for point in found}
        assert len(values) >= len(getattr(parameter, "choices", range(20)))
    ranks = sorted(int(point["rank"]) for point in found)
    assert ranks[0] == 1
    assert 5 <= ranks[32] <= 12


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_the_coordinate_of_the_optimum_explains_most(power: float) -> None:
    draws = np.random.default_rng(0)
    curves = []
    for _ in range(60):
        rate, alpha = 10 ** draws.uniform(-4, -1), 2 ** draws.uniform(0, 8)
        loss = abs(np.log10(rate * alpha**power / 1e-2))
        curves.append(
            Curve(
                configuration={"learning_rate": rate, "alpha": alpha},
                validation=np.array([[0.0, loss]]),
                test=np.zeros((1, 2)),
                seconds=np.ones(1),
                tokens=np.ones(1),
                losses=np.ones(1),
            )
        )
    right, other = (lora_curves.explained(curves, each) for each in (power, 0.5 - power))
    assert right > 0.6
    assert other < right - 0.1
