from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from automl.errors import Diverged, OutOfMemory
from automl.methods.registry import METHODS
from automl.models.inventory import head_modules, resolve_targets
from automl.tasks.batches import batch_rows
from automl.training.runtime import HostSettings, Runtime
from automl.training.schedule import lr_multiplier
from automl.training.solo import SoloTrial, train
from automl.trial import TrialSpec
from tests.training.training_cases import (
    BadMetric,
    FailsAt,
    SmallMemory,
    curve,
    run,
    runtime_with,
    trial_spec,
)


def tensors_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_measures_at_every_multiple_and_at_the_end(runtime: Runtime) -> None:
    measurements = run(runtime, trial_spec(steps=10, evaluate_every=4))
    assert [item.step for item in measurements] == [4, 8, 10]
    assert {"loss", "accuracy", "macro_f1", "mcc"} <= set(measurements[0].metrics)
    assert [item.tokens for item in measurements] == sorted(item.tokens for item in measurements)
    assert 0 < measurements[0].seconds < measurements[-1].seconds


def test_a_trial_learns(runtime: Runtime) -> None:
    last = run(runtime, trial_spec(1, steps=120, evaluate_every=120, batch_size=16, learning_rate=5e-3))[-1]
    assert last.metrics["accuracy"] > 0.8


def test_the_same_spec_gives_the_same_curve(any_settings: HostSettings) -> None:
    runtime = runtime_with(any_settings)
    first = run(runtime, trial_spec())
    torch.manual_seed(99)  # the global generator must not matter
    assert curve(run(runtime, trial_spec())) == curve(first)
    assert curve(run(runtime_with(any_settings), trial_spec())) == curve(first)


def test_follows_a_plain_peft_loop(any_settings: HostSettings) -> None:
    """The same trial written as every PEFT tutorial does: model's mean loss, AdamW, LambdaLR, clipping."""
    spec = trial_spec(dropout=0.0, clip=0.5, warmup=0.3, schedule="cosine")
    hyper = spec.hyper
    runtime = runtime_with(any_settings)
    method = METHODS["lora"]
    modules = [layer.path for layer in resolve_targets(runtime.model, hyper.target)]
    model = method.attach(runtime.model, hyper, modules, head_modules(runtime.model), spec.seed)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=hyper.learning_rate, weight_decay=hyper.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_multiplier(step, steps=spec.steps, warmup=hyper.warmup, schedule=hyper.schedule)
    )
    expected = []
    for step in range(spec.steps):
        rows = batch_rows(spec.data_seed, step, hyper.batch_size, len(runtime.train_rows))
        batch = runtime.task.collate([runtime.train_rows[row] for row in rows], runtime.tokenizer.pad_token_id)
        model.train()
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], hyper.clip)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if (step + 1) % spec.evaluate_every == 0:
            expected.append(runtime.evaluate(model, runtime.evaluation_rows, 2048))
    method.detach(model)

    measured = [item.metrics for item in run(runtime, spec)]
    for ours, theirs in zip(measured, expected, strict=True):
        # The gradient of the sum divided by the count against the gradient of the mean: rounding only.
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_closing_gives_the_backbone_back_untouched(any_settings: HostSettings) -> None:
    runtime = runtime_with(any_settings)
    before = tensors_of(runtime.model)
    trial = SoloTrial(trial_spec(), runtime)
    generator = train(trial)
    next(generator)
    generator.close()
    after = tensors_of(runtime.model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(parameter.requires_grad for parameter in runtime.model.parameters())
    with pytest.raises(AssertionError, match="not attached"):
        trial.snapshot()


@pytest.mark.parametrize("stops", [1, 2])
def test_a_resumed_trial_is_the_undisturbed_one_bit_for_bit(any_settings: HostSettings, stops: int) -> None:
    spec = trial_spec(steps=14, evaluate_every=4)
    undisturbed = run(runtime_with(any_settings), spec)
    trial = SoloTrial(spec, runtime_with(any_settings))
    generator = train(trial)
    measurements = [next(generator) for _ in range(stops)]
    state = trial.snapshot()
    next(generator)  # what comes after the snapshot is lost with the process
    generator.close()

    resumed = SoloTrial(spec, runtime_with(any_settings), state)
    measurements += list(train(resumed))
    assert curve(measurements) == curve(undisturbed)


def test_a_snapshot_does_not_follow_the_training(runtime: Runtime) -> None:
    trial = SoloTrial(trial_spec(), runtime)
    generator = train(trial)
    next(generator)
    state = trial.snapshot()
    copies = {name: tensor.clone() for name, tensor in {**state.params, **state.moments}.items()}
    next(generator)
    assert all(torch.equal(tensor, copies[name]) for name, tensor in {**state.params, **state.moments}.items())
    generator.close()


def test_what_ran_before_on_the_bench_does_not_matter(runtime: Runtime) -> None:
    alone = run(runtime, trial_spec(1))
    run(runtime, trial_spec(2, rank=16, target="qv", learning_rate=0.5))
    assert curve(run(runtime, trial_spec(1))) == curve(alone)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_short_memory_halves_the_micro_batch_and_keeps_the_step(bert: HostSettings, error: Exception) -> None:
    spec = trial_spec(dropout=0.0, batch_size=8)
    plenty = run(runtime_with(bert), spec)
    runtime = runtime_with(bert, partial(SmallMemory, most=3, error=error))
    trial = SoloTrial(spec, runtime)
    measurements = list(train(trial))
    assert trial.micro_batch == 2
    assert set(runtime.task.sizes) == {2}
    for ours, theirs in zip(measurements, plenty, strict=True):
        assert (ours.step, ours.tokens) == (theirs.step, theirs.tokens)
        assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-4)


