"""A file with `tasks:` is one study for each task: what is read, what is refused, and where problems are told."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import yaml

from automl.errors import ConfigError
from automl.space.load import json_schema, load_space, load_spaces, parse_space, parse_spaces
from automl.space.several import MOST_TASKS

HERE = Path("/somewhere")
FILE = """\
version: 1
study: support
model: ./model
tasks:
  - {name: alice, type: instruction, data: alice.jsonl}
  - name: bob
    type: instruction
    data: {file: bob.jsonl, columns: {prompt: "?: q"}}
    fixed: {max_length: 64}
    space: {rank: {type: categorical, choices: [2, 4]}}
  - {name: carol, type: completion, data: carol.jsonl, seed: 3}
space:
  learning_rate: {type: float, low: 1.0e-4, high: 1.0e-3, log: true}
  rank: {type: int, low: 2, high: 8}
fixed: {batch_size: 4}
search: {trials: 4, steps: 20}
"""
ONE = "{name: a, type: completion, data: a.jsonl}"
TWO = "{name: b, type: completion, data: b.jsonl}"
HEAD = "version: 1\nstudy: s\nmodel: ./m\n"


def test_each_task_is_a_study_of_its_own() -> None:
    specs = parse_spaces(FILE, "space.yaml", HERE)
    assert [spec.study for spec in specs] == ["support-alice", "support-bob", "support-carol"]
    assert [spec.task.type for spec in specs] == ["instruction", "instruction", "completion"]
    assert [spec.task.max_length for spec in specs] == [128, 64, 128]
    assert specs[1].task.data.columns == {"prompt": "?: q"}
    assert [spec.space.fixed["batch_size"] for spec in specs] == [4, 4, 4]
    ranks = [next(item for item in spec.space.parameters if item.name == "rank") for spec in specs]
    assert [getattr(rank, "choices", None) for rank in ranks] == [None, (2, 4), None]


def test_a_study_is_the_same_as_if_its_task_stood_alone() -> None:
    alone = FILE.replace("study: support", "study: support-carol")
    alone = (
        alone[: alone.index("tasks:")]
        + "task: {type: completion, data: carol.jsonl, seed: 3}\n"
        + FILE[FILE.index("space:\n") :]
    )
    one = parse_space(alone, "alone.yaml", HERE)
    carol = parse_spaces(FILE, "space.yaml", HERE)[2]
    assert (one.sha256, one.task, one.space, one.search) == (carol.sha256, carol.task, carol.space, carol.search)


def test_the_recorded_text_of_a_study_says_it_alone() -> None:
    for spec in parse_spaces(FILE, "space.yaml", HERE):
        again = parse_space(spec.text, "recorded", HERE)
        assert (again.study, again.sha256, again.task, again.space) == (spec.study, spec.sha256, spec.task, spec.space)


def test_where_one_study_is_wanted_the_names_are_told(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(FILE, encoding="utf-8")
    with pytest.raises(
        ConfigError, match="says 3 studies where one is wanted; choose one by name: support-alice, support-bob, supp"
    ):
        load_space(path)
    assert len(load_spaces(path)) == 3


def test_a_file_with_one_task_is_read_as_ever() -> None:
    text = HEAD + "task: {type: completion, data: a.jsonl}\n"
    assert parse_spaces(text, "space.yaml", HERE) == (parse_space(text, "space.yaml", HERE),)
    assert parse_space(text, "space.yaml", HERE).text == text


def tasks(*entries: str) -> str:
    return f"{HEAD}tasks: [{', '.join(entries)}]\n"


def entry(rest: str) -> str:
    return tasks(ONE, "{" + rest + "}")


MANY = [f"{{name: t{number}, type: completion, data: a.jsonl}}" for number in range(1000)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "tasks:\n", "s.yaml:4:7: tasks: is empty; write at least two tasks, or task: for one"),
        (tasks(), "s.yaml:4:8: tasks: is empty; write at least two tasks, or task: for one"),
        (tasks(ONE), "s.yaml:4:8: tasks: has one entry; write it as task:"),
        (tasks(*MANY), f"s.yaml:4:8: tasks: has 1,000 entries; at most {MOST_TASKS} are allowed"),
        (HEAD + "tasks: 3\n", "s.yaml:4:8: tasks: 3 is not a list of tasks"),
        (HEAD + "tasks: {a: b}\n", "s.yaml:4:8: tasks: a mapping is not a list of tasks"),
        (tasks(ONE, "4"), "s.yaml:4:53: tasks[1]: 4 is not a mapping"),
        (tasks(ONE, "[a]"), "s.yaml:4:53: tasks[1]: a list is not a mapping"),
        (tasks(ONE, "null"), "s.yaml:4:53: tasks[1]: nothing is not a mapping"),
        (tasks(ONE, ONE), "s.yaml:4:60: tasks[1].name: 'a' is the name of another task, in line 4"),
        (entry("name: A, type: completion, data: b.jsonl"), "tasks[1].name: 'A' is the name of another task"),
        (entry("type: completion, data: b.jsonl"), "s.yaml:4:53: tasks[1]: name is missing"),
        (entry("name: 3, type: completion, data: b.jsonl"), "tasks[1].name: 3 is not a name"),
        (entry("name: ../b, type: completion, data: b.jsonl"), "tasks[1].name: '../b' is not a name"),
        (entry("name: yes, type: completion, data: b.jsonl"), "tasks[1].name: unquoted yes is ambiguous"),
        (entry("name: b, name: c, type: completion, data: b.jsonl"), "tasks[1].name: is given twice"),
        (entry(f"name: {'x' * 51}, type: completion, data: b.jsonl"), "is not a name; use letters"),
        (entry("name: b, data: b.jsonl"), "s.yaml:4:53: tasks[1]: type is missing"),
        (entry("name: b, type: complet, data: b.jsonl"), "s.yaml:4:69: tasks[1].type: 'complet' is not known"),
        (entry("name: b, type: completion"), "s.yaml:4:53: tasks[1].data: is missing"),
        (entry("name: b, type: completion, data: 3"), "tasks[1].data: "),
        (entry("name: b, type: completion, data: b.jsonl, foo: 1"), "tasks[1].foo: unknown key; known: type, data"),
        (
            entry("name: b, type: completion, data: b.jsonl, metric: accuracy"),
            "tasks[1].metric: 'accuracy' does not fit",
        ),
        (
            entry("name: b, type: completion, data: b.jsonl") + "run: {executor: ray, shards: 2}\n",
            "s.yaml:5:30: run.shards: trials of several tasks are not shared out over processes",
        ),
        (
            entry("name: b, type: classification, data: b.jsonl"),
            "s.yaml:4:69: tasks[1].type: needs a classification model and the first task a causal-lm one",
        ),
        (entry("name: b, type: table, file: a.npz"), "tasks[1].type: a table of curves has no backbone to share"),
        (entry("name: b, type: completion, data: b.jsonl, fixed: 3"), "tasks[1].fixed: 3 is not a mapping"),
        (entry("name: b, type: completion, data: b.jsonl, fixed: {rankk: 3}"), "tasks[1].fixed.rankk: unknown key"),
        (
            entry("name: b, type: completion, data: b.jsonl, space: {rank: {type: int, low: 9, high: 3}}"),
            "tasks[1].space.rank.low: 9 is above high 3",
        ),
        (tasks(ONE, TWO).replace("study: s", "study: 5"), "s.yaml:2:8: study: 5 is not a text"),
        (tasks(ONE, TWO).replace("study: s\n", ""), "study: is missing"),
        (
            tasks(ONE, TWO) + "task: {type: completion, data: a.jsonl}\n",
            "tasks: is given beside task:",
        ),
    ],
)
def test_what_is_wrong_is_one_line_at_its_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_spaces(text, "s.yaml", HERE)
    assert len(refused.value.problems) == 1
    assert message in str(refused.value)


def test_a_mistake_outside_of_the_tasks_is_told_once_and_hides_none_inside() -> None:
    text = entry("name: b, type: completion, data: b.jsonl, foo: 1") + "search: {trails: 3}\n"
    with pytest.raises(ConfigError) as refused:
        parse_spaces(text, "s.yaml", HERE)
    assert [problem.key for problem in refused.value.problems] == ["tasks[1].foo", "search.trails"]


def test_a_name_that_makes_the_study_s_too_long_is_refused() -> None:
    text = entry(f"name: {'x' * 50}, type: completion, data: b.jsonl").replace("study: s", f"study: {'s' * 60}")
    with pytest.raises(ConfigError, match="makes a study's name of more than 100 characters"):
        parse_spaces(text, "s.yaml", HERE)


def test_the_schema_for_editors_knows_both_ways() -> None:
    checker = jsonschema.Draft202012Validator(json_schema())
    checker.validate(yaml.safe_load(FILE))
    checker.validate(yaml.safe_load(HEAD + "task: {type: completion, data: a.jsonl}\n"))
    for wrong in (
        tasks(ONE),
        HEAD,
        entry("type: completion, data: b.jsonl"),
        entry("name: b, type: completion, data: b.jsonl, foo: 1"),
        tasks(ONE, TWO) + "task: {type: completion, data: a.jsonl}\n",
    ):
        assert not checker.is_valid(yaml.safe_load(wrong)), wrong
