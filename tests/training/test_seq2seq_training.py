"""Encoders with decoders follow PEFT whatever the method, write what whole passes write, and export what they were."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSeq2SeqLM
from transformers import AutoModelForSeq2SeqLM, MBartConfig

from automl.lora import Hyperparameters
from automl.methods.registry import METHODS
from automl.models.inventory import linear_layers, resolve_targets
from automl.packed.proof import disproof
from automl.packed.trainer import PackedTrainer
from automl.tasks.base import IGNORED, Batch
from automl.tasks.batches import batch_rows
from automl.tasks.encoder_decoder import generate, target_losses
from automl.tasks.generation import end_tokens, plain_text
from automl.tasks.virtual import call
from automl.training.export import evaluate_export, evaluate_merged, load_adapter, merge_adapter
from automl.training.host import SoloHost
from automl.training.runtime import HostSettings, Runtime, load_runtime
from automl.training.schedule import lr_multiplier
from automl.training.solo import SoloTrial
from automl.trial import Measurement, TrialSpec
from tests.training.judged_cases import workload_of
from tests.training.seq2seq_cases import CONFIGS, lively, seq2seq_settings
from tests.training.training_cases import trial_spec

METHODS_OF = {
    "t5": ("lora", "prompt", "prefix", "full"),
    "mt5": ("lora", "ia3", "prefix", "p-tuning"),
    "bart": ("lora", "ia3", "prompt", "prefix"),
}


def cases(*quick: tuple[str, str]) -> list[Any]:
    """All models with their methods; those that are not quick belong to the full run."""
    every = [(name, method) for name, methods in METHODS_OF.items() for method in methods]
    return [case if case in quick else pytest.param(*case, marks=pytest.mark.full) for case in every]


def spec_of(method: str, **more: Any) -> TrialSpec:
    return trial_spec(**{"dropout": 0.0, "learning_rate": 5e-3, "target": "all-linear", **more, "method": method})


def attached(runtime: Runtime, spec: TrialSpec) -> Any:
    layers = resolve_targets(runtime.model, spec.hyper.target)
    method = METHODS[spec.hyper.method]
    return method.attach(runtime.model, spec.hyper, [layer.path for layer in layers], [], spec.seed, steps=spec.steps)


@pytest.mark.parametrize(
    ("name", "method"), cases(("t5", "lora"), ("t5", "prompt"), ("mt5", "prefix"), ("bart", "ia3"))
)
def test_it_follows_a_plain_loop_around_peft(tmp_path: Path, name: str, method: str) -> None:
    """As PEFT's tutorials have it: the model is called with labels, and its own mean loss is minimised."""
    runtime = load_runtime(seq2seq_settings(tmp_path, name))
    spec = spec_of(method, steps=8, clip=0.5, warmup=0.3, schedule="cosine")
    trial, losses = SoloTrial(spec, runtime), []
    trial.attach()
    for _ in range(spec.steps):
        trial.take_step()
        losses.append(trial.loss)
    ours = dict(trial.snapshot().params)
    trial.detach()
    model = attached(runtime, spec)
    before = {key: tensor.clone() for key, tensor in METHODS[method].state(model).items()}
    assert losses == pytest.approx(list(plainly(model, runtime, spec)), rel=1e-6)
    theirs = METHODS[method].state(model)
    assert ours.keys() == theirs.keys()
    moved = sum(float((theirs[key] - before[key]).norm()) for key in theirs)
    assert sum(float((theirs[key] - ours[key]).norm()) for key in theirs) <= 1e-4 * moved
    assert losses[-1] != pytest.approx(losses[0], rel=1e-2)
    bare = lively(name)
    counted = METHODS[method].trainable(bare, resolve_targets(bare, spec.hyper.target), spec.hyper)
    assert counted == sum(tensor.numel() for tensor in theirs.values())
    METHODS[method].detach(model)


def plainly(model: Any, runtime: Runtime, spec: TrialSpec) -> Iterator[float]:
    hyper = spec.hyper
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=hyper.learning_rate, weight_decay=hyper.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: lr_multiplier(step, steps=spec.steps, warmup=hyper.warmup, schedule=hyper.schedule),
    )
    model.train()
    for step in range(spec.steps):
        chosen = batch_rows(spec.data_seed, step, hyper.batch_size, len(runtime.train_rows))
        loss = call(model, **padded([runtime.train_rows[place] for place in chosen])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, hyper.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield loss.item()


def padded(rows: Any) -> Batch:
    """Written out once more: sources end in the pad token, targets in a label that is passed over."""
    longest = {name: max(len(row[name]) for row in rows) for name in ("input_ids", "labels")}
    ids = [row["input_ids"] + [0] * (longest["input_ids"] - len(row["input_ids"])) for row in rows]
    mask = [[int(place < len(row["input_ids"])) for place in range(longest["input_ids"])] for row in rows]
    labels = [row["labels"] + [IGNORED] * (longest["labels"] - len(row["labels"])) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask), "labels": torch.tensor(labels)}


