"""Linear layers that PEFT refuses or would replace by others, and that are therefore in no target set.

PEFT itself is not asked, as importing it takes seconds: the tests hold these rules against it.
"""

from __future__ import annotations

from torch import nn
from transformers import conversion_mapping

_MAMBA = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"}
"""Architectures in which PEFT refuses `out_proj` (peft 0.21, tuners/tuners_utils.py), whose kernel bypasses it."""

_EXPERT_NAMES: dict[str, set[str]] = {
    "mixtral": {"gate", "w1", "w2", "w3"},
    "qwen2_moe": {"gate", "gate_proj", "up_proj", "down_proj"},
}
"""Names, by pattern of conversion, for which PEFT puts the fused experts in the place of the layers that are named
(peft 0.21, utils/transformers_weight_conversion.py): the layers themselves cannot be adapted.
"""


def left_out(model: nn.Module) -> dict[str, str]:
    """Path -> why, as the end of a sentence, in module order."""
    architecture = getattr(getattr(model, "config", None), "model_type", None)
    refused, reason = _refused(architecture)
    return {
        path: reason
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and path.rpartition(".")[2] in refused
    }


def _refused(architecture: str | None) -> tuple[set[str], str]:
    """Names at the end of a path that PEFT does not adapt in this architecture, and why."""
    if architecture in _MAMBA:
        return {"out_proj"}, f"PEFT cannot adapt it in '{architecture}' models"
    patterns: dict[str, str] = getattr(conversion_mapping, "_MODEL_TO_CONVERSION_PATTERN", {})
    names = _EXPERT_NAMES.get(patterns.get(architecture or "", ""), set())
    return names, f"PEFT would adapt the fused experts of '{architecture}' models in its place"
