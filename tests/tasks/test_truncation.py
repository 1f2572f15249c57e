"""What max_length cuts is said, and never shortens what an answer is compared with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from automl.space.spec import TaskSettings
from automl.tasks import make_task
from automl.tasks.causal import prompts_of
from automl.tasks.templates import chat_text


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_answers_without_their_end_are_counted(
    settings_for: Callable[..., TaskSettings], plain_tokenizer: Any, tmp_path: Path
) -> None:
    rows = [{"prompt": "x", "response": "z" * length} for length in (5, 17, 18, 30)]  # and x, line break, end-of-text
    settings = settings_for("completion", train=lines(rows), validation=lines(rows[:1]), test_share=0.0, max_length=20)
    prepared = make_task(settings).prepare(plain_tokenizer, tmp_path / "cache")
    assert prepared.notes[-1] == (
        "max_length 20 cuts 2 of 5 rows; 2 lose the end of what is learnt, and with it the token that ends a text;"
        " 95% of the rows have at most 33 tokens"
    )
    again = make_task(settings).prepare(plain_tokenizer, tmp_path / "cache")  # from the cache
    assert again.notes == prepared.notes


def test_a_cut_after_a_whole_answer_is_no_lost_end(
    settings_for: Callable[..., TaskSettings], chat_tokenizer: Any, tmp_path: Path
) -> None:
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant") * 2]
    settings = settings_for("instruction", train=lines([{"messages": turns}]), validation=lines([{"messages": turns}]))
    (whole, *_) = make_task(settings).lengths(chat_tokenizer, 1)
    settings = settings_for(
        "instruction",
        train=lines([{"messages": turns}]),
        validation=lines([{"messages": turns}]),
        test_share=0.0,
        max_length=whole - 5,
    )
    note = make_task(settings).prepare(chat_tokenizer, tmp_path / "cache").notes[-1]
    assert note.startswith(f"max_length {whole - 5} cuts 2 of 2 rows; 95% of")


def test_cut_texts_of_classes_are_counted(
    settings_for: Callable[..., TaskSettings], bert_tokenizer: Any, tmp_path: Path
) -> None:
    rows = [{"text": "good " * length, "label": "ab"[length % 2]} for length in range(4, 12)]
    content = lines(rows)
    settings = settings_for("classification", train=content, validation=content, test_share=0.0, max_length=10)
    prepared = make_task(settings).prepare(bert_tokenizer, tmp_path / "cache")
    assert prepared.notes[-1] == "max_length 10 cuts 6 of 16 rows; 95% of the rows have at most 13 tokens"
    assert make_task(settings).lengths(bert_tokenizer, 3) == [6, 7, 8]


def test_references_are_never_cut(
    settings_for: Callable[..., TaskSettings], plain_tokenizer: Any, tmp_path: Path
) -> None:
    rows = [{"prompt": "x", "response": f"{letter} the quick brown fox" * 3} for letter in "ab"]
    found = {}
    for rules in (1, 2):
        settings = settings_for(
            "completion", train=lines(rows), validation=lines(rows), test_share=0.0, max_length=8, rules=rules
        )
        task = make_task(settings)
        judging = task.rows(task.prepare(plain_tokenizer, tmp_path / "cache"), "validation")
        batch = task.collate(list(judging), 1)
        found[rules] = [
            plain_tokenizer.decode(prompt.response, skip_special_tokens=True) for prompt in prompts_of(batch)
        ]
    assert found[2] == [row["response"] for row in rows]
    assert all(whole.startswith(cut) and cut != whole for cut, whole in zip(found[1], found[2], strict=True))


def test_answers_longer_than_what_is_generated_are_counted(
    settings_for: Callable[..., TaskSettings], plain_tokenizer: Any, tmp_path: Path
) -> None:
    rows = [{"prompt": "x", "response": "z" * length} for length in (2, 6, 7)]
    for metric, limit, said in (("exact_match", 6, True), ("exact_match", 9, False), ("loss", 6, False)):
        settings = settings_for(
            "completion",
            train=lines(rows),
            validation=lines(rows),
            test_share=0.0,
            metric=metric,
            max_new_tokens=limit,
        )
        notes = make_task(settings).prepare(plain_tokenizer, tmp_path / "cache").notes
        expected = "of 1 of 3 validation rows the answer is longer than max_new_tokens 6, so that exact_match cannot"
        assert any(note.startswith(expected) for note in notes) == said


def metaspace_tokenizer(scheme: str) -> Any:
    """As Llama-2's: words begin with a mark, and so does a text (scheme first), or every piece of one (always)."""
    corpus = ["the cat sat on the mat . hello there , what is your name ? My name is Bob . [INST] [/INST]"] * 30
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    specials = ["<unk>", "<s>", "</s>"]
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=200, special_tokens=specials))
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    made.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    return made


TURNS = ["what is your name ?", "My name is Bob .", "hello there", "the cat sat"]


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_later_turns_have_the_tokens_that_serving_uses(
    scheme: str, settings_for: Callable[..., TaskSettings], tmp_path: Path
) -> None:
    tokenizer = metaspace_tokenizer(scheme)
    chat = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, TURNS, strict=True)]
    content = lines([{"messages": chat}])
    rows = {}
    for rules in (1, 2):
        settings = settings_for("instruction", train=content, validation=content, test_share=0.0, rules=rules)
        task = make_task(settings)
        rows[rules] = task.rows(task.prepare(tokenizer, tmp_path / "cache"), "train")[0]
    served = tokenizer.apply_chat_template(chat[:3], tokenize=True, return_dict=False)
    whole = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
    assert rows[2]["input_ids"][: len(served)] == served
    assert rows[2]["input_ids"] == whole
    assert rows[1]["input_ids"] != whole or scheme == "always"  # the first rules stay as they were


def test_a_response_in_the_middle_of_a_text_gets_no_space(
    settings_for: Callable[..., TaskSettings], tmp_path: Path
) -> None:
    tokenizer = metaspace_tokenizer("first")
    content = lines([{"prompt": "name", "response": "Bob"}])
    settings = settings_for("completion", train=content, validation=content, test_share=0.0)
    task = make_task(settings)
    row = task.rows(task.prepare(tokenizer, tmp_path / "cache"), "train")[0]
    learnt = [label for label in row["labels"] if label >= 0]
    assert tokenizer.convert_ids_to_tokens(learnt)[0].startswith("B")


def test_the_layout_of_plain_turns_is_unchanged(chat_tokenizer: Any) -> None:
    from automl.tasks.split import Example

    turns = tuple(zip(("user", "assistant") * 2, TURNS, strict=True))
    example = Example("file", 1, "", turns)
    assert chat_text(example, chat_tokenizer) == chat_text(example, chat_tokenizer, is_strict=False)
