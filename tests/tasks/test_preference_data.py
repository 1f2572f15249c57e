"""Preferences: every way they can be wrong is one line; what is read, masked, cut; labels, prompts, kinds of rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from automl.errors import DataError
from automl.space.spec import TaskSettings
from automl.tasks import make_task
from automl.tasks.base import IGNORED, Prepared, Row

PAIR = {"prompt": "a question", "chosen": "a good answer", "rejected": "a bad answer"}
SINGLE = {"prompt": "a question", "completion": "an answer", "label": True}
ASKED = {"role": "user", "content": "a question"}
GOOD, BAD = {"role": "assistant", "content": "a good answer"}, {"role": "assistant", "content": "a bad answer"}


def rows_of(row: dict[str, Any], count: int = 20) -> list[dict[str, Any]]:
    """Good rows, each with a prompt of its own; labels take turns."""
    found = [{**row, "prompt": f"question {number}"} for number in range(count)]
    return [{**each, "label": number % 2 == 0} for number, each in enumerate(found)] if "label" in row else found


def text_of(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def pair(**changes: Any) -> str:
    """Twenty good pairs, then this one as row 21; None leaves a column out."""
    last = {name: value for name, value in {**PAIR, **changes}.items() if value is not ...}
    return text_of([*rows_of(PAIR), last])


def single(**changes: Any) -> str:
    last = {name: value for name, value in {**SINGLE, **changes}.items() if value is not ...}
    return text_of([*rows_of(SINGLE), last])


def messages(chosen: list[Any], rejected: list[Any], **others: Any) -> str:
    return text_of([*rows_of(PAIR), {"chosen": chosen, "rejected": rejected, **others}])


# case -> (content of train, what the message says after the file name)
WRONG = {
    "no prompt": (pair(prompt=...), ", row 21: no column 'prompt'; columns are 'chosen', 'rejected'; only lists of"),
    "null prompt": (pair(prompt=None), ", row 21, column 'prompt': text is null"),
    "empty prompt": (pair(prompt=" "), ", row 21, column 'prompt': text is empty"),
    "number as prompt": (pair(prompt=5), ", row 21, column 'prompt': text is int 5; a string is needed"),
    "no rejected": (pair(rejected=...), ", row 21: no column 'rejected'; columns are 'prompt', 'chosen'"),
    "null chosen": (pair(chosen=None), ", row 21, column 'chosen': text is null"),
    "empty rejected": (pair(rejected=""), ", row 21, column 'rejected': text is empty"),
    "list of texts": (
        pair(chosen=["x"], rejected=["y"]),
        ", row 21, column 'chosen': message 1 is 'x'; an object with",
    ),
    "NUL in chosen": (pair(chosen="a\0b"), ", row 21, column 'chosen': text holds a NUL character at position 1"),
    "half a surrogate": (
        pair().replace("a good answer", "\\ud800"),
        ", row 1, column 'chosen': text holds half a surrogate pair at position 0",
    ),
    "the same answers": (pair(rejected="a good answer "), ", row 21, column 'rejected': is the same as chosen; a pair"),
    "text and messages": (
        pair(chosen=[GOOD]),
        ", row 21, column 'rejected': is a text, the other answer a list of mes",
    ),
    "no such columns": (
        text_of([{"question": "x", "answer": "y"}] * 20),
        ", row 1: no column 'chosen'; columns are 'question', 'answer'; one of these sets is needed: prompt + chosen",
    ),
    "typo": (
        text_of([{"prompt": "x", "chosen": "y", "reject": "z"}] * 20),
        ", row 1: no column 'rejected'; columns are 'prompt', 'chosen', 'reject'",
    ),
    "empty list": (messages([], [BAD], prompt="x"), ", row 21, column 'chosen': is an empty list; a list of messages"),
    "unknown role": (
        messages([ASKED, {"role": "bard", "content": "x"}], [ASKED, BAD]),
        ", row 21, column 'chosen': message 2 has the role 'bard'; known: system",
    ),
    "no content": (messages([ASKED, {"role": "assistant"}], [ASKED, BAD]), ", row 21, column 'chosen': message 2 is"),
    "another prompt": (
        messages([ASKED, GOOD], [{**ASKED, "content": "another"}, BAD]),
        ", row 21, column 'chosen': message 1 (user) differs from the other's; chosen and rejected have to answer the",
    ),
    "the same messages": (messages([ASKED, GOOD], [ASKED, GOOD]), ", row 21, column 'rejected': is the same as chosen"),
    "no answer": (messages([ASKED, GOOD], [ASKED]), ", row 21, column 'rejected': no message of the assistant"),
    "one goes on": (
        messages([ASKED, GOOD, ASKED, GOOD], [ASKED, GOOD]),
        ", row 21, column 'rejected': ends after 2 messages, where the other one has an answer",
    ),
    "answer without prompt": (
        messages([GOOD], [BAD]),
        ", row 21: no column 'prompt'; columns are 'chosen', 'rejected'; only lists of messages can hold the prompt",
    ),
    "prompt that is not inside": (
        messages([ASKED, GOOD], [ASKED, BAD], prompt="something else"),
        ", row 21, column 'prompt': 'something else' is not in the messages of 'chosen', which begin with a prompt",
    ),
    "prompt ends with an answer": (
        messages([GOOD], [BAD], prompt=[ASKED, GOOD]),
        ", row 21, column 'prompt': ends with a message of the assistant; a prompt ends with what is to be answered",
    ),
    "not JSON": (text_of(rows_of(PAIR)) + "{'prompt': 1}\n", ", row 21: not JSON: Expecting property name"),
    "label missing": (single(label=...), ", row 21: no column 'label'; columns are 'prompt', 'completion'"),
    "label null": (
        single(label=None),
        ", row 21, column 'label': label is None; true (desirable) or false (undesirable)",
    ),
    "label of two": (single(label=2), ", row 21, column 'label': label is 2; true (desirable) or false"),
    "label in words": (single(label="good"), ", row 21, column 'label': label is 'good'; true (desirable) or false"),
    "label as a list": (single(label=[True]), ", row 21, column 'label': label is [True]; true (desirable) or false"),
    "completion null": (single(completion=None), ", row 21, column 'completion': text is null"),
    "one kind of labels": (
        text_of([{**row, "label": True} for row in rows_of(SINGLE)]),
        ", column 'label': all 20 rows are desirable; desirable and undesirable ones are needed",
    ),
    "a pair among labels": (
        text_of([*rows_of(SINGLE), PAIR]),
        ", row 21: no column 'completion'",
    ),
}


@pytest.fixture
def prepared(settings_for: Callable[..., TaskSettings], chat_tokenizer: Any, tmp_path: Path) -> Callable[..., Prepared]:
    def build(text: str, **options: Any) -> Prepared:
        if "validation" in options:
            options.setdefault("test_share", 0.0)
        settings = settings_for("preference", train=text, metric="preference_accuracy", **options)
        return make_task(settings).prepare(chat_tokenizer, tmp_path / "cache")

    return build


def read(made: Prepared, settings_for: Callable[..., TaskSettings], split: Any = "train") -> Sequence[Row]:
    return make_task(settings_for("preference", metric="loss")).rows(made, split)


@pytest.mark.parametrize("case", WRONG)
def test_bad_data_is_one_line(case: str, prepared: Callable[..., Prepared], tmp_path: Path) -> None:
    text, expected = WRONG[case]
    with pytest.raises(DataError) as caught:
        prepared(text)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'train.jsonl'}{expected}")
    assert "\n" not in message


def test_splits_of_two_kinds_are_refused(prepared: Callable[..., Prepared]) -> None:
    with pytest.raises(
        DataError, match=r"validation\.jsonl: holds single labels, the training rows are pairs; all have"
    ):
        prepared(text_of(rows_of(PAIR)), validation=text_of(rows_of(SINGLE)))


def test_bad_rows_can_be_left_out(prepared: Callable[..., Prepared]) -> None:
    made = prepared(pair(rejected=""), bad_rows="skip")
    assert sum(made.rows.values()) == 20
    assert made.notes[0].startswith("train: 1 of 21 rows cannot be used and are left out: ")


def texts(row: Row, tokenizer: Any) -> list[tuple[str, str]]:
    """Both texts of a row: all of it, and what carries loss."""
    found = []
    for part in (slice(None, row["first"]), slice(row["first"], None)):
        learnt = [token for token in row["labels"][part] if token != IGNORED]
        found.append((tokenizer.decode(row["input_ids"][part]), tokenizer.decode(learnt)))
    return found


HEAD = "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\na question<|im_end|>\n<|im_start|>assistant\n"


SHAPES = {
    "texts": PAIR,
    "messages after a text": {"prompt": "a question", "chosen": [GOOD], "rejected": [BAD]},
    "messages after messages": {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]},
    "prompt inside": {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
    "prompt inside and beside": {"prompt": "a question", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
    "names of ShareGPT": {
        "chosen": [{"from": "human", "value": "a question"}, {"from": "gpt", "value": "a good answer"}],
        "rejected": [{"from": "human", "value": "a question"}, {"from": "gpt", "value": "a bad answer"}],
    },
    "as JSON text": {"chosen": json.dumps([ASKED, GOOD]), "rejected": json.dumps([ASKED, BAD])},
    "of another name": {"prompt": "a question", "yes": "a good answer", "no": "a bad answer"},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_a_pair_gives_the_same_rows(
    shape: str, prepared: Callable[..., Prepared], settings_for: Callable[..., TaskSettings], chat_tokenizer: Any
) -> None:
    filler = [{**PAIR, "prompt": f"question {number}"} for number in range(20)]
    row = SHAPES[shape]
    columns = {"chosen": "yes", "rejected": "no"} if "yes" in row else None
    if columns:
        filler = [{"prompt": each["prompt"], "yes": each["chosen"], "no": each["rejected"]} for each in filler]
    made = prepared(text_of([row]), validation=text_of(filler), test=text_of(filler), columns=columns)
    (found,) = read(made, settings_for)
    assert texts(found, chat_tokenizer) == [
        (f"{HEAD}a good answer<|im_end|>", "a good answer<|im_end|>"),
        (f"{HEAD}a bad answer<|im_end|>", "a bad answer<|im_end|>"),
    ]


def test_answers_in_the_shared_prompt_carry_no_loss(
    prepared: Callable[..., Prepared], settings_for: Callable[..., TaskSettings], chat_tokenizer: Any
) -> None:
    start = [ASKED, {"role": "assistant", "content": "which one"}, {"role": "user", "content": "the first"}]
    rows = [{"chosen": [*start, GOOD], "rejected": [*start, BAD], "score": 0.5}]
    made = prepared(text_of(rows), validation=text_of(rows_of(PAIR)))
    (found,) = read(made, settings_for)
    assert [learnt for _, learnt in texts(found, chat_tokenizer)] == [
        "a good answer<|im_end|>",
        "a bad answer<|im_end|>",
    ]
    assert made.notes[0] == "in the data but not used: 'score'; task.data.ignore: [...] says that this is meant"


def test_single_labels_come_with_the_answer_of_the_row_before(
    prepared: Callable[..., Prepared], settings_for: Callable[..., TaskSettings], chat_tokenizer: Any
) -> None:
    labels: list[Any] = [True, 0, "false", "1"]
    rows = [{"prompt": f"ask {n}", "completion": f"say {n}", "label": label} for n, label in enumerate(labels)]
    made = prepared(text_of(rows), validation=text_of(rows))
    found = read(made, settings_for)
    assert [row["desirable"] for row in found] == [1, 0, 0, 1]
    learnt = [[text for _, text in texts(row, chat_tokenizer)] for row in found]
    own, before = [[text.removesuffix("<|im_end|>") for text in column] for column in zip(*learnt, strict=True)]
    assert own == ["say 0", "say 1", "say 2", "say 3"]
    assert before == ["say 3", "say 0", "say 1", "say 2"]
    assert all(f"ask {number}" in text for number, row in enumerate(found) for text, _ in texts(row, chat_tokenizer))


def test_a_pair_is_left_out_if_one_answer_is_cut_off(
    prepared: Callable[..., Prepared], settings_for: Callable[..., TaskSettings], plain_tokenizer: Any
) -> None:
    short = {"prompt": "q", "chosen": "one two three", "rejected": "three two one"}
    long = {**short, "prompt": "the quick brown fox jumps over the lazy dog and " * 10}
    rows = [{**short, "prompt": f"q{number}"} for number in range(30)]
    made = prepared(text_of([*rows, long]), max_length=90, validation=text_of(rows))
    assert made.rows["train"] == 30
    assert made.longest < 90
    assert "max_length 90 cuts off the whole response of 1 of 31 train rows; they are left out" in made.notes
    with pytest.raises(DataError, match="max_length 20 cuts off the response of every train row"):
        prepared(text_of(rows), max_length=20, validation=text_of(rows))


def test_rows_of_one_prompt_land_in_one_split(prepared: Callable[..., Prepared]) -> None:
    rows = [{**PAIR, "prompt": f"question {number // 4}", "chosen": f"answer {number}"} for number in range(160)]
    made = prepared(text_of(rows))
    assert all(count % 4 == 0 for count in made.rows.values())
    assert min(made.rows.values()) > 0


def test_one_text_decides_about_positions_two_about_memory(prepared: Callable[..., Prepared]) -> None:
    made = prepared(text_of(rows_of(PAIR)))
    task = make_task(TaskSettings(type="preference", data=None, metric="loss"))  # type: ignore[arg-type]
    assert task.texts == 2
    rows = task.rows(made, "train")
    assert made.longest == max(max(row["first"], len(row["input_ids"]) - row["first"]) for row in rows)
