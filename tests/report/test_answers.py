"""What was spent and saved, what is small and good, which rate for which rank: small studies with known answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest

from automl.report.answers import failures, pareto, rates_by_rank, sizes_by_target, spending
from automl.report.blocks import Text
from automl.report.chart_style import round_ticks
from automl.report.findings import findings
from automl.report.frames import StudyFrame, place_of
from automl.report.reading import shares_of_modules
from automl.report.sections import sections
from automl.results.spending import Spending
from automl.space.spec import BudgetSettings, CostSettings
from automl.storage.spending import Spent
from automl.storage.trials import CurvePoint, TrialRow
from automl.trial import ModuleImportance, TrialState


def trial(number: int, value: float, *, params: int = 100, steps: int = 80, **chosen: object) -> TrialRow:
    return TrialRow(
        number=number,
        state=TrialState.COMPLETE if steps == 80 else TrialState.PRUNED,
        value=value,
        params={"rank": 8, "learning_rate": 1e-3, "target": "qv", **chosen},  # type: ignore[dict-item]
        steps=steps,
        seconds=steps / 4,
        tokens=100 * steps,
        trainable_params=params,
        stop_reason="finished" if steps == 80 else "pruned",
        error="",
        adapter=None,
        attempts=1,
        curve=(CurvePoint(20, value),),
    )


@pytest.fixture
def with_trials(plain_frame: StudyFrame) -> Callable[[Iterable[TrialRow]], StudyFrame]:
    return lambda trials: replace(plain_frame, trials=tuple(trials))


def test_pruning_saves_the_steps_that_were_not_trained(with_trials: Callable[..., StudyFrame]) -> None:
    costs = spending(with_trials([trial(0, 0.9), trial(1, 0.5, steps=20), trial(2, 0.4, steps=20)]))
    assert (costs.total.steps, costs.saved.steps) == (120, 120)
    assert costs.share == 0.5
    # At each trial's own pace: a quarter of a second and a hundred tokens per step.
    assert (costs.saved.seconds, costs.saved.tokens) == (30.0, 12_000)


def test_what_was_paid_is_said_with_what_pruning_saved(with_trials: Callable[..., StudyFrame]) -> None:
    """Twice as much would have been trained: what was saved costs as much again."""
    frame = with_trials([trial(0, 0.9), trial(1, 0.5, steps=20), trial(2, 0.4, steps=20)])
    budget = BudgetSettings(cost=CostSettings(per_gpu_hour=2.5, limit=40, currency="EUR"))
    spent = Spent(device_seconds=44_928, tokens=1_234, examples=960, cost=31.2, currency="EUR")
    said = texts(replace(frame, spending=Spending(spent=spent, budget=budget)))
    assert "Spent 31.20 of 40 EUR; pruning saved about 31.20." in said
    assert "In all: 12.48 device hours, 1,234 tokens, 960 examples, 31.20 of 40 EUR." in said
    said = texts(replace(frame, spending=Spending(spent=Spent(device_seconds=3600))))
    assert "Spent 1.00 device hours; pruning saved about 1.00." in said
    assert "Spent" not in texts(frame), "nothing is known of an older study"


def texts(frame: StudyFrame) -> str:
    """What the report says, without its tables."""
    found = sections(frame, findings(frame))
    return "\n".join(block.text for section in found for block in section.blocks if isinstance(block, Text))


def test_a_diverged_trial_is_a_failure_and_saves_nothing(with_trials: Callable[..., StudyFrame]) -> None:
    diverged = replace(trial(1, 0.1, steps=20), stop_reason="diverged")
    frame = with_trials([trial(0, 0.9), diverged])
    assert spending(frame).saved.steps == 0
    assert list(failures(frame)) == ["diverged"]


@pytest.mark.parametrize(("direction", "front"), [("maximize", [2, 0]), ("minimize", [1])])
def test_the_front_holds_what_no_smaller_trial_beats(
    with_trials: Callable[..., StudyFrame], direction: str, front: list[int]
) -> None:
    frame = with_trials([trial(0, 0.9, params=400), trial(1, 0.5, params=100), trial(2, 0.8, params=100)])
    frame = replace(frame, direction=direction, trials=(*frame.trials, trial(3, 0.85, params=900)))
    assert [each.number for each in pareto(frame)] == front


def test_time_is_the_size_where_it_is_the_second_objective(with_trials: Callable[..., StudyFrame]) -> None:
    rows = [trial(0, 0.9, params=100), trial(1, 0.8, params=400), trial(2, 0.9, params=400)]
    rows = [replace(row, seconds=seconds, size=seconds) for row, seconds in zip(rows, (30.0, 10.0, 20.0), strict=True)]
    frame = replace(with_trials(rows), also_minimize="seconds")
    assert [each.number for each in pareto(frame)] == [1, 2]
    assert frame.best == rows[2], "of equals the one that took less"


def test_ranks_are_grouped_by_powers_of_two_where_there_are_many(with_trials: Callable[..., StudyFrame]) -> None:
    few = with_trials([trial(0, 0.9, rank=3), trial(1, 0.8, rank=5)])
    many = with_trials([trial(n, 0.5 + n / 100, rank=rank) for n, rank in enumerate((2, 3, 4, 7, 8, 15))])
    assert [group.label for group in rates_by_rank(few)] == ["3", "5"]
    assert [(group.label, group.best.number if group.best else None) for group in rates_by_rank(many)] == [
        ("2 to 3", 1),
        ("4 to 7", 3),
        ("8 to 15", 5),
    ]


def test_target_sets_are_compared_at_equal_size_only(with_trials: Callable[..., StudyFrame]) -> None:
    trials = [trial(0, 0.9, params=100), trial(1, 0.8, params=120, target="mlp"), trial(2, 0.7, params=300)]
    classes = sizes_by_target(with_trials(trials))
    assert [(size.low, size.decided) for size in classes] == [(64, True), (256, False)]
    assert sizes_by_target(with_trials(trials[:1])) == ()


def test_shares_of_modules_add_up_and_leave_out_trials_that_hardly_trained() -> None:
    def module(name: str, sensitivity: float, done: float) -> ModuleImportance:
        return ModuleImportance(
            module=name,
            rank=4,
            in_features=8,
            out_features=8,
            step=10,
            fraction_done=done,
            samples=2,
            sensitivity=sensitivity,
            uncertainty=0.1,
            effective_rank=2.0,
            relative_update=0.1,
            components=(),
        )

    trials = {
        0: (module("l.0.q", 1.0, 1.0), module("l.0.v", 3.0, 1.0)),
        1: (module("l.0.q", 1.0, 1.0), module("l.0.v", 1.0, 1.0)),
        2: (module("l.0.q", 9.0, 0.1), module("l.0.v", 1.0, 0.1)),
    }
    shares = {each.module: each for each in shares_of_modules(trials)}
    assert shares["l.0.q"].share == pytest.approx((0.25 + 0.5) / 2)
    assert (shares["l.0.q"].low, shares["l.0.q"].high, shares["l.0.q"].trials) == (0.25, 0.5, 2)
    assert sum(each.share for each in shares.values()) == pytest.approx(1.0)
    assert shares_of_modules({}) == ()


@pytest.mark.parametrize(
    ("module", "place"),
    [
        ("bert.encoder.layer.3.attention.self.query", (3, "attention.self.query")),
        ("transformer.h.11.attn.c_attn", (11, "attn.c_attn")),
        ("blocks.0", (0, "blocks")),
        ("classifier", (None, "classifier")),
    ],
)
def test_a_module_has_a_layer_and_a_kind(module: str, place: tuple[int | None, str]) -> None:
    assert place_of(module) == place


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(1e-4, 1e-1, [1e-4, 1e-3, 1e-2, 1e-1]), (2, 32, [3, 10, 30]), (8, 8.5, [8]), (18_000, 460_000, [3e4, 1e5, 3e5])],
)
def test_a_logarithmic_axis_has_a_few_round_ticks(low: float, high: float, ticks: list[float]) -> None:
    assert round_ticks(low, high) == pytest.approx(ticks)
