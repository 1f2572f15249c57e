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


class Further(NamedTuple):
    """An architecture whose names differ. qv … mlp: the ends of the paths of each set's layers; empty: it has none.

    also: ends of the layers that all-linear has beside those. frozen: ends of those that no set may have, as PEFT
    cannot adapt them. has_stacked: much of the model is in tensors that are no linear layers.
    """

    settings: dict[str, Any]
    qv: tuple[str, ...]
    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    also: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    has_stacked: bool = False
    kind: str = "classification"


def _plain(**settings: Any) -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **settings,
    }


def _gpt(**settings: Any) -> dict[str, Any]:
    names = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40}
    return {**names, "vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **settings}


_BERT_MLP = ("intermediate.dense", "output.dense")
_QKV = ("q_proj", "k_proj", "v_proj")
_GATED = ("gate_proj", "up_proj", "down_proj")
_LLAMA = {"qv": ("self_attn.q_proj", "self_attn.v_proj"), "attention": (*_QKV, "self_attn.o_proj")}
_OPT = {"qv": ("attn.q_proj", "attn.v_proj"), "attention": (*_QKV, "attn.out_proj"), "mlp": ("fc1", "fc2")}
_BERT = {"qv": ("query", "value"), "attention": ("query", "key", "value", "attention.output.dense"), "mlp": _BERT_MLP}
_FUSED = {"qv": ("query_key_value",), "attention": ("query_key_value", "dense")}
_4H = ("dense_h_to_4h", "dense_4h_to_h")
_MLA_Q = ("q_a_proj", "q_b_proj")
_MLA_KV = ("kv_a_proj_with_mqa", "kv_b_proj")
_MLA = {"qv": (*_MLA_Q, *_MLA_KV), "attention": (*_MLA_Q, *_MLA_KV, "o_proj"), "mlp": ()}
_MLA_SETTINGS = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
_ROUTED = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
_DEEPSEEK = _plain(num_experts_per_tok=2, moe_intermediate_size=16, **_ROUTED, **_MLA_SETTINGS)

FURTHER: dict[str, Further] = {
    "albert": Further(
        _plain(embedding_size=16),
        qv=("query", "value"),
        attention=("query", "key", "value", "attention.dense"),
        mlp=("ffn", "ffn_output"),
        also=("embedding_hidden_mapping_in",),
    ),
    "electra": Further(_plain(embedding_size=16), **_BERT, also=("embeddings_project",)),
    "mobilebert": Further(
        _plain(embedding_size=16, intra_bottleneck_size=16),
        **_BERT,
        also=("bottleneck.dense", "input.dense", "bottleneck.attention.dense", "embedding_transformation"),
    ),
    "deberta": Further(
        _plain(pos_att_type=["p2c", "c2p"], relative_attention=True),
        qv=("in_proj",),
        attention=("in_proj", "attention.output.dense"),
        mlp=_BERT_MLP,
        also=("pos_proj", "pos_q_proj"),
    ),
    "deberta-v2": Further(
        _plain(pos_att_type=["p2c", "c2p"], relative_attention=True, position_biased_input=False),
        qv=("query_proj", "value_proj"),
        attention=("self.query_proj", "self.key_proj", "value_proj", "attention.output.dense"),
        mlp=_BERT_MLP,
        also=("pos_key_proj", "pos_query_proj"),
    ),
    "mpnet": Further(
        _plain(), qv=("attn.q", "attn.v"), attention=("attn.q", "attn.k", "attn.v", "attn.o"), mlp=_BERT_MLP
    ),
    "funnel": Further(
        {"d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64, "block_sizes": [1, 1], "vocab_size": VOCABULARY},
        qv=("q_head", "v_head"),
        attention=("q_head", "k_head", "v_head", "post_proj"),
        mlp=("linear_1", "linear_2"),
        has_stacked=True,
    ),
    "xlnet": Further(
        {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64, "vocab_size": VOCABULARY, "pad_token_id": 0},
        qv=(),
        attention=(),
        mlp=("ff.layer_1", "ff.layer_2"),
        has_stacked=True,
    ),
    "esm": Further(_plain(), **_BERT),
    "fnet": Further(_plain(), qv=(), attention=(), mlp=_BERT_MLP, also=("embeddings.projection",)),
    "bart": Further(
        {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 40,
        },
        **_OPT,
    ),
    "opt": Further(_plain(ffn_dim=64, word_embed_proj_dim=32), **_OPT),
    "gptj": Further(
        _gpt(rotary_dim=4),
        qv=("q_proj", "v_proj"),
        attention=(*_QKV, "attn.out_proj"),
        mlp=("fc_in", "fc_out"),
    ),
    "gpt_neo": Further(
        _plain(num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]),
        qv=("q_proj", "v_proj"),
        attention=(*_QKV, "attention.out_proj"),
        mlp=("mlp.c_fc", "mlp.c_proj"),
    ),
    "gpt_bigcode": Further(_gpt(), qv=("c_attn",), attention=("c_attn", "attn.c_proj"), mlp=("mlp.c_fc", "mlp.c_proj")),
    "starcoder2": Further(_plain(num_key_value_heads=2), **_LLAMA, mlp=("mlp.c_fc", "mlp.c_proj")),
    "phi": Further(_plain(), qv=("q_proj", "v_proj"), attention=(*_QKV, "self_attn.dense"), mlp=("fc1", "fc2")),
    "persimmon": Further(_plain(), **_FUSED, mlp=_4H),
    "glm": Further(_plain(num_key_value_heads=2, head_dim=8), **_LLAMA, mlp=("mlp.gate_up_proj", "mlp.down_proj")),
    "bloom": Further(_gpt(hidden_size=32), **_FUSED, mlp=_4H),
    "falcon": Further(_plain(), **_FUSED, mlp=_4H),
    "mpt": Further(
        {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 40, "vocab_size": VOCABULARY, "pad_token_id": 0},
        qv=("Wqkv",),
        attention=("Wqkv", "attn.out_proj"),
        mlp=("ffn.up_proj", "ffn.down_proj"),
    ),
    "mamba": Further(
        _plain(state_size=8),
        qv=(),
        attention=(),
        mlp=(),
        also=("in_proj", "x_proj", "dt_proj"),
        frozen=("out_proj",),
        kind="causal-lm",
    ),
    "mamba2": Further(
        _plain(state_size=8, num_heads=8, head_dim=8, n_groups=1),
        qv=(),
        attention=(),
        mlp=(),
        also=("in_proj",),
        frozen=("out_proj",),
        kind="causal-lm",
    ),
    "mixtral": Further(_plain(num_local_experts=4, num_key_value_heads=2), **_LLAMA, mlp=(), has_stacked=True),
    "qwen2_moe": Further(
        _plain(
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=32,
            num_key_value_heads=2,
        ),
        **_LLAMA,
        mlp=tuple(f"shared_expert.{name}" for name in _GATED),
        also=("shared_expert_gate",),
        has_stacked=True,
    ),
    "qwen3_moe": Further(
        _plain(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16), **_LLAMA, mlp=(), has_stacked=True
    ),
    "olmoe": Further(
        _plain(num_experts=4, num_experts_per_tok=2), **_LLAMA, mlp=(), has_stacked=True, kind="causal-lm"
    ),
    "granitemoe": Further(
        _plain(num_local_experts=4, num_experts_per_tok=2), **_LLAMA, mlp=(), has_stacked=True, kind="causal-lm"
    ),
    "deepseek_v2": Further(_DEEPSEEK, **_MLA, frozen=_GATED, has_stacked=True),
    "deepseek_v3": Further(_DEEPSEEK, **_MLA, frozen=_GATED, has_stacked=True),
}
"""Architectures by transformers' name that are looked at for their names only."""


def further_model(name: str) -> nn.Module:
    """On the meta device, with the kind of head the table says."""
    entry = FURTHER[name]
    auto = AutoModelForSequenceClassification if entry.kind == "classification" else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(AutoConfig.for_model(name, **entry.settings))
    assert isinstance(model, nn.Module)
    return model


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
