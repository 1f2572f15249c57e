"""Sets of labels: how rows write them, what is measured, and every way they can be wrong, in one line each."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss

from automl.errors import DataError
from automl.space.spec import TaskSettings
from automl.tasks import make_task
from automl.tasks.base import Prepared
from automl.tasks.label_sets import f1_scores

Settings = Callable[..., TaskSettings]


def rows(count: int = 60) -> list[dict[str, Any]]:
    return [{"text": f"good film {n}", "labels": list("abc")[n % 3 : n % 4]} for n in range(count)]


def lines(given: list[dict[str, Any]], *more: str) -> str:
    return "".join(f"{line}\n" for line in (*map(json.dumps, given), *more))


def prepared(settings: TaskSettings, tokenizer: Any, folder: Path) -> Prepared:
    return make_task(settings).prepare(tokenizer, folder / "cache")


def test_rows_hold_the_ids_of_their_labels(settings_for: Settings, bert_tokenizer: Any, tmp_path: Path) -> None:
    settings = settings_for("multi_label", train=lines(rows()), validation=lines(rows(9)), metric="micro_f1")
    task, made = make_task(settings), prepared(settings, bert_tokenizer, tmp_path)
    assert made.labels == ("a", "b", "c")
    found = task.rows(made, "validation")
    assert [row["labels"] for row in found] == [["abc".index(name) for name in row["labels"]] for row in rows(9)]
    batch = task.on(made).collate([found[0], found[3], found[7]], 0)
    assert batch["targets"].tolist() == [[0, 0, 0], [1, 1, 1], [0, 1, 1]]
    assert "labels" not in batch


@pytest.mark.parametrize(
    ("written", "options"),
    [("a|b", {}), (" a | b ", {}), ('"[""a"",""b""]"', {}), ("a;b", {"own": {"separator": ";"}})],
)
def test_csv_writes_them_with_a_separator_or_as_json(
    settings_for: Settings, bert_tokenizer: Any, tmp_path: Path, written: str, options: dict[str, Any]
) -> None:
    train = "text,labels\n" + "".join(f"film {n},{'a' if n % 2 else 'c'}\n" for n in range(20)) + f"film,{written}\n"
    settings = settings_for("multi_label", train=train, suffix=".csv", metric="loss", test_share=0.0, **options)
    task, made = make_task(settings), prepared(settings, bert_tokenizer, tmp_path)
    assert made.labels == ("a", "b", "c")
    found = [row["labels"] for split in ("train", "validation") for row in task.rows(made, split)]  # type: ignore[arg-type]
    assert [0, 1] in found


def row(labels: str) -> str:
    """Forty good rows, then one with these labels, as JSON."""
    return lines(rows(40), f'{{"text": "x", "labels": {labels}}}')


BAD = {
    "missing column": (lines([{"text": "x", "lables": ["a"]}] * 3), "no column 'labels'; columns are 'text', 'lables'"),
    "missing in a row": (lines(rows(40), '{"text": "x"}'), "row 41: no column 'labels'"),
    "null": (
        row("null"),
        "row 41, column 'labels': labels are None; a row to which none applies has an empty list, []",
    ),
    "NaN": (row("NaN"), "labels are nan; a row to which none applies"),
    "empty text": (row('""'), "labels are ''; a row to which none applies"),
    "a number": (row("3"), "labels are int 3; a list of names is needed"),
    "a truth value": (row("true"), "labels are bool True; a list of names is needed"),
    "an object": (row('{"a": 1}'), "labels are dict {'a': 1}; a list of names is needed"),
    "null inside": (row('["a", null]'), "label is None; every row needs a class"),
    "NaN inside": (row('["a", NaN]'), "label is nan; every row needs a class"),
    "blank inside": (row('["a", " "]'), "label is ' '; every row needs a class"),
    "nothing between separators": (row('"a||b"'), "label is ''; every row needs a class"),
    "separator at the end": (row('"a|"'), "label is ''; every row needs a class"),
    "fraction inside": (row("[0.5]"), "label is float 0.5; a string or a whole number is needed"),
    "infinite inside": (row("[Infinity]"), "label is float inf; a string or a whole number is needed"),
    "list inside": (row('[["a"]]'), "label is list ['a']; a string or a whole number is needed"),
    "object inside": (row('[{"name": "a"}]'), "label is dict {'name': 'a'}; a string or a whole number"),
    "twice": (row('["a", "a"]'), "label 'a' is there twice"),
    "twice but for blanks": (row('["a", " a"]'), "label 'a' is there twice"),
    "numbers among names": (row("[1, 2]"), "row 41, column 'labels': holds a number, but row 4 a text; one type"),
    "three kinds": (row('[1, "a", true]'), "row 41, column 'labels': holds a number, but row 4 a text; one type"),
    "truth among names": (row("[true]"), "row 41, column 'labels': holds a truth value, but row 4 a text; one type"),
    "a list that is no JSON": (row('"[a, b]"'), "labels are '[a, b]', which begins like a list and is no JSON"),
    "a list that nests deep": (row('"' + "[" * 100_000 + '"'), "which begins like a list and is no JSON"),
    "long name": (row('["%s"]' % ("y" * 300)), "label has 300 characters; is 'labels' really the column"),
    "NUL": (row('["a\\u0000"]'), "label holds a NUL character at position 1"),
    "half a surrogate": (row('["a\\ud800"]'), "label holds half a surrogate pair"),
    "no text": (lines(rows(40), '{"text": "", "labels": []}'), "row 41, column 'text': text is empty"),
    "all empty": (lines([{"text": f"x {n}", "labels": []} for n in range(40)]), "none of 40 rows has a label"),
    "all alike": (
        lines([{"text": f"x {n}", "labels": ["a", "b"]} for n in range(40)]),
        "all 40 rows have the same labels, 'a', 'b'; rows that differ are needed",
    ),
    "a label for each row": (
        lines([{"text": f"x {n}", "labels": [f"id {n}"]} for n in range(1200)]),
        "more than 1,000 labels; is it the right column, and the right separator?",
    ),
    "one row": (lines([{"text": "x", "labels": ["a"]}]), "all 1 rows have the same labels"),
    "empty": ("", "is empty (0 bytes)"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_bad_labels_are_named_in_one_line(settings_for: Settings, tmp_path: Path, content: str, message: str) -> None:
    settings = settings_for("multi_label", train=content, metric="loss")
    with pytest.raises(DataError) as caught:
        prepared(settings, None, tmp_path)  # nothing is tokenised
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_label_of_validation_alone_cannot_be_learnt(settings_for: Settings, tmp_path: Path) -> None:
    settings = settings_for("multi_label", train=lines(rows()), validation=row('["d"]'), metric="loss")
    with pytest.raises(
        DataError, match="row 41, column 'labels': class 'd' of validation never occurs in train, which"
    ):
        prepared(settings, None, tmp_path)


def test_what_is_odd_is_said(settings_for: Settings, bert_tokenizer: Any, tmp_path: Path) -> None:
    single = [{"text": f"x {n}", "labels": ["ab"[n % 2]]} for n in range(20)]
    settings = settings_for("multi_label", train=lines(single), validation=lines(single[:1]), metric="loss")
    notes = "\n".join(prepared(settings, bert_tokenizer, tmp_path).notes)
    assert "no row has more than one label; classification learns one of several" in notes
    assert "validation holds no row of 1 of 2 labels ('b')" in notes


class _Says(torch.nn.Module):
    """A model that says this of the rows in their order."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.all, self.done = logits, 0

    def forward(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
        self.logits = self.all[self.done : self.done + len(input_ids)]
        self.done += len(input_ids)
        return self


def test_metrics_are_those_of_scikit_learn(settings_for: Settings, bert_tokenizer: Any, tmp_path: Path) -> None:
    settings = settings_for("multi_label", train=lines(rows()), validation=lines(rows(30)), metric="subset_accuracy")
    made = prepared(settings, bert_tokenizer, tmp_path)
    task = make_task(settings).on(made)
    found = list(task.rows(made, "validation"))
    logits = torch.randn(30, 3, generator=torch.Generator().manual_seed(1))
    batches = (task.collate(found[start : start + 7], 0) for start in range(0, 30, 7))
    scores, outcomes = task.evaluate_by_row(_Says(logits), batches, bert_tokenizer)
    truth = np.array([[place in row["labels"] for place in range(3)] for row in found], dtype=int)
    said = (logits.numpy() > 0).astype(int)
    assert outcomes is not None
    assert sum(outcomes.rows) / 30 == scores["subset_accuracy"]
    losses = [log_loss(truth[:, place], torch.sigmoid(logits[:, place].double()).numpy()) for place in range(3)]
    assert scores == pytest.approx(
        {
            "loss": sum(losses) / 3,
            "subset_accuracy": accuracy_score(truth, said),
            "micro_f1": f1_score(truth, said, average="micro"),
            "macro_f1": f1_score(truth, said, average="macro", zero_division=np.nan),
        },
        abs=1e-7,
    )


def test_labels_that_never_occur_do_not_count() -> None:
    assert f1_scores([[0], []], [[0], []]) == {"micro_f1": 1.0, "macro_f1": 1.0}
    assert f1_scores([[]], [[]]) == {"micro_f1": 0.0, "macro_f1": 0.0}
    draw = random.Random(2)
    truth, said = ([[k for k in range(4) if draw.random() < 0.3] for _ in range(9)] for _ in range(2))
    assert 0.0 < f1_scores(truth, said)["micro_f1"] < 1.0
