"""Sources and targets: how they become tokens, what is cut, and every way they can be wrong, in one line each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from automl.errors import ConfigError, DataError
from automl.space.load import parse_space
from automl.space.spec import TaskSettings
from automl.tasks import make_task
from automl.tasks.base import IGNORED, Prepared
from automl.tasks.encoder_decoder import prompts_of, target_counts

Settings = Callable[..., TaskSettings]


def rows(count: int = 40) -> list[dict[str, Any]]:
    return [
        {"source": f"the film number {number}", "target": "good plot" * (1 + number % 2)} for number in range(count)
    ]


def lines(given: list[dict[str, Any]], *more: str) -> str:
    return "".join(f"{line}\n" for line in (*map(json.dumps, given), *more))


def prepared(settings: TaskSettings, tokenizer: Any, folder: Path) -> Prepared:
    return make_task(settings).prepare(tokenizer, folder / "cache")


@pytest.fixture
def seq2seq(settings_for: Settings) -> Settings:
    """Settings of the task over the rows of `train=`."""

    def build(**values: Any) -> TaskSettings:
        return settings_for("seq2seq", **{"max_length": 32, "max_target_length": 16, **values})

    return build


def test_a_row_is_the_tokens_of_the_source_and_of_the_target(
    seq2seq: Settings, bert_tokenizer: Any, tmp_path: Path
) -> None:
    settings = seq2seq(train=lines([{"source": "the film was not a", "target": "bad plot"}]), validation=GOOD)
    task = make_task(settings)
    row = task.rows(prepared(settings, bert_tokenizer, tmp_path), "train")[0]
    assert row["input_ids"] == bert_tokenizer("the film was not a")["input_ids"]
    assert row["labels"] == bert_tokenizer("bad plot")["input_ids"]  # [CLS] … [SEP]: as the tokenizer writes a text
    assert task.row_tokens(row) == 7
    batch = task.collate([row, {"input_ids": [2, 3], "labels": list(range(2, 9))}], 0)
    assert batch["input_ids"].shape == (2, 7) == batch["labels"].shape
    assert batch["labels"][0].tolist() == [*row["labels"], IGNORED, IGNORED, IGNORED]
    assert target_counts(batch) == [4, 7]
    assert [prompt.ids for prompt in prompts_of(batch)] == [tuple(row["input_ids"]), (2, 3)]


def test_the_end_token_is_learnt_even_if_the_tokenizer_adds_none(
    seq2seq: Settings, plain_tokenizer: Any, tmp_path: Path
) -> None:
    settings = seq2seq(train=lines(rows()), max_target_length=64)
    task = make_task(settings)
    row = task.rows(prepared(settings, plain_tokenizer, tmp_path), "train")[0]
    assert plain_tokenizer.eos_token_id not in row["input_ids"]
    assert row["labels"].count(plain_tokenizer.eos_token_id) == 1
    assert row["labels"][-1] == plain_tokenizer.eos_token_id


def test_long_sources_keep_their_end_token_and_long_targets_lose_it(
    seq2seq: Settings, bert_tokenizer: Any, tmp_path: Path
) -> None:
    long = {"source": "good " * 50, "target": "bad " * 30}
    settings = seq2seq(train=lines(rows()), validation=lines([long]), max_length=12, max_target_length=8)
    task, made = make_task(settings), prepared(settings, bert_tokenizer, tmp_path)
    (row,) = task.rows(made, "validation")
    assert (len(row["input_ids"]), row["input_ids"][-1]) == (12, bert_tokenizer.sep_token_id)
    assert (len(row["labels"]), row["labels"][-1]) == (8, bert_tokenizer.convert_tokens_to_ids("bad"))
    assert row["reference"] == bert_tokenizer(long["target"])["input_ids"]
    assert next(prompts_of(task.collate([row], 0))).response == tuple(row["reference"])
    assert made.longest == 12
    said = " ".join(made.notes)
    assert "max_length 12 cuts 1 of 41 rows; 95% of the rows have at most" in said
    assert "max_target_length 8 cuts 1 of 41 rows; 1 lose the end of what is learnt" in said


def test_other_limits_of_targets_are_other_rows(seq2seq: Settings, bert_tokenizer: Any, tmp_path: Path) -> None:
    made = [
        prepared(seq2seq(train=lines(rows()), max_target_length=length), bert_tokenizer, tmp_path) for length in (8, 9)
    ]
    assert made[0].fingerprint != made[1].fingerprint


def test_classes_are_learnt_as_words(seq2seq: Settings, bert_tokenizer: Any, tmp_path: Path) -> None:
    text = "text,label\n" + "".join(f"a film {n},{'good' if n % 2 else 'bad'}\n" for n in range(40))
    settings = seq2seq(train=text, suffix=".csv", columns={"source": "text", "target": "label"})
    made = prepared(settings, bert_tokenizer, tmp_path)
    words = {tuple(row["labels"][1:-1]) for row in make_task(settings).rows(made, "train")}
    assert words == {(4,), (5,)}


def test_what_is_not_read_is_named(seq2seq: Settings, bert_tokenizer: Any, tmp_path: Path) -> None:
    settings = seq2seq(train=lines([{**row, "id": 7} for row in rows()]))
    assert "in the data but not used: 'id'" in " ".join(prepared(settings, bert_tokenizer, tmp_path).notes)


def bad(value: str, column: str = "target") -> str:
    """Good rows, and one in which this JSON stands in the column."""
    other = "source" if column == "target" else "target"
    return lines(rows(), f'{{"{other}": "x", "{column}": {value}}}')


GOOD = lines(rows())
BAD = {
    "no target": (lines([{"source": "x", "targt": "y"}] * 3), "no column 'target'; columns are 'source', 'targt' (did"),
    "no source": (lines([{"src": "x", "target": "y"}] * 3), "row 1: no column 'source'; columns are 'src', 'target'"),
    "prompt and response": (
        lines([{"prompt": "x", "response": "y"}] * 3),
        "no column 'source'; columns are 'prompt', 'response'",
    ),
    "a translation": (lines([{"translation": {"en": "x", "de": "y"}}] * 3), "columns are 'translation'"),
    "missing in a row": (lines(rows(), '{"source": "x"}'), "row 41: no column 'target'"),
    "null": (bad("null"), "row 41, column 'target': text is null; every row needs one"),
    "null source": (bad("null", "source"), "row 41, column 'source': text is null"),
    "empty": (bad('""'), "row 41, column 'target': text is empty; every row needs one"),
    "blank source": (bad('" \\t "', "source"), "row 41, column 'source': text is empty"),
    "number": (bad("3"), "column 'target': text is int 3; a string is needed"),
    "fraction": (bad("0.5"), "column 'target': text is float 0.5; a string is needed"),
    "NaN": (bad("NaN"), "column 'target': text is float nan; a string is needed"),
    "true": (bad("true"), "column 'target': text is bool True; a string is needed"),
    "list": (bad('["a", "b"]'), "column 'target': text is list ['a', 'b']; a string is needed"),
    "messages": (bad('[{"role": "user"}]', "source"), "column 'source': text is list [{'role': 'user'}]"),
    "object": (bad('{"text": ["a"]}'), "column 'target': text is dict {'text': ['a']}; a string"),
    "NUL": (bad('"a\\u0000b"'), "column 'target': text holds a NUL character at position 1"),
    "half a surrogate": (bad('"a\\ud800"', "source"), "column 'source': text holds half a surrogate pair"),
    "no JSON": (lines(rows(), "{'source': 1}"), "row 41: not JSON"),
    "a list of lists": (lines(rows(), '["x", "y"]'), "row 41"),
    "a text alone": (lines(rows(), '"x"'), "row 41"),
    "cut off": (lines(rows(), '{"source": "x", "target"'), "row 41: not JSON"),
    "one row": (lines(rows(1)), "1 rows leave none for"),
    "one source": (lines([{"source": "x", "target": f"y {n}"} for n in range(20)]), "distinct inputs: 1"),
    "empty file": ("", "is empty (0 bytes)"),
    "UTF-16": ('{"source": "x", "target": "y"}\n'.encode("utf-16"), "UTF-16"),
    "Latin-1": (GOOD.encode() + b'{"source": "x", "target": "\xe9"}\n', "row 41"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_bad_rows_are_named_in_one_line(seq2seq: Settings, tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        prepared(seq2seq(train=content), None, tmp_path)  # nothing is tokenised
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


BAD_TABLES = {
    "header only": ("source,target\n", "header"),
    "a column twice": ("source,target,target\nx,y,z\n", "target"),
    "a field too many": ("source,target\nx,y\nx,y,z\n", "row 3"),
    "an open quote": ('source,target\nx,"y\n', "row 2: not CSV: unexpected end of data"),
    "no target": ("source;goal\nx;y\n", "no column 'target'"),
    "an empty target": ("source,target\nx,y\nz,\n", "row 3, column 'target': text is empty"),
}


@pytest.mark.parametrize(("content", "message"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_bad_tables_are_named_in_one_line(seq2seq: Settings, tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        prepared(seq2seq(train=content, suffix=".csv"), None, tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_column_cannot_be_source_and_target(seq2seq: Settings, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="source and target are both column 'target'; nothing but copying"):
        prepared(seq2seq(train=GOOD, columns={"source": "target"}), None, tmp_path)


def test_targets_of_which_the_tokenizer_leaves_nothing_are_refused(
    seq2seq: Settings, bert_tokenizer: Any, tmp_path: Path
) -> None:
    class Silent:
        """A tokenizer without a token for what it does not know, and without an end token."""

        eos_token_id = None

        def __call__(self, text: Any = None, *, text_target: Any = None, **options: Any) -> Any:
            return {"input_ids": [[] for _ in text_target]} if text is None else bert_tokenizer(text, **options)

        def __getattr__(self, name: str) -> Any:
            return getattr(bert_tokenizer, name)

    with pytest.raises(DataError, match=r"row \d+: the tokenizer makes no token of target 'good plot"):
        prepared(seq2seq(train=GOOD), Silent(), tmp_path)


SPACE = (
    "version: 1\nstudy: s\nmodel: org/none\nspace: {{learning_rate: auto}}\n"
    "task: {{type: {kind}, data: a.jsonl{more}}}\n"
)


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("seq2seq", ", max_target_length: 0", "max_target_length: 0"),
        ("seq2seq", ", max_target_length: many", "max_target_length: 'many'"),
        ("seq2seq", ", max_target_length: 1.5", "max_target_length"),
        ("seq2seq", ", max_new_tokens: 0", "max_new_tokens: 0"),
        ("seq2seq", ", long_texts: chunk", "unknown key"),
        ("seq2seq", ", format: alpaca", "unknown key"),
        ("seq2seq", ", metric: accuracy", "'accuracy' does not fit a seq2seq task"),
        ("seq2seq", ", metric: json_schema", "needs the schema"),
        ("instruction", ", max_target_length: 9", "unknown key"),
        ("seq2sec", "", "did you mean 'seq2seq'"),
    ],
)
def test_bad_sections_are_named_in_one_line(tmp_path: Path, kind: str, more: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_space(SPACE.format(kind=kind, more=more), "space.yaml", tmp_path)
    assert message in str(caught.value)
    assert len(caught.value.problems) == 1


def test_the_section_says_the_limit_of_targets(tmp_path: Path) -> None:
    found = parse_space(SPACE.format(kind="seq2seq", more=", max_target_length: 24, metric: bleu"), "s", tmp_path).task
    assert (found.max_target_length, found.max_length, found.longest_row, found.metric) == (24, 128, 128, "bleu")
    usual = parse_space(SPACE.format(kind="seq2seq", more=""), "s", tmp_path).task
    assert (usual.max_target_length, usual.metric) == (128, "loss")
