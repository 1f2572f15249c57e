"""Arguments of `automl.search` mean what a space file means, and are written as one that means the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as some

import automl
from automl.errors import ConfigError
from automl.library.search import spec_of
from automl.space.load import load_space, parse_space
from automl.space.spec import SweepSpec
from automl.space.write import yaml_of
from automl.space.yaml_nodes import read_document

SPACES = sorted(
    path
    for path in (Path(__file__).parents[2] / "search_spaces").glob("*.yaml")
    if "\ntasks:" not in path.read_text(encoding="utf-8")  # one study is said in Python
)

MODEL: dict[str, Any] = {"model": "./model", "data": "./data.jsonl", "task": "classification", "study": "a study"}


def arguments_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """A space file's sections as arguments: `search:` flat, `data` and `metric` out of `task:`."""
    task = dict(document["task"])
    given = {name: value for name, value in document.items() if name not in ("version", "task", "search")}
    apart = {name: task.pop(name) for name in ("data", "metric") if name in task}
    return {"verify": True, **given, **document.get("search", {}), **apart, "task": task}


def meaning(spec: SweepSpec) -> SweepSpec:
    """Without the words in which it was said."""
    return replace(spec, text="", source="")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOML_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_every_ready_space_can_be_said_in_python(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    document: dict[str, Any] = read_document(path.read_text(encoding="utf-8"), str(path)).value  # type: ignore[assignment]
    spec = spec_of(arguments_of(document))
    assert meaning(spec) == meaning(load_space(path))
    assert meaning(parse_space(spec.text, "again", path.parent)) == meaning(spec)


def test_ranges_are_written_as_in_a_file() -> None:
    spec = spec_of(
        MODEL
        | {
            "space": {
                "rank": automl.Int(2, 32, log=True),
                "learning_rate": automl.Float(1e-5, 1e-2, log=True),
                "dropout": automl.Float(0.0, 0.5, step=0.1),
                "batch_size": automl.Int(4, 16, step=4, when={"target": ["qv", "attention"]}),
                "target": ["qv", "attention", "all-linear"],
                "alpha_ratio": automl.Categorical([1, 2.5]),
                "weight_decay": {"type": "float", "low": 0.0, "high": 0.1},
            },
            "fixed": {"clip": np.float64(0.5), "max_length": np.int64(64)},
            "run": "inline",
            "storage": "sqlite:///here.db",
        }
    )
    assert yaml.safe_load(spec.text) == {
        "version": 1,
        "study": "a study",
        "model": "./model",
        "space": {
            "rank": {"type": "int", "low": 2, "high": 32, "log": True},
            "learning_rate": {"type": "float", "low": 1e-5, "high": 1e-2, "log": True},
            "dropout": {"type": "float", "low": 0.0, "high": 0.5, "step": 0.1},
            "batch_size": {
                "type": "int",
                "low": 4,
                "high": 16,
                "step": 4,
                "when": {"target": ["qv", "attention"]},
            },
            "target": {"type": "categorical", "choices": ["qv", "attention", "all-linear"]},
            "alpha_ratio": {"type": "categorical", "choices": [1, 2.5]},
            "weight_decay": {"type": "float", "low": 0.0, "high": 0.1},
        },
        "fixed": {"clip": 0.5, "max_length": 64},
        "task": {"type": "classification", "data": "./data.jsonl"},
        "verify": {"automatic": False},
        "run": {"executor": "inline"},
        "storage": {"url": "sqlite:///here.db"},
    }


@pytest.mark.parametrize(
    ("given_too", "message"),
    [
        ({"trials": "many"}, "automl.search: trials: 'many' is not a whole number"),
        ({"space": {"rank": automl.Int(64, 8)}}, "automl.search: space.rank.low: 64 is above high 8"),
        (
            {"space": {"rank": (2, 32)}},
            "automl.search: space.rank: a tuple says neither range nor choice; write automl.Int",
        ),
        ({"space": {"rnak": automl.Int(2, 8)}}, "automl.search: space.rnak: unknown key; known: method, rank,"),
        ({"metric": "acuracy"}, "automl.search: metric: unknown metric 'acuracy'"),
        ({"task": "classify"}, "automl.search: task: 'classify' is not known; known: classification"),
        (
            {"task": {"type": "classification", "split": {"test": 2.0}}},
            "automl.search: task.split.test: 2.0 is not below 1",
        ),
        ({"data": {"file": "a.csv", "hub": "b"}}, "automl.search: data: needs exactly one of files, file, folder, hub"),
        ({"columns": {"txt": "review"}}, "automl.search: columns.txt: "),
        ({"sampler": {"name": "tpe", "n_startup": 3}}, "automl.search: sampler.n_startup: unknown key; known: name,"),
        ({"fixed": {"clip": float("nan")}}, "automl.search: fixed.clip: .nan is not a finite number"),
        (
            {"enqueue": [{"rank": {1, 2}}]},
            "automl.search: enqueue[0].rank: a set is neither a number, a text, a list nor",
        ),
        ({"run": {"executor": "ray", 3: 4}}, "automl.search: run: 3 is no name; keys are texts such as 'rank'"),
        (
            {"tokenizer": object()},
            "automl.search: tokenizer: belongs to a loaded model; a folder or hub id brings its own",
        ),
        ({"model": None}, "automl.search: model: is missing; write a hub id, a folder or a .gguf file"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_problem_names_the_argument(given_too: dict[str, Any], message: str) -> None:
    arguments = {name: value for name, value in (MODEL | given_too).items() if value is not None}
    with pytest.raises(ConfigError) as refused:
        spec_of(arguments)
    assert message in str(refused.value)
    assert str(refused.value).count("automl.search: ") == len(str(refused.value).splitlines())


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        spec_of(MODEL | {"trials": 0, "steps": 0, "space": {"rank": automl.Int(8, 2)}})
    assert len(refused.value.problems) == 3


def test_a_path_is_never_taken_for_an_id_on_the_hub() -> None:
    assert spec_of(MODEL | {"model": "org/name"}).model.kind == "hub"
    assert spec_of(MODEL | {"model": Path("org/name")}).model.location == str(Path("org/name").absolute())
    assert spec_of(MODEL | {"data": Path("texts")}).task.data.kind == "files"


def test_the_study_is_named_by_data_and_meaning() -> None:
    """The same call goes on with its study; a budget is no other meaning, a range is."""
    nameless = {name: value for name, value in MODEL.items() if name != "study"}
    first, longer = spec_of(nameless), spec_of(nameless | {"trials": 99, "run": "inline"})
    other = spec_of(nameless | {"space": {"rank": automl.Int(2, 8)}})
    assert first.study.startswith("data-")
    assert first.study == longer.study != other.study


def test_columns_can_be_named_beside_any_data() -> None:
    for data in ("./data.jsonl", {"file": "./data.jsonl"}):
        spec = spec_of(MODEL | {"data": data, "columns": {"text": "review"}})
        assert spec.task.data.files == {"train": str(Path("data.jsonl").absolute())}
        assert spec.task.data.columns == {"text": "review"}


def test_the_task_is_told_by_the_columns() -> None:
    Path("data.jsonl").write_text('{"review": "good", "label": "yes"}\n', encoding="utf-8")
    untold = {name: value for name, value in MODEL.items() if name != "task"}
    spec = spec_of(untold)
    assert (spec.task.type, spec.task.data.columns) == ("classification", {"text": "review"})
    Path("data.jsonl").write_text('{"prompt": "2+2", "response": "4"}\n', encoding="utf-8")
    assert spec_of(untold).task.type == "instruction"
    Path("data.jsonl").write_text('{"a": "2+2", "b": "4"}\n', encoding="utf-8")
    with pytest.raises(automl.DataError, match="data: the columns a, b do not tell what the task is"):
        spec_of(untold)


def test_a_whole_space_file_takes_another_budget_and_nothing_else() -> None:
    whole = load_space(SPACES[0])
    with pytest.raises(ConfigError, match=r"automl\.search: steps: is what the space file in space= says"):
        automl.search(space=whole, steps=3)


_texts = some.text(min_size=1, max_size=20)
_scalars = some.one_of(
    some.none(),
    some.booleans(),
    some.integers(-(10**30), 10**30),
    some.floats(allow_nan=False, allow_infinity=False),
    _texts,
)
_values = some.recursive(
    _scalars, lambda inner: some.lists(inner, max_size=4) | some.dictionaries(_texts, inner, max_size=4), max_leaves=12
)


@settings(max_examples=80, deadline=None)
@given(some.dictionaries(_texts, _values, min_size=1, max_size=5))
def test_any_plain_values_are_read_back_as_they_were(document: dict[str, Any]) -> None:
    back = read_document(yaml_of(document), "test")
    assert not back.mistakes
    assert repr(back.value) == repr(document)


_numbers = some.floats(1e-6, 1.0)
_spaces = some.fixed_dictionaries(
    {},
    optional={
        "rank": some.tuples(some.integers(1, 63), some.integers(64, 1024)).map(
            lambda pair: automl.Int(*pair, log=True)
        ),
        "dropout": some.tuples(some.floats(0, 0.4), some.floats(0.5, 0.9)).map(lambda pair: automl.Float(*pair)),
        "target": some.lists(
            some.sampled_from(["qv", "attention", "mlp", "all-linear"]), min_size=2, max_size=4, unique=True
        ),
        "learning_rate": some.just("auto")
        | some.tuples(_numbers, _numbers)
        .filter(lambda pair: pair[0] < pair[1])
        .map(lambda pair: automl.Float(*pair, log=True)),
        "use_rslora": some.just(automl.Categorical([True, False])),
    },
)
_searches = some.fixed_dictionaries(
    {"space": _spaces},
    optional={
        "trials": some.integers(1, 1000),
        "steps": some.integers(10, 1000),
        "seed": some.integers(0, 2**32 - 1),
        "time": some.sampled_from([90, "2h", "1h30m"]),
        "sampler": some.sampled_from(["random", {"name": "tpe", "n_startup_trials": 4}]),
        "pruner": some.sampled_from(["peer", "none", {"name": "threshold", "upper": 3.5}]),
        "metric": some.sampled_from(["accuracy", "macro_f1", "loss"]),
        "keep": some.integers(1, 9),
        "importance": some.booleans(),
        "constraints": some.just(["trainable_params <= 500_000"]),
        "study": some.text(alphabet="abc -_.0", min_size=1, max_size=30).map(lambda text: f"a{text}"),
        "fixed": some.fixed_dictionaries({"clip": some.floats(0, 1e6), "batch_size": some.integers(1, 4096)}),
        "verify": some.booleans() | some.just({"seeds": 5}),
        "run": some.sampled_from(["inline", {"workers": 2, "output": "elsewhere/here"}]),
    },
)


@settings(max_examples=25, deadline=None)
@given(_searches)
def test_what_is_written_means_what_was_said(arguments: dict[str, Any]) -> None:
    spec = spec_of(MODEL | arguments)
    file = Path("space.yaml")
    file.write_text(spec.text, encoding="utf-8")
    assert meaning(load_space(file)) == meaning(spec)
    for name in ("trials", "steps", "seed", "keep", "importance"):
        assert getattr(spec.search, name) == arguments.get(name, getattr(spec.search, name))
    assert {parameter.name for parameter in spec.space.parameters} | set(spec.space.auto) == (
        set(arguments["space"]) or set(spec.space.auto)
    )
