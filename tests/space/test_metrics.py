"""`metric:` and `metrics:` of a space file: what they mean, and what is answered to mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from automl.errors import ConfigError
from automl.space.load import parse_space
from automl.space.spec import SweepSpec

HEAD = "version: 1\nstudy: several\nmodel: org/name\n"


def read(task: str) -> SweepSpec:
    return parse_space(f"{HEAD}task: {{{task}}}\n", "s.yaml", Path("/nowhere"))


def test_the_objective_and_others_beside_it() -> None:
    task = read("type: instruction, data: rows.jsonl, metrics: [rouge_l, loss, exact_match]").task
    assert task.metric == "loss"
    assert task.metrics == ("rouge_l", "loss", "exact_match")
    assert task.measured == ("loss", "rouge_l", "exact_match")


def test_others_are_no_part_of_what_a_study_means() -> None:
    alone = read("type: instruction, data: rows.jsonl")
    assert read("type: instruction, data: rows.jsonl, metrics: [rouge_l]").sha256 == alone.sha256
    assert read("type: instruction, data: rows.jsonl, metric: rouge_l").sha256 != alone.sha256


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (
            "type: instruction, data: r.csv, metrics: [rogue_l]",
            "task.metrics[0]: unknown metric 'rogue_l'; known:",
        ),
        (
            "type: instruction, data: r.csv, metrics: [loss, accuracy]",
            "task.metrics[1]: 'accuracy' does not fit a instruction task",
        ),
        (
            "type: instruction, data: r.csv, metrics: [rouge_l, rouge_l]",
            "task.metrics[1]: 'rouge_l' is in the list already; remove it",
        ),
        ("type: instruction, data: r.csv, metrics: rouge_l", "task.metrics: "),
        ("type: instruction, data: r.csv, metrics: [3]", "task.metrics[0]: "),
        ("type: instruction, data: r.csv, metrics: [null]", "task.metrics[0]: "),
        ("type: table, file: r.npz, metrics: [loss]", "task.metrics: "),
    ],
)
def test_mistakes_are_said_at_their_place(task: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(task)
    assert str(caught.value).startswith("s.yaml:4:")
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_own_metrics_and_shards() -> None:
    text = f"{HEAD}task: {{type: instruction, data: r.csv, metrics: [%s]}}\nrun: {{shards: 2}}\n"
    parse_space(text % "rouge_l", "s.yaml", Path("/nowhere"))
    with pytest.raises(ConfigError, match=r"task.metrics\[0\]: .* is a metric of your own, which is not known with"):
        parse_space(text % "{command: [judge], direction: maximize}", "s.yaml", Path("/nowhere"))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("extract: '('", "task.extract: '(' is not a regular expression"),
        ("extract: ['a']", "task.extract: "),
        ("metric: json_schema", "task: the metric json_schema needs the schema"),
        ("json_schema: {type: object}", "task: json_schema is used by the metric of that name alone"),
        ("metric: json_schema, json_schema: {type: objekt}", "task.json_schema: is no JSON schema: $.type"),
        ("metric: json_schema, json_schema: {$ref: 'http://h/s'}", "task.json_schema: refers to 'http://h/s'"),
        ("metric: json_schema, json_schema: x.json", "task.json_schema: "),
        ("metric: blue", "task.metric: unknown metric 'blue'; known: "),
    ],
)
def test_mistakes_about_texts_are_said_at_their_place(keys: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(f"type: completion, data: r.csv, {keys}")
    assert str(caught.value).startswith("s.yaml:4:")
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_what_takes_an_answer_out_is_part_of_what_a_study_means() -> None:
    plain = read("type: completion, data: r.csv, metric: exact_match")
    taken = read("type: completion, data: r.csv, metric: exact_match, extract: '#### (.*)'")
    assert plain.sha256 != taken.sha256
    assert taken.task.extract == "#### (.*)"
