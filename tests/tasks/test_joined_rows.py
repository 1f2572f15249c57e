"""Short rows joined into blocks: every row is learnt exactly as if it were alone."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from automl.errors import DataError, ModelError
from automl.models.backbone import load_tokenizer
from automl.packed.bank import BankSize
from automl.packed.trainer import PackedTrainer
from automl.packed.workload import Workload
from automl.space.spec import DataSettings, TaskSettings
from automl.tasks import make_task
from automl.tasks.base import IGNORED, Row
from automl.tasks.causal import loss_parts
from automl.tasks.collate import pad_rows
from automl.tasks.completion import Completion
from automl.tasks.joining import POSITIONS, join_rows, rows_of_block
from automl.training.joined import check_joined
from automl.training.runtime import load_runtimes
from tests.architectures import tiny_model
from tests.packed.packed_oracle import SETTINGS, PadOnly, PeftRun, spec, token_rows
from tests.training.training_cases import host_settings, write_backbone


def lively(name: str, attention: str = "sdpa") -> torch.nn.Module:
    """A model whose attention and positions show in its loss: weights several times as large as at the start."""
    model = tiny_model(name, kind="causal-lm")
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0 if "embed" in path or "wte" in path or "wpe" in path else 6.0)
    model.set_attn_implementation(attention)  # type: ignore[operator]
    return model.eval()


def blocks_of(rows: list[Row], most: int = 40) -> list[Row]:
    blocks = join_rows(rows, most)
    assert max(len(list(rows_of_block(block))) for block in blocks) > 2
    return blocks


def test_every_row_is_in_one_block_and_blocks_are_full() -> None:
    draw = random.Random(5)
    rows: list[Row] = [
        {"input_ids": ids, "labels": ids} for ids in ([number] * draw.randint(1, 60) for number in range(300))
    ]
    blocks = join_rows(rows, 64)
    found = [part for block in blocks for part in rows_of_block(block)]
    assert Counter(tuple(part["input_ids"]) for part in found) == Counter(tuple(row["input_ids"]) for row in rows)
    assert all(part["labels"] == [IGNORED, *part["input_ids"][1:]] for part in found)
    assert max(len(block["input_ids"]) for block in blocks) <= 64
    assert sum(len(row["input_ids"]) for row in rows) / (64 * len(blocks)) > 0.97
    assert join_rows(rows, 64) == blocks


def test_a_row_longer_than_a_block_is_one_alone() -> None:
    long: Row = {"input_ids": list(range(9)), "labels": list(range(9))}
    short: Row = {"input_ids": [1, 2], "labels": [1, 2]}
    assert [len(block["input_ids"]) for block in join_rows([short, long, short], 4)] == [9, 4]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox"])
def test_joined_rows_have_the_losses_and_gradients_of_single_ones(name: str, attention: str) -> None:
    model, rows = lively(name, attention).requires_grad_(True), token_rows("completion", count=14)
    blocks = blocks_of(rows)
    alone = [loss_parts(model, pad_rows([row], 0)) for row in rows]
    total, count = sum(part.total for part in alone), sum(part.count for part in alone)
    total.backward()
    wanted = {
        path: parameter.grad.clone() for path, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad()
    joined = loss_parts(model, pad_rows(blocks, 0))
    joined.total.backward()
    assert joined.count == count
    assert joined.total.item() == pytest.approx(total.item(), rel=1e-6)
    for path, parameter in model.named_parameters():
        if path in wanted:
            torch.testing.assert_close(
                parameter.grad, wanted[path], rtol=1e-4, atol=1e-4 * float(wanted[path].abs().max())
            )
    seen = [{name: row[name] for name in ("input_ids", "labels")} for row in blocks]  # as if a block were a text
    assert loss_parts(model, pad_rows(seen, 0)).total.item() != pytest.approx(total.item(), rel=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("bank", [None, BankSize(2, 8, ("all-linear",))], ids=["one by one", "bank"])
def test_packed_trials_learn_joined_rows_as_peft_does(name: str, bank: BankSize | None) -> None:
    model, rows = lively(name), blocks_of(token_rows("completion"), 24)
    load = Workload(task=Completion(SETTINGS), train_rows=rows, evaluation_rows=rows[:2], tokenizer=PadOnly())
    trials = [
        spec(0, rank=4, target="all-linear", batch_size=2, steps=6),
        spec(1, rank=8, alpha=16.0, target="all-linear", batch_size=3, dropout=0.1, steps=6),
    ]
    trainer = PackedTrainer(model, load, bank=bank)
    for trial in trials:
        trainer.admit(trial)
    members = list(trainer.members.values())
    losses: dict[int, list[float]] = {member.number: [] for member in members}
    for _ in range(6):
        assert trainer.round(members) == []
        for member in members:
            losses[member.number].append(member.loss)
    trainer.close()
    assert losses[0] == pytest.approx(PeftRun(model, load, trials[0]).losses, rel=1e-5)


def settings(path: Path, **fields: Any) -> TaskSettings:
    data = DataSettings(kind="files", files={"train": str(path)})
    given = {"type": "completion", "data": data, "metric": "loss", "max_length": 48, "short_texts": "join"}
    return TaskSettings(**given | fields)


def test_training_rows_are_joined_and_judging_ones_are_not(plain_tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"say {n}", "response": f"{n}!"}) + "\n" for n in range(200)))
    apart = make_task(settings(path, short_texts="")).prepare(plain_tokenizer, tmp_path / "cache")
    task = make_task(settings(path))
    made = task.prepare(plain_tokenizer, tmp_path / "cache")
    assert made.fingerprint != apart.fingerprint
    train = list(task.rows(made, "train"))
    parts = [part for row in train for part in rows_of_block(row)]
    single = list(make_task(settings(path, short_texts="")).rows(apart, "train"))
    assert sorted(part["input_ids"] for part in parts) == sorted(row["input_ids"] for row in single)
    assert (made.longest, made.rows["train"]) == (max(len(row["input_ids"]) for row in train), len(train))
    full = sum(len(row["input_ids"]) for row in train) / (48 * len(train))
    assert made.notes[-1] == (
        f"train: {len(single)} rows are joined into {len(train)} blocks of up to 48 tokens, {full:.0%} full"
    )
    for split in ("validation", "test"):
        assert list(task.rows(made, split)) == list(task.rows(apart, split))
    assert all(POSITIONS not in row for row in task.rows(made, "validation"))


def test_a_length_that_cuts_every_response_is_an_error_still(plain_tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"say it {n} " * 9, "response": "a"}) + "\n" for n in range(20)))
    with pytest.raises(DataError, match="max_length 8 cuts off the response of every train row"):
        make_task(settings(path, max_length=8)).prepare(plain_tokenizer, tmp_path / "cache")


def carrying_a_state() -> torch.nn.Module:
    config = AutoConfig.for_model(
        "recurrent_gemma",
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
        intermediate_size=64,
        vocab_size=64,
        lru_width=32,
        attention_window_size=64,
        block_types=["recurrent"],
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()  # type: ignore[no-any-return]


def test_a_model_that_carries_a_state_from_row_to_row_is_refused() -> None:
    blocks = blocks_of(token_rows("completion", count=14))
    with pytest.raises(
        ModelError, match=r"RecurrentGemmaForCausalLM lets joined rows see each other \(losses of tokens"
    ):
        check_joined(carrying_a_state(), blocks, 0)
    for name in ("llama", "gpt2"):
        check_joined(lively(name), blocks, 0)


def test_a_model_that_fails_on_joined_rows_is_refused_in_a_line() -> None:
    config = AutoConfig.for_model("falcon", hidden_size=32, num_hidden_layers=1, num_attention_heads=4, alibi=True)
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ModelError, match=r"FalconForCausalLM cannot read joined rows \(.+\); leave short_texts"):
        check_joined(model, blocks_of(token_rows("completion", count=14)), 0)


def test_the_rows_of_every_task_on_one_model_are_looked_at(tmp_path: Path) -> None:
    write_backbone(tmp_path / "model", "", model=carrying_a_state())
    first = host_settings(tmp_path, kind="causal-lm")
    task = replace(first.task, short_texts="join")
    prepared = make_task(task).prepare(load_tokenizer(first.backbone), tmp_path / "cache")
    second = replace(first, task=task, prepared=prepared)
    assert len(load_runtimes(replace(first, beside=(first,)))) == 2
    with pytest.raises(ModelError, match="RecurrentGemmaForCausalLM lets joined rows see each other"):
        load_runtimes(replace(first, beside=(second,)))
