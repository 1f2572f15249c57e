"""What the tests of quantised backbones share: models wide enough for blocks of 64, with weights that matter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

from automl.models.backbone import without_dropout
from automl.space.spec import Quantization
from automl.training.runtime import HostSettings
from tests.architectures import tiny_config
from tests.training.training_cases import LABELS, host_settings, write_backbone

INT8, FP4 = Quantization(kind="int8"), Quantization(kind="fp4")
NF4, DOUBLE = Quantization(kind="nf4"), Quantization(kind="nf4", double=True)

_WIDE: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 64, "intermediate_size": 128},
    "llama": {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16},
    "gpt2": {"n_embd": 64},
}
_SCALE = 0.1  # of the weights: with transformers' 0.02 hardly anything depends on them


def wide_model(name: str, *, kind: str) -> nn.Module:
    """A random model, frozen, in eval mode, without dropout, the same every time."""
    auto = AutoModelForSequenceClassification if kind == "classification" else AutoModelForCausalLM
    config = tiny_config(name)
    without_dropout(config)
    for key, value in {**_WIDE[name], "initializer_range": _SCALE}.items():
        setattr(config, key, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto.from_config(config)
    return model.requires_grad_(False).eval()


def quantised_settings(
    folder: Path, name: str, quantization: Quantization | None, *, kind: str = "classification", **options: Any
) -> HostSettings:
    """Settings over a wide backbone that is to be held like this."""
    write_backbone(folder / "model", name, kind=kind, model=wide_model(name, kind=kind))
    settings = host_settings(folder, architecture=name, kind=kind, **options)
    return replace(settings, backbone=replace(settings.backbone, quantization=quantization))


def plainly_loaded(folder: Path, quantization: Quantization, *, kind: str = "classification") -> nn.Module:
    """The model as a user loads it, with transformers and bitsandbytes alone."""
    auto = AutoModelForSequenceClassification if kind == "classification" else AutoModelForCausalLM
    labels = {"num_labels": len(LABELS)} if kind == "classification" else {}
    kept = ["classifier", "bert.pooler", "lm_head"]
    if quantization.kind == "int8":
        given = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0, llm_int8_skip_modules=kept)
    else:
        given = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization.kind,
            bnb_4bit_use_double_quant=quantization.double,
            bnb_4bit_compute_dtype=torch.float32,
            llm_int8_skip_modules=kept,
        )
    return auto.from_pretrained(folder, quantization_config=given, dtype=torch.float32, **labels)
