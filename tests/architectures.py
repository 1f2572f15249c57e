"""Tiny configurations of every supported architecture (2 layers, width 32), and what each target set means there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

from automl.models.backbone import without_dropout

VOCABULARY = 64
LABELS = ("negative", "neutral", "positive")


class Architecture(NamedTuple):
    """settings: for AutoConfig.for_model. The rest: kinds of layers (after the backbone's name) by target set."""

    model_type: str
    settings: dict[str, Any]
    qv: tuple[str, ...]
    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    head: tuple[str, ...]
    is_decoder: bool = False


def bert_like(model_type: str, **settings: Any) -> Architecture:
    layer = f"{model_type}.encoder.layer.*."
    query, key, value = (f"{layer}attention.self.{name}" for name in ("query", "key", "value"))
    return Architecture(
        model_type,
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 40,
            **settings,
        },
        qv=(query, value),
        attention=(query, key, value, f"{layer}attention.output.dense"),
        mlp=(f"{layer}intermediate.dense", f"{layer}output.dense"),
        head=("classifier",),
    )


def llama_like(model_type: str, **settings: Any) -> Architecture:
    layer = "model.layers.*."
    query, key, value, output = (f"{layer}self_attn.{name}_proj" for name in "qkvo")
    return Architecture(
        model_type,
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "intermediate_size": 64,
            "vocab_size": VOCABULARY,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **settings,
        },
        qv=(query, value),
        attention=(query, key, value, output),
        mlp=(f"{layer}mlp.gate_proj", f"{layer}mlp.up_proj", f"{layer}mlp.down_proj"),
        head=("score",),
        is_decoder=True,
    )


def t5_attention(*names: str) -> tuple[str, ...]:
    stack = "transformer."
    return tuple(
        f"{stack}{place}.{name}"
        for place in (
            "encoder.block.*.layer.*.SelfAttention",
            "decoder.block.*.layer.*.SelfAttention",
            "decoder.block.*.layer.*.EncDecAttention",
        )
        for name in names
    )


def t5_mlp(*names: str) -> tuple[str, ...]:
    return tuple(
        f"transformer.{side}.block.*.layer.*.DenseReluDense.{name}" for side in ("encoder", "decoder") for name in names
    )


T5 = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}

ARCHITECTURES: dict[str, Architecture] = {
    "bert": bert_like("bert"),
    "roberta": bert_like("roberta"),
    "distilbert": Architecture(
        "distilbert",
        {
            "dim": 32,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 64,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 40,
        },
        qv=("distilbert.transformer.layer.*.attention.q_lin", "distilbert.transformer.layer.*.attention.v_lin"),
        attention=tuple(f"distilbert.transformer.layer.*.attention.{name}_lin" for name in ("q", "k", "v", "out")),
        mlp=("distilbert.transformer.layer.*.ffn.lin1", "distilbert.transformer.layer.*.ffn.lin2"),
        head=("pre_classifier", "classifier"),
    ),
    "modernbert": Architecture(
        "modernbert",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 40,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "cls_token_id": 1,
            "sep_token_id": 2,
        },
        qv=("model.layers.*.attn.Wqkv",),
        attention=("model.layers.*.attn.Wqkv", "model.layers.*.attn.Wo"),
        mlp=("model.layers.*.mlp.Wi", "model.layers.*.mlp.Wo"),
        head=("head", "classifier"),
    ),
    "gpt2": Architecture(
        "gpt2",
        {
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "vocab_size": VOCABULARY,
            "n_positions": 40,
            "pad_token_id": 0,
            "bos_token_id": 2,
            "eos_token_id": 2,
        },
        qv=("transformer.h.*.attn.c_attn",),
        attention=("transformer.h.*.attn.c_attn", "transformer.h.*.attn.c_proj"),
        mlp=("transformer.h.*.mlp.c_fc", "transformer.h.*.mlp.c_proj"),
        head=("score",),
        is_decoder=True,
    ),
    "gpt-neox": Architecture(
        "gpt_neox",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 40,
            "pad_token_id": 0,
            "bos_token_id": 2,
            "eos_token_id": 2,
        },
        qv=("gpt_neox.layers.*.attention.query_key_value",),
        attention=("gpt_neox.layers.*.attention.query_key_value", "gpt_neox.layers.*.attention.dense"),
        mlp=("gpt_neox.layers.*.mlp.dense_h_to_4h", "gpt_neox.layers.*.mlp.dense_4h_to_h"),
        head=("score",),
        is_decoder=True,
    ),
    "llama": llama_like("llama"),
    "qwen2": llama_like("qwen2"),
    "qwen3": llama_like("qwen3"),
    "gemma3": llama_like("gemma3_text"),
    "phi3": llama_like("phi3")._replace(
        qv=("model.layers.*.self_attn.qkv_proj",),
        attention=("model.layers.*.self_attn.qkv_proj", "model.layers.*.self_attn.o_proj"),
        mlp=("model.layers.*.mlp.gate_up_proj", "model.layers.*.mlp.down_proj"),
    ),
    "t5": Architecture(
        "t5",
        T5,
        qv=t5_attention("q", "v"),
        attention=t5_attention("q", "k", "v", "o"),
        mlp=t5_mlp("wi", "wo"),
        head=("classification_head",),
    ),
    "t5-gated": Architecture(
        "t5",
        {**T5, "feed_forward_proj": "gated-gelu"},
        qv=t5_attention("q", "v"),
        attention=t5_attention("q", "k", "v", "o"),
        mlp=t5_mlp("wi_0", "wi_1", "wo"),
        head=("classification_head",),
    ),
}

DECODERS = [name for name, architecture in ARCHITECTURES.items() if architecture.is_decoder]


def tiny_config(name: str) -> Any:
    """A fresh configuration with dropout as the architecture's authors left it."""
    architecture = ARCHITECTURES[name]
    config = AutoConfig.for_model(architecture.model_type, **architecture.settings)
    config.id2label = dict(enumerate(LABELS))
    config.label2id = {label: index for index, label in enumerate(LABELS)}
    return config


def tiny_model(name: str, *, kind: str = "classification", seed: int = 0) -> nn.Module:
    """A random model in eval mode, frozen, without dropout, the same for the same seed."""
    auto = AutoModelForSequenceClassification if kind == "classification" else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = tiny_config(name)
        without_dropout(config)
        model = auto.from_config(config)
    return model.requires_grad_(False).eval()


def tiny_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """One id per word, VOCABULARY words: [PAD], [UNK], </s>, then w3 … w63. `special` names the tokens it declares."""
    words = ["[PAD]", "[UNK]", "</s>", *(f"w{index}" for index in range(3, VOCABULARY))]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **({"pad_token": "[PAD]"} | special))


def save_tiny(folder: Path, name: str, *, kind: str = "backbone") -> Path:
    """Write a model folder (config.json, safetensors, tokenizer) with random weights, with or without a head."""
    if kind == "backbone":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModel.from_config(tiny_config(name))
    else:
        model = tiny_model(name, kind=kind)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