@pytest.mark.parametrize("name", ["t5", pytest.param("mt5", marks=pytest.mark.full), "bart"])
def test_a_pack_of_it_follows_peft(tmp_path: Path, name: str) -> None:
    runtime = load_runtime(seq2seq_settings(tmp_path, name, metric="exact_match", max_new_tokens=6))
    assert disproof(runtime, ["all-linear"], bank=False, recompute=False) == ""
    load, count = workload_of(runtime), 6
    trials = [
        spec_of("lora", steps=count),
        trial_spec(1, steps=count, rank=2, batch_size=4, dropout=0.0, neftune_alpha=5.0),
        trial_spec(2, steps=count, rank=8, dropout=0.2, target="attention", learning_rate=5e-3),
    ]
    trainer = PackedTrainer(runtime.model, load)
    for trial in trials:
        trainer.admit(trial)
    members = list(trainer.members.values())
    losses = []
    for _ in range(count):
        assert trainer.round(members) == []
        losses.append([member.loss for member in members])
    found = [trainer.evaluate(member, 2048) for member in members]
    assert trainer.parted == ""  # nobody had to go alone
    trainer.close()
    for place, trial in enumerate(trials):
        expected, metrics = alone(runtime, trial)
        assert [step[place] for step in losses] == pytest.approx(expected, rel=1e-6)
        assert found[place] == pytest.approx(metrics, rel=1e-6, abs=1e-6)


def alone(runtime: Runtime, spec: TrialSpec) -> tuple[list[float], dict[str, float]]:
    """Losses and last metrics of a trial by the plain loop, which the test above holds against PEFT's."""
    trial = SoloTrial(spec, runtime)
    trial.attach()
    losses = steps(trial, spec.steps)
    metrics = dict(trial.measure().metrics)
    trial.detach()
    return losses, metrics


def test_a_target_that_is_cut_begins_as_the_model_writes_it() -> None:
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = MBartConfig(
        vocab_size=64,
        d_model=16,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=50,
        **sizes,
    )
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    for target, start in (([10, 11, 2, 51], 51), ([10, 11, 12, 13], 50)):  # 51: of a language, behind the end
        ids = torch.tensor([target])
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
        with torch.no_grad():
            found = target_losses(model, batch)
            logits = model(input_ids=ids, decoder_input_ids=torch.tensor([[start, *target[:-1]]])).logits
        wanted = torch.nn.functional.cross_entropy(logits[0], ids[0], reduction="none")
        torch.testing.assert_close(found, wanted)


def test_both_stacks_are_adapted() -> None:
    for name in CONFIGS:
        model = lively(name)
        for target in ("qv", "attention", "mlp", "all-linear"):
            stacks = {"encoder" in layer.path.split(".") for layer in resolve_targets(model, target)}
            assert stacks == {True, False}, (name, target)
        adapted = {layer.path for layer in resolve_targets(model, "all-linear")}
        assert {layer.path for layer in linear_layers(model)} - adapted == {"lm_head"}


@pytest.mark.parametrize(("name", "method"), cases(("t5", "lora"), ("mt5", "prefix")))
def test_targets_are_written_as_whole_passes_write_them(tmp_path: Path, name: str, method: str) -> None:
    runtime = load_runtime(seq2seq_settings(tmp_path, name))
    spec = spec_of(method, steps=6)
    trial = SoloTrial(spec, runtime)
    trial.attach()
    for _ in range(spec.steps):
        trial.take_step()
    model = trial.model.eval()
    sources = [list(row["input_ids"]) for row in runtime.evaluation_rows[:6]]
    assert len({len(source) for source in sources}) > 1
    with torch.no_grad():
        found = generate(model, sources, runtime.tokenizer, max_new_tokens=7)
        assert found == [one_by_one(model, source, runtime.tokenizer, 7) for source in sources]
    trial.detach()


