"""What the tests of sequence to sequence share: a T5, an mT5 and a BART whose weights say something, and rows."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, BartConfig, MT5Config, PreTrainedConfig, T5Config

from automl.models.backbone import load_tokenizer, resolve_model, without_dropout
from automl.space.spec import DataSettings, ModelSettings, TaskSettings
from automl.tasks import make_task
from automl.training.runtime import HostSettings
from tests.architectures import VOCABULARY
from tests.training.preference_cases import write
from tests.training.training_cases import write_backbone

Rows = list[dict[str, Any]]

_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2}
_IDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 2}

CONFIGS: dict[str, PreTrainedConfig] = {
    "t5": T5Config(**_T5, **_IDS, num_heads=4, decoder_start_token_id=0),
    "mt5": MT5Config(**_T5, **_IDS, num_decoder_layers=3, num_heads=3, feed_forward_proj="gated-gelu"),
    "bart": BartConfig(
        d_model=32,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=40,
        bos_token_id=1,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
        **_IDS,
    ),
}
"""Of mT5 and BART the decoder is deeper, and the heads of mT5 are narrower than its layers, as in mT5-small."""


def lively(name: str, seed: int = 5) -> torch.nn.Module:
    """A model whose weights are large enough for probabilities to be far from equal."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        without_dropout(CONFIGS[name])
        model = AutoModelForSeq2SeqLM.from_config(CONFIGS[name])
        for path, parameter in model.named_parameters():
            scale = 0.02 if "norm" in path else 0.08 if name == "mt5" else 0.15
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    found: torch.nn.Module = model.requires_grad_(False).eval()
    return found


def mirrored(count: int, *, seed: int = 0) -> Rows:
    """The target is the source's first words in the other order, each a word further."""
    rng = random.Random(seed)
    drawn = ([rng.randrange(3, 50) for _ in range(rng.randint(2, 9))] for _ in range(count))
    return [
        {
            "source": " ".join(f"w{word}" for word in words),
            "target": " ".join(f"w{word + 1}" for word in reversed(words[: 1 + len(words) // 2])),
        }
        for words in drawn
    ]


def seq2seq_task(path: Path, **options: Any) -> TaskSettings:
    values: dict[str, Any] = {"metric": "loss", "max_length": 16, "max_target_length": 12, "seed": 3}
    data = DataSettings(kind="files", files={"train": str(path)})
    return TaskSettings(type="seq2seq", data=data, **{**values, "evaluate_rows": 20, **options})


def seq2seq_settings(folder: Path, name: str = "t5", *, rows: Rows | None = None, **options: Any) -> HostSettings:
    """Settings over a backbone of this kind made in `folder`, trained on and judged by rows of this task."""
    if not (folder / "model").exists():
        write_backbone(folder / "model", name, model=lively(name))
    of_task = {key: options.pop(key) for key in ("metric", "metrics", "max_new_tokens") if key in options}
    task = seq2seq_task(write(folder / "rows.jsonl", rows or mirrored(60)), **of_task)
    backbone = resolve_model(ModelSettings(kind="folder", location=str(folder / "model")), folder / "cache")
    prepared = make_task(task).prepare(load_tokenizer(backbone), folder / "cache")
    values: dict[str, Any] = {"output": str(folder / "out"), "device": "cpu", "threads": 1, "importance": False}
    return HostSettings(backbone=backbone, task=task, prepared=prepared, **{**values, **options})