def test_a_retried_step_draws_the_masks_it_would_have_drawn(bert: HostSettings) -> None:
    # Short of memory from the start or known to be so: the failed attempt must leave no trace in the generator.
    spec = trial_spec(dropout=0.3, batch_size=8)
    surprised = SoloTrial(spec, runtime_with(bert, partial(SmallMemory, most=4)))
    warned = SoloTrial(spec, runtime_with(bert, partial(SmallMemory, most=4)))
    warned.micro_batch = 4
    assert curve(list(train(surprised))) == curve(list(train(warned)))


def test_a_batch_above_the_budget_is_computed_in_parts(bert: HostSettings) -> None:
    spec = trial_spec(batch_size=1000, steps=2, dropout=0.0)
    trial = SoloTrial(spec, runtime_with(bert, partial(SmallMemory, most=1000)))
    found = curve(list(train(trial)))
    sizes = trial.runtime.task.sizes  # type: ignore[attr-defined]
    assert sum(sizes) == 2000
    assert max(sizes) * max(map(len, (row["input_ids"] for row in trial.runtime.train_rows))) <= 4096
    assert trial.micro_batch == 1000
    other = SoloTrial(spec, runtime_with(bert))
    other.micro_batch = 100
    for (_, one, _), (_, two, _) in zip(found, curve(list(train(other))), strict=True):
        assert one == pytest.approx(two, rel=1e-4)


def test_short_memory_in_an_evaluation_takes_fewer_tokens(bert: HostSettings) -> None:
    spec = trial_spec(steps=4)
    trial = SoloTrial(spec, runtime_with(bert, partial(SmallMemory, most=8, most_tokens=64)))
    measurements = list(train(trial))
    assert trial.evaluation_tokens == 64
    assert measurements[0].metrics == pytest.approx(run(runtime_with(bert), spec)[0].metrics, rel=1e-5)


def test_a_lowered_micro_batch_is_part_of_the_state(bert: HostSettings) -> None:
    spec = trial_spec(dropout=0.3, batch_size=8)
    small = partial(SmallMemory, most=4)
    undisturbed = run(runtime_with(bert, small), spec)
    trial = SoloTrial(spec, runtime_with(bert, small))
    generator = train(trial)
    measurements = [next(generator)]
    state = trial.snapshot()
    generator.close()
    assert state.micro_batch == 4
    measurements += run_from(runtime_with(bert), spec, state)  # resumed where memory is plenty
    assert curve(measurements) == curve(undisturbed)


def run_from(runtime: Runtime, spec: TrialSpec, state: object) -> list:
    return list(train(SoloTrial(spec, runtime, state)))


def test_a_row_that_does_not_fit_is_out_of_memory(bert: HostSettings) -> None:
    runtime = runtime_with(bert, partial(SmallMemory, most=0))
    before = tensors_of(runtime.model)
    with pytest.raises(OutOfMemory, match=r"trial 0 \(rank 4, target all-linear\) does not fit .* one row at a time"):
        run(runtime, trial_spec())
    assert tensors_of(runtime.model).keys() == before.keys()


def test_other_runtime_errors_are_not_taken_for_want_of_memory(bert: HostSettings) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run(
            runtime_with(
                bert, partial(FailsAt, step=2, loss=RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
            ),
            trial_spec(),
        )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_diverges(bert: HostSettings, value: float) -> None:
    trial = SoloTrial(trial_spec(), runtime_with(bert, partial(FailsAt, step=6, loss=value)))
    generator = train(trial)
    assert next(generator).step == 4
    with pytest.raises(Diverged, match=r"training loss is .* at step 6"):
        next(generator)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_diverges(bert: HostSettings, value: float) -> None:
    with pytest.raises(Diverged, match=r"loss is .* at step 4"):
        run(runtime_with(bert, partial(BadMetric, value=value)), trial_spec())


def test_an_absurd_learning_rate_ends_as_divergence_or_as_numbers(runtime: Runtime) -> None:
    try:
        measurements = run(runtime, trial_spec(learning_rate=1e30, clip=0.0, warmup=0.0))
    except Diverged:
        return
    assert all(math.isfinite(value) for item in measurements for value in item.metrics.values())


def test_no_clipping_when_clip_is_zero(runtime: Runtime) -> None:
    wide = curve(run(runtime, trial_spec(clip=1e9)))
    assert curve(run(runtime, trial_spec(clip=0.0))) == wide
    assert curve(run(runtime, trial_spec(clip=0.01))) != wide


def test_bf16_trains_fp32_parameters(bert: HostSettings) -> None:
    runtime = runtime_with(replace(bert, precision="bf16"))
    trial = SoloTrial(trial_spec(steps=8, evaluate_every=4), runtime)
    generator = train(trial)
    first = next(generator)
    assert {tensor.dtype for tensor in trial.snapshot().params.values()} == {torch.float32}
    assert next(runtime.model.parameters()).dtype == torch.bfloat16
    assert next(generator).metrics["loss"] != first.metrics["loss"]
    generator.close()
