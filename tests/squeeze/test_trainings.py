"""Cuts that are trained in a pack end as those that are trained one by one, and only what can be packed is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from automl.errors import Diverged, InterruptedSearch
from automl.importance.cuts import even_ranks, global_ranks, parameters
from automl.lora import Hyperparameters
from automl.methods.attaching import adapted_model
from automl.squeeze.trainings import Course, Ground, Job, Result, trainer_of, why_alone
from automl.tasks.reference import untouched
from automl.training.cut import TurnedAdapter
from automl.training.runtime import HostSettings
from tests.training.preference_cases import pairs, preference_settings
from tests.training.seq2seq_cases import seq2seq_settings
from tests.training.test_cut import trained
from tests.training.training_cases import host_settings, runtime_with

STEPS = 8
HYPER = Hyperparameters(learning_rate=0.02, batch_size=4, weight_decay=0.0, warmup=0.1, own=(("lora_plus_ratio", 4.0),))
SIZES = (0.5, 1.0, 2.0)


def course_of(
    settings: HostSettings, folder: Path, *, slots: int | None = None, check: Callable[[], None] = lambda: None
) -> tuple[Course, Ground]:
    runtime = runtime_with(settings)
    plain = untouched(runtime.model)
    adapter = TurnedAdapter(folder, runtime, runtime.train_rows[:64])
    course = Course(adapter=adapter, runtime=runtime, hyper=HYPER, steps=STEPS, check_running=check)
    return course, Ground(settings=settings, plain=plain, source=folder, slots=slots)


def cuts_of(adapter: TurnedAdapter) -> list[tuple[int, ...]]:
    one = parameters(even_ranks(adapter.strengths, 1), adapter.costs)
    return [tuple(global_ranks(adapter.strengths, adapter.costs, int(size * one))) for size in SIZES]


def results(
    settings: HostSettings, folder: Path, jobs: Callable[[TurnedAdapter], Sequence[Job]], slots: int | None
) -> Sequence[Result | Diverged]:
    course, ground = course_of(settings, folder, slots=slots)
    found = jobs(course.adapter)
    assert (why_alone(course, ground, [job.ranks for job in found]) == "") == (slots != 1)
    return trainer_of(course, ground, [job.ranks for job in found])(found)


def tensors(result: Result | Diverged) -> list[torch.Tensor]:
    assert isinstance(result, Result)
    return [tensor for pair in result.trained.factors for tensor in pair] + list(result.trained.heads.values())


def hold_together(settings: HostSettings, folder: Path, jobs: Callable[[TurnedAdapter], Sequence[Job]]) -> None:
    alone, packed = (results(settings, folder, jobs, slots) for slots in (1, None))
    starts = course_of(settings, folder)[0].adapter
    for one, two, job in zip(alone, packed, jobs(starts), strict=True):
        assert isinstance(one, Result)
        assert isinstance(two, Result)
        assert two.metrics == pytest.approx(one.metrics, rel=1e-6)
        assert [each.shape for each in tensors(two)] == [each.shape for each in tensors(one)]
        starts.cut(job.ranks)
        moved = distance(tensors(Result({}, starts.trained())), tensors(one))
        assert moved > 0.1
        assert distance(tensors(two), tensors(one)) <= 1e-5 * moved


def distance(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    return float(torch.stack([(a - b).pow(2).sum() for a, b in zip(one, other, strict=True)]).sum().sqrt())


def three_sizes_at_two_rates(adapter: TurnedAdapter) -> list[Job]:
    cuts = cuts_of(adapter)
    assert any(0 in ranks for ranks in cuts)
    return [*(Job(ranks, 0.02) for ranks in cuts), Job(cuts[1], 0.005)]


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_packed_recovery_equals_recovery_alone(name: str, tmp_path: Path) -> None:
    kind = "classification" if name == "bert" else "causal-lm"
    settings = host_settings(tmp_path, architecture=name, kind=kind)
    hold_together(settings, trained(settings, tmp_path / "out"), three_sizes_at_two_rates)


def test_cuts_of_an_encoder_with_a_decoder_are_packed(tmp_path: Path) -> None:
    settings = seq2seq_settings(tmp_path)
    hold_together(settings, trained(settings, tmp_path / "out"), three_sizes_at_two_rates)


def test_what_was_adalora_is_packed_as_cut(tmp_path: Path) -> None:
    settings = host_settings(tmp_path)
    folder = trained(settings, tmp_path / "out", method="adalora", learning_rate=0.1)
    hold_together(settings, folder, three_sizes_at_two_rates)


def test_cuts_wait_for_a_slot(tmp_path: Path) -> None:
    settings = host_settings(tmp_path)
    folder = trained(settings, tmp_path / "out", use_rslora=True)

    def jobs(adapter: TurnedAdapter) -> list[Job]:
        return three_sizes_at_two_rates(adapter)[1:]

    at_once, in_turns = (results(settings, folder, jobs, slots) for slots in (None, 2))
    for one, two in zip(at_once, in_turns, strict=True):
        assert distance(tensors(one), tensors(two)) < 1e-6


def test_who_diverges_takes_nobody_along(tmp_path: Path) -> None:
    settings = host_settings(tmp_path)
    folder = trained(settings, tmp_path / "out")

    def jobs(adapter: TurnedAdapter) -> list[Job]:
        return [Job(cuts_of(adapter)[1], 0.02), Job(cuts_of(adapter)[1], 1e30), Job(cuts_of(adapter)[2], 0.02)]

    alone, packed = (results(settings, folder, jobs, slots) for slots in (1, None))
    assert isinstance(packed[1], Diverged)
    assert str(packed[1]) == str(alone[1])
    for place in (0, 2):
        assert distance(tensors(packed[place]), tensors(alone[place])) < 1e-4


def test_it_stops_between_two_steps(tmp_path: Path) -> None:
    settings = host_settings(tmp_path)
    folder = trained(settings, tmp_path / "out")
    asked = []

    def check() -> None:
        asked.append(1)
        if len(asked) == 4:
            raise InterruptedSearch("stopped")

    for slots in (None, 1):
        asked.clear()
        course, ground = course_of(settings, folder, slots=slots, check=check)
        before = course.runtime.model
        jobs = [Job(ranks, 0.02) for ranks in cuts_of(course.adapter)]
        with pytest.raises(InterruptedSearch):
            trainer_of(course, ground, [job.ranks for job in jobs])(jobs)
        assert len(asked) == 4
        assert course.runtime.model is before
        assert not any("forward" in vars(module) for module in ground.plain.modules()), "the pack is off the model"


def test_what_cannot_be_packed_is_trained_one_by_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = host_settings(tmp_path)
    base = runtime_with(settings).model
    config = LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=["query", "value"])
    config.alpha_pattern = {r"^bert\.encoder\.layer\.1\.attention\.self\.value$": 20}
    model = adapted_model(base, config)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if ".lora_B." in name:
                tensor.normal_(0.0, 0.1)
    model.save_pretrained(tmp_path / "stranger")
    course, ground = course_of(settings, tmp_path / "stranger")
    cuts = cuts_of(course.adapter)
    assert why_alone(course, ground, cuts) == "its modules are scaled differently"
    with caplog.at_level(logging.INFO):
        (found,) = trainer_of(course, ground, cuts)([Job(cuts[1], 0.01)])
    assert isinstance(found, Result)
    assert "cuts are trained one after the other: its modules are scaled differently" in caplog.text
    bf16 = replace(ground, settings=replace(settings, precision="bf16"))
    assert why_alone(course, bf16, cuts) == "precision bf16 cannot be packed on a CPU"


def test_whose_other_modules_were_trained_is_not_packed(tmp_path: Path) -> None:
    settings = host_settings(tmp_path)
    model = adapted_model(
        runtime_with(settings).model,
        LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query"], modules_to_save=["pooler"]),
    )
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if ".lora_B." in name or ".pooler." in name:
                tensor.normal_(0.0, 0.1)
    model.save_pretrained(tmp_path / "stranger")
    course, ground = course_of(settings, tmp_path / "stranger")
    assert why_alone(course, ground, cuts_of(course.adapter)) == "it has trained bert.pooler.dense.bias"


def test_preferences_are_recovered_by_their_own_loss(tmp_path: Path) -> None:
    settings = preference_settings(tmp_path, pairs(12))
    folder = trained(settings, tmp_path / "out", dropout=0.0)
    alone, other = (
        results(settings, folder, lambda adapter: [Job(cuts_of(adapter)[1], 0.02)], slots) for slots in (1, 2)
    )
    assert distance(tensors(other[0]), tensors(alone[0])) < 1e-4
