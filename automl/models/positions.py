"""How long a text a model can read, from its config.json alone, so that it is known before torch is imported.

Learned and tabulated positions end somewhere: one token more and the model fails. Rotary, relative and linear (ALiBi)
ones do not, but beyond the length a model was made for it may read worse.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len")
"""What architectures call the number of their positions."""

_ROWS_BEFORE_TEXT = {
    *("roberta", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "camembert", "xmod", "ibert", "luke", "lilt"),
    *("data2vec-text", "longformer", "mpnet", "esm", "layoutlmv3", "markuplm"),
}
"""Architectures that number positions from behind the padding token's id on: the first rows stay unused."""

_SINUSOIDAL = {"gptj", "codegen", "roformer", "ctrl"}
"""Architectures with rotary or sinusoidal positions whose angles lie in a table."""

_OPEN = {
    *("t5", "mt5", "umt5", "longt5", "switch_transformers", "xlnet", "funnel", "bloom", "xglm"),
    *("mamba", "mamba2", "falcon_mamba", "rwkv"),
}
"""Architectures without positions, with relative ones or a table that grows, whatever number they are configured with.
"""


class Positions(NamedTuple):
    """tokens: most that a text may have, or that the model was made for. is_hard: one more and it fails."""

    tokens: int
    is_hard: bool


def positions(config: Mapping[str, Any]) -> Positions | None:
    """Positions of the model with this configuration; None if nothing is known or there is no limit."""
    text = config.get("text_config")
    config = {**config, **text} if isinstance(text, Mapping) else config
    architecture = str(config.get("model_type", ""))
    found = next((config[name] for name in _NAMES if isinstance(config.get(name), int)), None)
    if found is None or found < 1 or architecture in _OPEN:
        return None
    if architecture in _ROWS_BEFORE_TEXT and _is_tabulated(architecture, config):
        found -= 1 + _padding_row(architecture, config)
    return Positions(found, _is_tabulated(architecture, config))


def _padding_row(architecture: str, config: Mapping[str, Any]) -> int:
    """Row of the table that belongs to padding: the token's id, 1 in MPNet whatever that is."""
    pad = config.get("pad_token_id")
    return 1 if architecture == "mpnet" or not isinstance(pad, int) else pad


def _is_tabulated(architecture: str, config: Mapping[str, Any]) -> bool:
    if architecture in _SINUSOIDAL:
        return True
    if "position_biased_input" in config:  # DeBERTa
        return bool(config["position_biased_input"])
    if isinstance(kind := config.get("position_embedding_type"), str):  # BERT and its family, ESM
        return kind == "absolute"
    return not any(_speaks_of_rotation(name, value) for name, value in config.items())


def _speaks_of_rotation(name: str, value: Any) -> bool:
    """Whether this entry is one of a model without a table. Old Llama configurations name nothing else that tells."""
    speaks = name.startswith(("rope_", "rotary_", "partial_rotary")) or name in ("rms_norm_eps", "alibi")
    return speaks and value is not None
