"""Tiny models of many architectures (2 layers, width 32), packable or not, by transformers' name of the type."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from automl.models.backbone import without_dropout
from tests.architectures import LABELS, VOCABULARY

_SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
_NAMES = {**_SPECIAL, "cls_token_id": 2, "sep_token_id": 1, "mask_token_id": 3}
_SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCABULARY}
_ENCODER = {**_SIZE, "intermediate_size": 48, "pad_token_id": 0, "max_position_embeddings": 64}
_DECODER = {**_SIZE, **_SPECIAL, "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64}
_WINDOW = {**_DECODER, "head_dim": 8, "sliding_window": 8}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_DEEPSEEK = {
    **_DECODER,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
}
_OPT = {**_SIZE, **_SPECIAL, "ffn_dim": 64, "max_position_embeddings": 64, "word_embed_proj_dim": 32}
_DEBERTA = {
    **_ENCODER,
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "max_relative_positions": 16,
    "type_vocab_size": 0,
}

LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "llama": _DECODER,
    "qwen2": _DECODER,
    "qwen3": {**_DECODER, "head_dim": 8},
    "mistral": _WINDOW,
    "gemma2": _WINDOW,
    "gemma3_text": _WINDOW,
    "phi3": _DECODER,
    "gpt_neox": {key: value for key, value in _DECODER.items() if key != "num_key_value_heads"},
    "gpt2": {**_SPECIAL, "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY, "n_positions": 64},
    "mixtral": {**_DECODER, **_LOCAL},
    "qwen2_moe": {**_DECODER, **_EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {**_DECODER, **_EXPERTS, "head_dim": 8},
    "olmoe": {**_DECODER, "num_experts": 4, "num_experts_per_tok": 2},
    "granitemoe": {**_DECODER, **_LOCAL},
    "deepseek_v3": _DEEPSEEK,
    "cohere": _DECODER,
    "smollm3": _DECODER,
    "falcon": {**_SIZE, **_SPECIAL},
    "opt": _OPT,
    "bloom": {**_SPECIAL, "hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY},
}

CLASSIFIERS: dict[str, dict[str, Any]] = {
    "bert": _ENCODER,
    "roberta": _ENCODER,
    "electra": {**_ENCODER, "embedding_size": 16},
    "albert": {**_ENCODER, "embedding_size": 16},
    "distilbert": {
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 48,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    },
    "deberta": _DEBERTA,
    "deberta-v2": {**_DEBERTA, "position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm"},
    "modernbert": {**_ENCODER, **_NAMES, "local_attention": 8, "global_attn_every_n_layers": 2},
    "mpnet": _ENCODER,
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, "vocab_size": VOCABULARY, "pad_token_id": 0},
    "bart": {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 64,
        "decoder_start_token_id": 1,
        **_SPECIAL,
    },
    "longformer": {**_ENCODER, **_NAMES, "attention_window": 8},
    "nystromformer": {**_ENCODER, "num_landmarks": 4, "segment_means_seq_len": 4},
    "funnel": {
        "d_model": 32,
        "block_sizes": [1, 1],
        "n_head": 4,
        "d_head": 8,
        "d_inner": 48,
        "vocab_size": VOCABULARY,
        "num_decoder_layers": 1,
        "pad_token_id": 0,
    },
    "gpt2": LANGUAGE_MODELS["gpt2"],
    "qwen3": LANGUAGE_MODELS["qwen3"],
    "qwen2_moe": LANGUAGE_MODELS["qwen2_moe"],
    "falcon": LANGUAGE_MODELS["falcon"],
    "opt": _OPT,
}

MIXING = {
    ("deberta", "classification"): "rows",  # sends one table of positions through adapted layers for all rows
    ("deberta-v2", "classification"): "rows",
    ("longformer", "classification"): "rows",
    ("xlnet", "classification"): "differs",  # has time first and rows second
    ("nystromformer", "classification"): "differs",  # starts an iteration from a maximum over all rows
}
"""Models that cannot be packed, with a word of the reason."""


def many_models() -> list[tuple[str, str]]:
    """Name and kind of all models above."""
    return [
        *((name, "causal-lm") for name in LANGUAGE_MODELS),
        *((name, "classification") for name in CLASSIFIERS),
    ]


def model_of(name: str, kind: str) -> nn.Module:
    """A random model, frozen, in eval mode, without dropout, the same each time."""
    auto = AutoModelForCausalLM if kind == "causal-lm" else AutoModelForSequenceClassification
    config = AutoConfig.for_model(name, **(LANGUAGE_MODELS if kind == "causal-lm" else CLASSIFIERS)[name])
    without_dropout(config)
    if kind == "classification":
        config.id2label = dict(enumerate(LABELS))
        config.label2id = {label: index for index, label in enumerate(LABELS)}
        config.problem_type = "single_label_classification"
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers, about settings of such small models
        torch.manual_seed(0)
        return auto.from_config(config).eval().requires_grad_(False).float()