def one_by_one(model: Any, source: list[int], tokenizer: Any, most: int) -> str:
    ids, written = torch.tensor([source]), [model.config.decoder_start_token_id]
    while len(written) <= most and not (len(written) > 1 and written[-1] in end_tokens(model, tokenizer)):
        logits = call(
            model,
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            decoder_input_ids=torch.tensor([written]),
            use_cache=False,
        ).logits
        written.append(int(logits[0, -1].argmax()))
    return plain_text(tokenizer, written)


@pytest.mark.parametrize(("name", "method"), [("t5", "lora"), ("bart", "prefix")])
def test_a_trial_that_was_parked_goes_on_to_the_bit(tmp_path: Path, name: str, method: str) -> None:
    runtime = load_runtime(seq2seq_settings(tmp_path, name, importance=method == "lora"))
    spec = spec_of(method, dropout=0.2 if method == "lora" else 0.0, steps=6)
    first = SoloTrial(spec, runtime)
    first.attach()
    for _ in range(3):
        first.take_step()
    state = first.snapshot()
    losses = steps(first, 3)
    expected = first.measure()
    first.detach()
    again = SoloTrial(spec, load_runtime(seq2seq_settings(tmp_path, name, importance=method == "lora")), state)
    again.attach()
    assert steps(again, 3) == losses
    found = again.measure()
    assert (found.metrics, found.tokens, found.importances) == (expected.metrics, expected.tokens, expected.importances)
    assert bool(found.importances) == (method == "lora")
    again.detach()


def steps(trial: SoloTrial, count: int) -> list[float]:
    losses = []
    for _ in range(count):
        trial.take_step()
        losses.append(trial.loss)
    return losses


def finished(settings: HostSettings, spec: TrialSpec) -> tuple[Measurement, Path]:
    host = SoloHost(settings, load_runtime(settings))
    host.open(spec)
    news = list(host.advance())
    while not (isinstance(news[-1], Measurement) and news[-1].step == spec.steps):
        assert all(isinstance(item, Measurement) for item in news), news
        news += host.advance()
    host.shutdown()
    return news[-1], Path(news[-1].adapter or "")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by plain PEFT
@pytest.mark.parametrize(("name", "method"), cases(("t5", "lora"), ("mt5", "prefix"), ("t5", "full")))
def test_what_is_exported_measures_the_same(tmp_path: Path, name: str, method: str) -> None:
    settings = seq2seq_settings(tmp_path, name, metric="exact_match", metrics=("chrf", "loss"), max_new_tokens=8)
    last, folder = finished(settings, spec_of(method, steps=6, evaluate_every=6))
    assert {"loss", "perplexity", "exact_match", "rouge_l", "chrf"} == last.metrics.keys()
    assert evaluate_export(folder, settings) == pytest.approx(last.metrics, abs=1e-6)
    if METHODS[method].mergeable:
        merge_adapter(folder, settings, tmp_path / "merged")
        assert evaluate_merged(tmp_path / "merged", settings) == pytest.approx(last.metrics, rel=1e-4, abs=1e-4)
    runtime = load_runtime(settings)
    if method == "full":
        return
    model, _ = load_adapter(folder, settings.backbone)
    plain = AutoPeftModelForSeq2SeqLM.from_pretrained(folder).eval()
    batch = padded(runtime.evaluation_rows[:4])
    with torch.no_grad():
        assert torch.equal(call(model, **batch).logits, call(plain, **batch).logits)


def test_few_trials_are_as_good_as_one(tmp_path: Path) -> None:
    """Rows of a step may be computed a few at a time: targets of different lengths weigh by their tokens."""
    runtime = load_runtime(seq2seq_settings(tmp_path, "t5"))
    spec = spec_of("lora", steps=4)
    found = []
    for size in (6, 2):
        trial = SoloTrial(spec, runtime)
        trial.attach()
        trial.micro_batch = size
        found.append(steps(trial, 4))
        trial.detach()
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_noise_is_for_what_the_encoder_reads(tmp_path: Path) -> None:
    runtime = load_runtime(seq2seq_settings(tmp_path, "t5"))
    losses = []
    for alpha in (0.0, 20.0):
        trial = SoloTrial(replace(spec_of("lora", steps=2), hyper=noisy(alpha)), runtime)
        trial.attach()
        losses.append(steps(trial, 2))
        trial.detach()
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def noisy(alpha: float) -> Hyperparameters:
    return replace(spec_of("lora").hyper, neftune_alpha=alpha)
