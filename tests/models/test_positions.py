"""The number of positions that config.json tells is the number of tokens that the model can really read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from automl.models.positions import Positions, positions
from tests.architectures import ARCHITECTURES, FURTHER, tiny_config

_BERT = ARCHITECTURES["bert"].settings

MORE: dict[str, dict[str, Any]] = {
    "xlm-roberta": {**_BERT, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
    "camembert": {**_BERT, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
    "data2vec-text": {**_BERT, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
    "big_bird": {**_BERT, "attention_type": "original_full", "sep_token_id": 2},
    "nystromformer": _BERT,
    "roformer": _BERT,
    "rembert": _BERT,
    "luke": {**_BERT, "entity_vocab_size": 8},
    "ibert": _BERT,
    "gpt_neox": {**ARCHITECTURES["gpt-neox"].settings},
    "openai-gpt": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "vocab_size": 64},
    "ctrl": {"n_embd": 32, "n_layer": 2, "n_head": 4, "dff": 64, "n_positions": 40, "vocab_size": 64},
    "codegen": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "rotary_dim": 4, "vocab_size": 64},
    "xglm": {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64, "vocab_size": 64},
}
"""Beside those of `architectures.py`."""


def config_of(name: str) -> Any:
    if name in ARCHITECTURES:
        return tiny_config(name)
    return AutoConfig.for_model(name, **(FURTHER[name].settings if name in FURTHER else MORE[name]))


def can_read(model: Any, tokens: int) -> bool:
    ids = torch.full((1, tokens), 5)
    ids[0, -1] = {"bart": 2, "t5": 1}.get(model.config.model_type, 5)  # they read a text at its end-of-text token
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("name", [*ARCHITECTURES, *FURTHER, *MORE])
def test_one_token_more_is_what_the_model_cannot_read(name: str) -> None:
    config = config_of(name)
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0
    if name == "bart":
        config.eos_token_id = 2
    is_decoder = name in ("codegen", "xglm") or (name in FURTHER and FURTHER[name].kind == "causal-lm")
    auto = AutoModelForCausalLM if is_decoder else AutoModelForSequenceClassification
    model = auto.from_config(config).eval()
    limit = positions(config.to_dict())
    if limit is None or not limit.is_hard:
        assert can_read(model, 100)
    else:
        assert can_read(model, limit.tokens)
        assert not can_read(model, limit.tokens + 1)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, Positions(512, True)),
        ({"model_type": "roberta", "max_position_embeddings": 514}, Positions(512, True)),
        ({"model_type": "gpt2", "n_positions": 1024, "n_ctx": 1024}, Positions(1024, True)),
        ({"model_type": "t5", "n_positions": 512}, None),
        ({"model_type": "llama", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6}, Positions(2048, False)),
        ({"model_type": "falcon", "alibi": False, "max_position_embeddings": 2048}, Positions(2048, False)),
        (
            {"model_type": "gemma3", "text_config": {"rope_theta": 1.0, "max_position_embeddings": 9}},
            Positions(9, False),
        ),
        ({"model_type": "bert", "max_position_embeddings": "512"}, None),
        ({}, None),
    ],
    ids=lambda value: str(value.get("model_type")) if isinstance(value, dict) else None,
)
def test_configurations_as_they_lie_about(config: dict[str, Any], expected: Positions | None) -> None:
    assert positions(config) == expected
