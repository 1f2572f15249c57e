"""Small real tokenizers and models, and settings with everything but the data filled in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from automl.space.spec import DataSettings, TaskSettings

# As SmolLM2's: a default system message, and pad = eos = end of turn.
CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

CORPUS = [
    "the quick brown fox jumps over the lazy dog and runs away",
    "a small text about nothing in particular, with some words repeated: words, words, words",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
]


def byte_tokenizer() -> Any:
    """Byte-level BPE of 320 tokens: every text is encodable, decoding gives it back."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")


@pytest.fixture(scope="session")
def plain_tokenizer() -> Any:
    """Without a chat template."""
    return byte_tokenizer()


@pytest.fixture(scope="session")
def chat_tokenizer() -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture(scope="session")
def bert_tokenizer() -> Any:
    """Puts [CLS] and [SEP] around texts and numbers the two segments of a pair, as BERT's."""
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "good",
        "bad",
        "great",
        "awful",
        "film",
        "plot",
        "was",
        "the",
        "a",
        "not",
    ]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@pytest.fixture(scope="session")
def tiny_llama() -> torch.nn.Module:
    """Two layers, width 32, 320 tokens; frozen, so that no test can change it for another."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=1,
        eos_token_id=1,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture
def settings_for(tmp_path: Path) -> Callable[..., TaskSettings]:
    """Task settings over files written from texts: `settings_for('completion', train='...', suffix='.jsonl')`."""

    def build(
        kind: Any, *, suffix: str = ".jsonl", columns: dict[str, str] | None = None, **values: Any
    ) -> TaskSettings:
        files = {}
        for split in ("train", "validation", "test"):
            if split in values:
                path = tmp_path / f"{split}{suffix}"
                text = values.pop(split)
                path.write_bytes(text if isinstance(text, bytes) else text.encode())
                files[split] = str(path)
        data = DataSettings(kind="files", files=files, columns=columns or {})
        values.setdefault("metric", "accuracy" if kind == "classification" else "loss")
        return TaskSettings(type=kind, data=data, **values)

    return build
