"""Models of known sizes built from their configuration, with random weights, and rows of random tokens for them.

The time of a step depends on shapes and not on what the weights and tokens say, so nothing has to be downloaded.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from automl.lora import Hyperparameters, LinearShape
from automl.models.backbone import without_dropout
from automl.models.inventory import linear_layers, quantised_layers, resolve_targets
from automl.models.quantisation import check_installed
from automl.models.quantised import compute_as_in_training
from automl.packed import Workload
from automl.space.spec import DataSettings, TaskSettings
from automl.tasks import make_task
from automl.tasks.base import Row
from automl.trial import TrialSpec

LABELS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A configuration of transformers: model_type and its settings. is_decoder: a language model, else a classifier."""

    model_type: str
    settings: dict[str, Any]
    is_decoder: bool

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return int(self.settings["vocab_size"])


def bert(hidden: int, layers: int, heads: int, inner: int, vocabulary: int) -> Shape:
    """An encoder with a classification head."""
    settings = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
    }
    return Shape(model_type="bert", settings=settings, is_decoder=False)


def llama(
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    inner: int,
    vocabulary: int,
    *,
    model_type: str = "llama",
    tied: bool = True,
) -> Shape:
    """A decoder of Llama's settings, which Qwen's have too. tied: its lm_head is its embeddings."""
    settings = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return Shape(model_type=model_type, settings=settings, is_decoder=True)


SHAPES: dict[str, Shape] = {
    "tiny-bert": bert(32, 2, 4, 64, 64),
    "tiny-llama": llama(32, 2, 4, 2, 64, 64),
    "tiny-qwen": llama(32, 2, 4, 2, 64, 320, model_type="qwen2"),
    "minilm": bert(384, 6, 12, 1536, 30522),
    "smollm2-135m": llama(576, 30, 9, 3, 1536, 49152),
    "bert-base": bert(768, 12, 12, 3072, 30522),
    "0.1b": llama(768, 12, 12, 12, 2048, 32000),
    "0.4b": llama(1024, 24, 16, 16, 4096, 32000),
    "0.5b": llama(896, 24, 14, 2, 4864, 151936, model_type="qwen2"),
    "1b": llama(2048, 16, 32, 8, 8192, 32000),
    "8b": llama(4096, 32, 32, 8, 14336, 128256, tied=False),
}
"""minilm, smollm2-135m, 0.5b and 8b have the shapes of MiniLM-L6, SmolLM2-135M, Qwen2.5-0.5B and Llama-3-8B; the others
are of the size that they are named after."""


class PadOnly:
    """All of a tokenizer that training needs."""

    pad_token_id = 0


def build(
    name: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0, is_telling: bool = False
) -> nn.Module:
    """The model with random weights: frozen, in eval mode, without dropout; the same for the same seed and device.

    is_telling: weights so large that what a layer says decides what the model says. As transformers initialises it, a
    small model says nearly nothing, and a mistake in an adapter would not show in its loss.
    """
    shape = SHAPES[name]
    config = AutoConfig.for_model(shape.model_type, **shape.settings)
    if is_telling:
        config.initializer_range = 2.0 / shape.settings["hidden_size"] ** 0.5
    without_dropout(config)
    config.use_cache = False
    if not shape.is_decoder:
        config.id2label = {number: str(number) for number in range(LABELS)}
    auto = AutoModelForCausalLM if shape.is_decoder else AutoModelForSequenceClassification
    devices = [device] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices), torch.device(device):
        torch.manual_seed(seed)
        model = auto.from_config(config)
    assert isinstance(model, nn.Module)
    return model.to(dtype).requires_grad_(False).eval()


def held_in_4_bits(model: nn.Module, compute: torch.dtype) -> nn.Module:
    """The model, changed in place: the layers that a quantised backbone holds in few bits are in NF4, their scales too.

    compute: type of their products. Layer by layer on the model's device, so that no second copy of it is made. Raises
    MissingExtraError without bitsandbytes.
    """
    check_installed("nf4")
    bits: Any = import_module("bitsandbytes.nn")
    for layer in quantised_layers(model):
        owner, _, name = layer.path.rpartition(".")
        old: Any = model.get_submodule(layer.path)
        held = bits.Linear4bit(
            old.in_features,
            old.out_features,
            old.bias is not None,
            compute_dtype=compute,
            quant_type="nf4",
            device="meta",
        )
        weight = bits.Params4bit(old.weight.data, requires_grad=False, quant_type="nf4", module=held)
        held.weight, held.bias = weight.to(old.weight.device), old.bias
        setattr(model.get_submodule(owner), name, held)
    compute_as_in_training(model, compute)
    return model.requires_grad_(False).eval()


def workload(name: str, *, tokens: int, rows: int = 256, evaluation_rows: int = 32, seed: int = 3) -> Workload:
    """Rows of exactly `tokens` random tokens, labelled with one of five classes; a language model learns them all."""
    shape = SHAPES[name]
    draw = random.Random(seed)
    settings = TaskSettings(
        type="completion" if shape.is_decoder else "classification",
        data=DataSettings(kind="files"),
        metric="loss",
        max_length=tokens,
    )

    def row() -> Row:
        ids = [draw.randrange(3, shape.vocabulary) for _ in range(tokens)]
        return {"input_ids": ids, "labels": list(ids) if shape.is_decoder else draw.randrange(LABELS)}

    drawn = [row() for _ in range(rows + evaluation_rows)]
    return Workload(
        task=make_task(settings), train_rows=drawn[:rows], evaluation_rows=drawn[rows:], tokenizer=PadOnly()
    )


def trial(number: int, *, steps: int = 1_000_000, **hyper: Any) -> TrialSpec:
    """A trial that is never due for an evaluation before its last step."""
    return TrialSpec(
        number=number,
        params={},
        hyper=Hyperparameters(**hyper),
        seed=100 + number,
        data_seed=7,
        steps=steps,
        evaluate_every=steps,
    )


def mixed_trials(batch_size: int) -> list[TrialSpec]:
    """Four trials that differ in everything a pack must keep apart: what the oracle is asked about."""
    half = max(1, batch_size // 2)
    differences: list[dict[str, Any]] = [
        {"rank": 8, "target": "qv", "warmup": 0.0},
        {"rank": 4, "alpha": 4.0, "target": "all-linear", "dropout": 0.1, "clip": 0.1},
        {"rank": 16, "alpha": 32.0, "target": "attention", "schedule": "constant", "warmup": 0.0, "clip": 0.0},
        {"rank": 2, "use_rslora": True, "schedule": "cosine", "weight_decay": 0.1, "batch_size": half},
    ]
    # A rate at which no trial blows up: it would amplify rounding, and the oracle is asked about the engine.
    common = {"batch_size": batch_size, "learning_rate": 1e-3}
    return [trial(number, steps=40, **{**common, **each}) for number, each in enumerate(differences)]


def frozen_flops(model: nn.Module, tokens: int, *, backward: bool = True) -> float:
    """Operations in the frozen linear layers for this many tokens: 2 per weight and token forward, as many backward.

    The gradient of frozen weights is never formed. Attention, LoRA and pooled heads are left out, so percentages of a
    peak computed from it are on the low side. A language model's head counts, since every token here is a target.
    """
    layers: Sequence[LinearShape] = resolve_targets(model, "all-linear")
    head = [layer for layer in linear_layers(model) if layer.path == "lm_head"]
    weights = sum(layer.in_features * layer.out_features for layer in (*layers, *head))
    return (4.0 if backward else 2.0) * weights * tokens
