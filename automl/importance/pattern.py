"""A rank for every module as other programs take it: PEFT's LoraConfig, Ludwig's adapter section, Axolotl.

Alpha over rank is the same in every module: wherever the pattern sets a rank it sets alpha too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from automl.lora import Hyperparameters, peft_patterns

Format = Literal["peft", "axolotl", "ludwig"]

_FOLDER = "suggested-adapter"


def patterned(hyper: Hyperparameters, ranks: Mapping[str, int]) -> Hyperparameters:
    """The configuration with these ranks and the same scaling: `rank` is the most common one, the rest is the pattern.

    Of equally common ranks the smallest. Raises ValueError for a rank below 1.
    """
    counts = Counter(ranks.values())
    most = max(counts.values())
    rank = min(rank for rank, count in counts.items() if count == most)
    # The scaling of the new rank must be that of the old one: alpha / rank, or alpha / sqrt(rank).
    alpha = hyper.scaling / replace(hyper, rank=rank, alpha=1.0, rank_pattern=()).scaling
    return replace(hyper, rank=rank, alpha=alpha, rank_pattern=()).with_ranks(ranks)


def peft_block(hyper: Hyperparameters, modules: list[str]) -> dict[str, Any]:
    """Arguments of PEFT's LoraConfig for this configuration of exactly these modules (full paths).

    The keys of both patterns are anchored and escaped: each fits one module.
    """
    ranks, alphas = peft_patterns(hyper)
    return {
        "r": hyper.rank,
        "lora_alpha": _short(hyper.alpha),
        "target_modules": list(modules),
        "rank_pattern": ranks,
        "alpha_pattern": {key: _short(alpha) for key, alpha in alphas.items()},
        "lora_dropout": hyper.dropout,
        "use_rslora": hyper.use_rslora,
    }


def snippet(block: Mapping[str, Any], form: Format, task_type: str) -> str:
    """Text to paste. block: from `peft_block`; task_type: PEFT's."""
    return {"peft": _peft, "ludwig": _ludwig, "axolotl": _axolotl}[form](block, task_type)


def _peft(block: Mapping[str, Any], task_type: str) -> str:
    lines = [f"    {name}={_python(value)}," for name, value in {"task_type": task_type, **block}.items()]
    return "\n".join(["from peft import LoraConfig", "", "config = LoraConfig(", *lines, ")"])


def _ludwig(block: Mapping[str, Any], task_type: str) -> str:
    names = {"lora_alpha": "alpha", "lora_dropout": "dropout"}
    lines = ["# needs a Ludwig whose lora adapter has rank_pattern and alpha_pattern", "adapter:", "  type: lora"]
    return "\n".join(lines + [f"  {names.get(name, name)}: {json.dumps(value)}" for name, value in block.items()])


def _axolotl(block: Mapping[str, Any], task_type: str) -> str:
    """Axolotl has no key for ranks by module, but trains an adapter that is there: one with these ranks, untrained."""
    return "\n".join(
        [
            "# Axolotl has no rank_pattern: let it go on with an untrained adapter that has one. Once, in Python:",
            "#   from peft import get_peft_model",
            "#   from transformers import AutoModelForCausalLM",
            "#   config = ...  # automl suggest STUDY --format peft",
            f'#   get_peft_model(AutoModelForCausalLM.from_pretrained(MODEL), config).save_pretrained("{_FOLDER}")',
            "adapter: lora",
            f"lora_model_dir: ./{_FOLDER}",
            f"lora_r: {block['r']}",
            f"lora_alpha: {json.dumps(block['lora_alpha'])}",
            f"lora_dropout: {json.dumps(block['lora_dropout'])}",
            f"lora_target_modules: {json.dumps(block['target_modules'])}",
            f"peft_use_rslora: {json.dumps(block['use_rslora'])}",
        ]
    )


def _python(value: object) -> str:
    if isinstance(value, Mapping) and value:
        return "{\n" + "".join(f"        {key!r}: {item!r},\n" for key, item in value.items()) + "    }"
    if isinstance(value, list) and value:
        return "[\n" + "".join(f"        {item!r},\n" for item in value) + "    ]"
    return repr(value)


def _short(value: float) -> float | int:
    """A whole number as int: PEFT annotates alpha so."""
    return int(value) if value == int(value) else value
