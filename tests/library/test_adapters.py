"""Methods that PEFT does not have, from a search to the adapter on its model again in another process."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import automl
from automl.errors import CheckpointError, ConfigError, ModelError, NotEnoughEvidence
from automl.library.study import Study
from automl.results.suggestion import suggestion_of
from automl.storage.sql import open_database
from tests.architectures import save_tiny
from tests.sweep.tiny_world import WORDS

SEARCH: dict[str, Any] = {
    "study": "tiny",
    "task": {"type": "classification", "seed": 3},
    "space": {"method": ["adapter", "llama-pro"], "adapter_size": automl.Int(2, 8), "added_blocks": [1, 3]},
    "fixed": {"learning_rate": 0.02, "adapter_place": "houlsby", "batch_size": 8, "max_length": 12},
    "enqueue": [
        {"method": "adapter", "adapter_size": 5},
        {"method": "llama-pro", "added_blocks": 3},
    ],
    "sampler": "random",
    "pruner": "none",
    "trials": 2,
    "steps": 10,
    "evaluate_every": 5,
    "seed": 3,
    "keep": 2,
    "run": {"executor": "inline", "threads": 1, "precision": "fp32"},
    "show_progress": False,
}


def write_rows(path: Path) -> str:
    chance = random.Random(3)
    with path.open("w", encoding="utf-8") as lines:
        for number in range(120):
            label = list(WORDS)[number % 3]
            text = " ".join([*(chance.choice(WORDS[label]) for _ in range(4)), f"w{12 + number % 40}"])
            lines.write(json.dumps({"text": text, "label": label}) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    save_tiny(folder / "model", "llama", kind="classification")
    save_tiny(folder / "bert", "bert", kind="classification")
    write_rows(folder / "rows.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("AUTOML_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def study(home: Path) -> Study:
    """One trial of each; the first is of method adapter."""
    return automl.search("./model", "rows.jsonl", **SEARCH)


def test_each_method_is_searched_with_its_own_settings(study: Study) -> None:
    assert [dict(trial.params) for trial in study.trials] == SEARCH["enqueue"]
    assert {trial.state for trial in study.trials} == {"COMPLETE"}
    features, blocks = 32, 2
    head = 3 * features
    assert study.trials[0].trainable_params == head + 2 * blocks * (2 * 5 * features + 5 + features)
    block = 2 * features + 2 * features * features + 2 * features * 16 + 3 * features * 64
    assert study.trials[1].trainable_params == head + 3 * block


def test_an_adapter_is_loaded_in_a_fresh_process_and_measures_the_same(study: Study, home: Path) -> None:
    folder = study.export(home / "out", 0)  # which loads it there, by the lines that a user is told
    assert {path.name for path in folder.iterdir()} >= {"adapter.safetensors", "manifest.json", "config.json"}
    model, tokenizer = automl.load_adapter(folder)
    moved, _ = automl.load_adapter(folder, model="./model")
    own, _ = study.load_model(0)
    inputs = tokenizer(["w3 w4 w5 w20", "w9 w10"], return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = [
            each(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
            for each in (model, moved, own)
        ]
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])
    assert set(model.config.id2label.values()) == set(WORDS)
    with pytest.raises(CheckpointError, match=r"was trained on backbone .*, not on "):
        automl.load_adapter(folder, model="./bert")
    with pytest.raises(ModelError, match=r"adapter cannot be merged into the model; export it as it is$"):
        study.export(home / "merged", 0, merged=True)
    assert not (home / "merged").exists()


def test_added_blocks_come_out_as_an_ordinary_model(study: Study, home: Path) -> None:
    folder = study.export(home / "deep", 1, merged=True)  # transformers loads it in a fresh process
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"] == 5


def test_what_needs_low_rank_updates_says_so(study: Study, home: Path) -> None:
    for trial, method in enumerate(("adapter", "llama-pro")):
        with pytest.raises(
            ModelError, match=f"an adapter of method {method} cannot be cut; it has no low-rank updates"
        ):
            study.squeeze(trial, show_progress=False)
    said = rf"^study 'tiny': trial {study.best.number} is of method [a-z-]+, which has no ranks to suggest$"
    with pytest.raises(NotEnoughEvidence, match=said), open_database("sqlite:///automl.db", create=False) as database:
        suggestion_of(database, "tiny")
    page = study.report(home / "report.md").read_text(encoding="utf-8")
    assert f"automl.load_adapter('{study.best.adapter}')" in page
    assert "get_peft_model" not in page


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"fixed": {"method": "llama-pro", "max_length": 12}},
            "method: method llama-pro: BertForSequenceClassification is not a decoder of",
        ),
        ({"fixed": {"method": "adapter", "rank": 4}}, r"fixed.rank: is not used by method adapter; remove it"),
        (
            {"fixed": {"method": "adapter", "adapter_place": "before"}},
            r"'before' is not known; known: houlsby, pfeiffer",
        ),
        ({"fixed": {"method": "llama-pro", "added_blocks": 0}}, "fixed.added_blocks: 0 is below 1, the least allowed"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_trained(home: Path, given: dict[str, Any], said: str) -> None:
    options = {**SEARCH, "study": "not there", "space": "auto", "enqueue": None, **given}
    with pytest.raises(ConfigError, match=said) as error:
        automl.search("./bert", "rows.jsonl", **options)
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(automl.StudyNotFoundError):
        automl.open_study("not there")


def test_a_quantised_model_has_no_blocks_to_train(home: Path) -> None:
    (home / "space.yaml").write_text(
        "version: 1\nstudy: s\nmodel: {folder: ./model, quantization: nf4}\n"
        "task: {type: classification, data: rows.jsonl}\nfixed: {method: llama-pro}\n",
        encoding="utf-8",
    )
    with pytest.raises(
        ConfigError, match=r"5:17: fixed.method: 'llama-pro' needs whole weights of the model, which quantiz"
    ):
        automl.load_space("space.yaml")
