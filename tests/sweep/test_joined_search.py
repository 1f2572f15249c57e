"""Searches over joined rows, and what they are refused for before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

import automl
from automl.errors import ConfigError
from automl.setup.fitness import check_joins
from automl.space.load import parse_space
from tests.training.preference_cases import lively_llama
from tests.training.training_cases import write_backbone, write_rows

SEARCH: dict[str, Any] = {
    "space": {"learning_rate": automl.Float(1e-3, 3e-2, log=True)},
    "fixed": {"target": "all-linear", "batch_size": 2, "max_length": 32},
    "sampler": "random",
    "pruner": "none",
    "trials": 2,
    "steps": 4,
    "evaluate_every": 2,
    "run": {"executor": "inline", "threads": 1, "precision": "fp32"},
    "squeeze": False,
    "show_progress": False,
}


@pytest.fixture
def home(tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_backbone(tmp_path / "model", "llama", kind="causal-lm", model=lively_llama())
    write_rows(tmp_path / "rows.jsonl", rows=60)
    write_rows(tmp_path / "more.jsonl", rows=30)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_joined_rows_of_a_mixture_are_searched_over(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts = [{"file": "rows.jsonl", "weight": 0.3}, {"file": "more.jsonl", "weight": 0.7}]
    task = {"type": "completion", "short_texts": "join"}
    study = automl.search("./model", parts, study="joined", task=task, **SEARCH)
    assert [trial.state for trial in study.trials] == ["COMPLETE", "COMPLETE"]
    assert "train: 55 rows are joined into 19 blocks of up to 32 tokens, 91% full" in caplog.messages
    assert any("more.jsonl: 6 blocks of training rows, 69.8% of what is trained on" in note for note in caplog.messages)
    assert any(" of 43 training rows (0.2 epochs)" in note for note in caplog.messages)
    with pytest.raises(ConfigError, match=r"task.short_texts: virtual tokens belong before each row"):
        automl.search("./model", parts, study="virtual", task=task, **SEARCH | {"fixed": {"method": "prompt"}})


TEXT = """\
version: 1
study: s
model: ./m
task: {type: instruction, data: a.jsonl, short_texts: %s}
fixed: {max_length: 64}
"""


TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 16}


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("bloom", {"n_layer": 1, "n_head": 2}, "a model of type bloom cannot be told where a joined row begins"),
        (
            "mistral",
            {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "sliding_window": 32},
            "the model attends to 32 tokens at once, fewer than max_length 64",
        ),
        (
            "gemma3",
            {"text_config": {**TINY, "sliding_window": 32}, "vision_config": {**TINY, "image_size": 28}},
            "the model attends to 32 tokens at once, fewer than max_length 64",
        ),
        (
            "llama4_text",
            {**TINY, "num_key_value_heads": 1, "head_dim": 4, "num_local_experts": 1, "attention_chunk_size": 16},
            "the model attends to 16 tokens at once, fewer than max_length 64",
        ),
        (
            "falcon",
            {"num_hidden_layers": 1, "num_attention_heads": 2, "alibi": True},
            "a model of type falcon cannot be told where a joined row begins",
        ),
    ],
)
def test_models_that_cannot_keep_rows_apart_are_refused(kind: str, settings: dict[str, Any], said: str) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**TINY, **settings}))
    with pytest.raises(ConfigError, match=f"s.yaml: task.short_texts: {said}; leave it out"):
        check_joins(parse_space(TEXT % "join", "s.yaml", Path("/f")), model, 0)
    check_joins(parse_space(TEXT % "none", "s.yaml", Path("/f")), model, 0)


def test_off_is_no_part_of_what_a_study_means() -> None:
    plain, off, on = (
        parse_space(TEXT.replace(", short_texts: %s", said), "s.yaml", Path("/f"))
        for said in ("", ", short_texts: none", ", short_texts: join")
    )
    assert plain.sha256 == off.sha256 != on.sha256
    assert (off.task.short_texts, on.task.short_texts) == ("", "join")
    with pytest.raises(ConfigError, match=r"s.yaml:4:55: task.short_texts: 'pack' is not known; known: join, none"):
        parse_space(TEXT % "pack", "s.yaml", Path("/f"))
