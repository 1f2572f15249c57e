"""Mixtures: the parts have their shares of training, whatever their sizes, and judge with each of their rows once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from automl.errors import ConfigError, DataError
from automl.library.search import spec_of
from automl.space.derive import derived_text
from automl.space.load import parse_space
from automl.space.spec import DataPart, DataSettings, TaskSettings
from automl.space.submitted import validated
from automl.tasks import make_task
from automl.tasks.base import Row, Share
from automl.tasks.batches import batch_rows
from automl.tasks.mixture import LONGEST_EPOCH, MixedRows, places_of
from automl.tasks.prepare import load_prepared

Write = Callable[[str, list[dict[str, Any]]], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def mixture(*parts: tuple[Path, float], **fields: Any) -> DataSettings:
    found = [
        DataPart(data=DataSettings(kind="files", files={"train": str(path)}, **fields), weight=weight)
        for path, weight in parts
    ]
    return DataSettings(kind="mixture", parts=tuple(found))


def settings(data: DataSettings, **fields: Any) -> TaskSettings:
    return TaskSettings(**{"type": "completion", "data": data, "metric": "loss", "max_length": 64} | fields)


def texts(prefix: str, count: int) -> list[dict[str, Any]]:
    return [{"text": f"{prefix} {number}"} for number in range(count)]


def drawn(tokenizer: Any, rows: list[Row]) -> Counter[str]:
    """How often texts that begin with a letter are among the rows."""
    return Counter(tokenizer.decode(row["input_ids"]).strip()[0] for row in rows)


@pytest.mark.parametrize(
    ("weights", "rows", "places"),
    [
        ((0.8, 0.2), (80, 20), [80, 20]),  # as they are
        ((0.8, 0.2), (80, 80), [320, 80]),  # the first comes up four times
        ((0.5, 0.5), (10, 90), [90, 90]),
        ((0.001, 0.999), (1000, 1), [10, 10000]),  # an epoch has an end: 10 of the 1,000 are seen in it
    ],
)
def test_every_row_is_in_an_epoch_unless_that_has_no_end(
    weights: tuple[float, float], rows: tuple[int, int], places: list[int]
) -> None:
    found = places_of([Share(*each) for each in zip(weights, rows, strict=True)])
    assert found == places
    assert sum(found) <= LONGEST_EPOCH * sum(rows) + 1


def test_rows_of_a_part_come_up_alike() -> None:
    rows = [{"input_ids": [number]} for number in range(110)]
    mixed = MixedRows(rows, [Share(0.2, 10), Share(0.8, 100)], "seed")
    counts = Counter(row["input_ids"][0] for row in mixed)
    assert {counts[number] for number in range(10, 110)} == {1}
    assert {counts[number] for number in range(10)} == {2, 3}  # 25 places
    assert sum(counts[number] for number in range(10)) == 25
    again = MixedRows(rows, [Share(0.2, 10), Share(0.8, 100)], "seed")
    other = MixedRows(rows, [Share(0.2, 10), Share(0.8, 100)], "other seed")
    assert list(again) == list(mixed) != list(other)
    assert mixed[3:5] == [mixed[3], mixed[4]]
    assert mixed[-1] == mixed[len(mixed) - 1]


def test_training_sees_the_weights_and_judging_each_row_once(
    plain_tokenizer: Any, write: Write, tmp_path: Path
) -> None:
    data = mixture((write("a.jsonl", texts("a", 400)), 0.25), (write("b.jsonl", texts("b", 100)), 0.75))
    task = make_task(settings(data, seed=3))
    made = task.prepare(plain_tokenizer, tmp_path / "cache")
    train = task.rows(made, "train")
    places = [place for step in range(300) for place in batch_rows(0, step, 16, len(train))]
    seen = drawn(plain_tokenizer, [train[place] for place in places])
    assert abs(seen["b"] / sum(seen.values()) - 0.75) < 0.02
    for split in ("validation", "test"):
        judged = [tuple(row["input_ids"]) for row in task.rows(made, split)]
        assert len(judged) == len(set(judged)) == made.rows[split]
        assert drawn(plain_tokenizer, list(task.rows(made, split))).keys() == {"a", "b"}
    assert sum(made.rows.values()) == 500


def test_the_split_is_that_of_each_part_alone(plain_tokenizer: Any, write: Write, tmp_path: Path) -> None:
    paths = [write("a.jsonl", texts("a", 60)), write("b.jsonl", texts("b", 60))]

    def rows(data: DataSettings, split: Any) -> set[tuple[int, ...]]:
        task = make_task(settings(data))
        made = task.prepare(plain_tokenizer, tmp_path / "cache")
        return {tuple(row["input_ids"]) for row in task.rows(made, split)}

    alone = [DataSettings(kind="files", files={"train": str(path)}) for path in paths]
    for split in ("train", "validation", "test"):
        assert rows(mixture((paths[0], 0.9), (paths[1], 0.1)), split) == rows(alone[0], split) | rows(alone[1], split)


def test_it_is_said_what_comes_from_where(plain_tokenizer: Any, write: Write, tmp_path: Path) -> None:
    a, b = write("a.jsonl", texts("a", 400)), write("b.jsonl", texts("b", 100))
    task = make_task(settings(mixture((a, 0.5), (b, 0.5))))
    made = task.prepare(plain_tokenizer, tmp_path / "cache")
    (first, second), places = made.shares, 2 * made.shares[0].rows
    assert first.rows + second.rows == made.rows["train"]
    assert len(task.rows(made, "train")) == places
    epoch = f"an epoch of {places:,} draws sees each"
    assert made.notes[:2] == (
        f"{a}: {first.rows} training rows, 50.0% of what is trained on; {epoch} 1 times",
        f"{b}: {second.rows} training rows, 50.0% of what is trained on; {epoch} {first.rows / second.rows:.3g} times",
    )
    again = load_prepared(made.path)
    assert again is not None
    assert again.shares == made.shares
    assert task.prepare(plain_tokenizer, tmp_path / "cache").notes == made.notes


def test_weights_are_in_the_fingerprint(plain_tokenizer: Any, write: Write, tmp_path: Path) -> None:
    a, b = write("a.jsonl", texts("a", 50)), write("b.jsonl", texts("b", 50))

    def fingerprint(*weights: float) -> str:
        data = mixture(*zip((a, b), weights, strict=True))
        return make_task(settings(data)).prepare(plain_tokenizer, tmp_path / "cache").fingerprint

    assert fingerprint(0.5, 0.5) != fingerprint(0.4, 0.6)
    assert fingerprint(0.5, 0.5) == fingerprint(0.5, 0.5)


def test_parts_may_have_columns_and_formats_of_their_own(chat_tokenizer: Any, write: Write, tmp_path: Path) -> None:
    turns = [
        {"messages": [{"role": "user", "content": f"a {n}"}, {"role": "assistant", "content": "yes"}]}
        for n in range(40)
    ]
    asked = [{"question": f"b {n}", "answer": "no"} for n in range(40)]
    first = DataSettings(kind="files", files={"train": str(write("a.jsonl", turns))})
    columns = {"prompt": "question", "response": "answer"}
    second = DataSettings(kind="files", files={"train": str(write("b.jsonl", asked))}, columns=columns)
    parts = (DataPart(data=first, weight=0.5), DataPart(data=second, weight=0.5))
    task = make_task(settings(DataSettings(kind="mixture", parts=parts), type="instruction"))
    made = task.prepare(chat_tokenizer, tmp_path / "cache")
    answers = [
        chat_tokenizer.decode([label for label in row["labels"] if label >= 0]) for row in task.rows(made, "train")
    ]
    assert {answer.split("<")[0] for answer in answers} == {"yes", "no"}


def test_classes_of_all_parts_are_learnt(bert_tokenizer: Any, write: Write, tmp_path: Path) -> None:
    a = write("a.jsonl", [{"text": f"good {n}", "label": "good"} for n in range(40)])
    b = write("b.jsonl", [{"text": f"bad {n}", "label": "bad"} for n in range(40)])
    task = make_task(settings(mixture((a, 0.9), (b, 0.1)), type="classification", metric="accuracy"))
    made = task.prepare(bert_tokenizer, tmp_path / "cache")
    assert made.labels == ("bad", "good")
    counts = Counter(row["labels"] for row in task.rows(made, "train"))
    assert counts[1] == 9 * counts[0]


def test_parts_that_do_not_go_together_are_refused(bert_tokenizer: Any, write: Write, tmp_path: Path) -> None:
    a = write("a.jsonl", [{"text": f"good {n}", "label": "good"} for n in range(20)])
    b = write("b.jsonl", [{"text": f"bad {n}", "text_pair": "film", "label": "bad"} for n in range(20)])
    task = make_task(settings(mixture((a, 0.5), (b, 0.5)), type="classification", metric="accuracy"))
    with pytest.raises(
        DataError, match=r"b.jsonl: its rows are not of as many texts as those of .*a.jsonl; either all"
    ):
        task.prepare(bert_tokenizer, tmp_path / "cache")


def test_pairs_beside_single_labels_are_refused(chat_tokenizer: Any, write: Write, tmp_path: Path) -> None:
    pairs = [{"prompt": f"a {n}", "chosen": "yes", "rejected": "no"} for n in range(20)]
    single = [{"prompt": f"b {n}", "completion": "yes", "label": n % 2 == 0} for n in range(20)]
    data = mixture((write("a.jsonl", pairs), 0.5), (write("b.jsonl", single), 0.5))
    with pytest.raises(DataError, match=r"b.jsonl: holds single labels, the training rows are pairs; all have to be"):
        make_task(settings(data, type="preference")).prepare(chat_tokenizer, tmp_path / "cache")


def test_a_part_without_training_rows_is_named(plain_tokenizer: Any, write: Write, tmp_path: Path) -> None:
    a = write("a.jsonl", texts("a", 50))
    lonely = next(
        path
        for number in range(100)
        if _is_held_out(
            path := write(f"lonely{number}.jsonl", [{"text": f"lonely {number}"}]), plain_tokenizer, tmp_path
        )
    )
    with pytest.raises(DataError, match=r"lonely\d+.jsonl: no row of part 2 of the mixture is left for training"):
        make_task(settings(mixture((a, 0.5), (lonely, 0.5)))).prepare(plain_tokenizer, tmp_path / "cache")
    long = write("long.jsonl", [{"prompt": "word " * 100 + str(n), "response": "yes"} for n in range(30)])
    with pytest.raises(DataError, match=r"long.jsonl: no row of part 2 of the mixture is left for training"):
        make_task(settings(mixture((a, 0.5), (long, 0.5)))).prepare(plain_tokenizer, tmp_path / "cache")


def _is_held_out(path: Path, tokenizer: Any, folder: Path) -> bool:
    from automl.tasks.split import position

    return position(json.loads(path.read_text())["text"], 0) < 0.4


def test_plain_texts_beside_prompts_are_learnt_but_not_compared(
    plain_tokenizer: Any, write: Write, tmp_path: Path
) -> None:
    a = write("a.jsonl", [{"prompt": f"p {n}", "response": "yes"} for n in range(40)])
    data = mixture((a, 0.5), (write("b.jsonl", texts("b", 40)), 0.5))
    assert make_task(settings(data)).prepare(plain_tokenizer, tmp_path / "cache").rows["train"]
    with pytest.raises(DataError, match=r"b.jsonl: metric 'rouge_l' compares responses, but the data is plain text"):
        make_task(settings(data, metric="rouge_l")).prepare(plain_tokenizer, tmp_path / "cache")


SPACE = "version: 1\nstudy: s\nmodel: ./m\ntask:\n  type: completion\n  data:\n{}space: {{learning_rate: auto}}\n"


def parsed(*lines: str, folder: Path = Path("/there")) -> TaskSettings:
    return parse_space(SPACE.format("".join(f"    {line}\n" for line in lines)), "space.yaml", folder).task


def test_weights_are_normalised_and_paths_resolved() -> None:
    task = parsed("- {file: a.jsonl, weight: 3}", "- {folder: b, weight: 1, columns: {text: body}, ignore: [id]}")
    first, second = task.data.parts
    assert (first.weight, second.weight) == (0.75, 0.25)
    assert first.data == DataSettings(kind="files", files={"train": "/there/a.jsonl"})
    assert second.data == DataSettings(kind="folder", location="/there/b", columns={"text": "body"}, ignore=("id",))
    assert task.data.shown == "0.75 /there/a.jsonl + 0.25 /there/b"
    assert first.data.places == (first.data,)


def test_derived_files_and_submissions_know_all_parts() -> None:
    lines = "".join(f"    - {part}\n" for part in ("{file: a.jsonl, weight: 3}", "{folder: b, weight: 1}"))
    spec = parse_space(SPACE.format(lines), "space.yaml", Path("/there"))
    again = derived_text(spec, study="again", heading="made", folder=Path("/there"))
    assert parse_space(again, "again", Path("/elsewhere")).task.data == spec.task.data
    with pytest.raises(ConfigError, match=r"task.data: a submitted sweep may only name files below"):
        validated(SPACE.format(lines.replace("folder: b", "folder: ../b")))
    validated(SPACE.format(lines))


def test_a_mixture_said_in_python(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        write(f"{name}.jsonl", [{"question": f"{name} {n}", "response": "yes"} for n in range(30)])
    parts = [{"file": "a.jsonl", "weight": 0.5}, {"file": "b.jsonl", "weight": 1.5}]
    given = {"model": "./m", "space": {"learning_rate": "auto"}, "data": parts}
    task = spec_of(given | {"task": "completion", "columns": {"prompt": "question"}}).task
    assert [part.weight for part in task.data.parts] == [0.25, 0.75]
    assert {part.data.columns["prompt"] for part in task.data.parts} == {"question"}
    with pytest.raises(ConfigError, match=r"automl.search: data\[1\].weight: 0 is not above 0"):
        spec_of(given | {"task": "completion", "data": [parts[0], {**parts[1], "weight": 0}]})
