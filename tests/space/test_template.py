"""The file that `automl init` writes is valid whatever it is given."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from automl.space.defaults import resolve
from automl.space.load import json_schema, parse_space
from automl.space.priors import prior_of
from automl.space.template import commented_space
from automl.tasks.read import package_path

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


@pytest.mark.parametrize("task_type", ["classification", "completion", "instruction"])
@pytest.mark.parametrize("model_parameters", [None, 22_700_000, 1_000_000_000, 7_600_000_000])
def test_the_template_is_valid(task_type: str, model_parameters: int | None) -> None:
    text = commented_space("my study", "org/name", "rows.jsonl", task_type, model_parameters)
    spec = parse_space(text, "space.yaml", Path("/there"))
    assert spec.task.type == task_type
    assert spec.space.auto or len(spec.space.parameters) == 5
    assert max(len(line) for line in text.splitlines()) <= 140
    jsonschema.Draft202012Validator(json_schema()).validate(yaml.safe_load(text))


@pytest.mark.parametrize("model_parameters", [None, 22_700_000])
def test_each_method_has_rates_of_its_own(model_parameters: int | None) -> None:
    methods = ("lora", "ia3", "full")
    text = commented_space("s", "org/name", "rows.jsonl", "classification", model_parameters, methods=methods)
    spec = parse_space(text, "space.yaml", Path("/there"))
    jsonschema.Draft202012Validator(json_schema()).validate(yaml.safe_load(text))
    rates = {item.name: item for item in resolve(spec.space, 22_700_000, 120).parameters}
    assert {f"learning_rate.{method}" for method in methods} < rates.keys()
    assert "learning_rate" not in rates


@pytest.mark.parametrize(
    ("model_type", "parameters", "rate", "high"),
    [
        ("bert", 22_700_000, "0.0014", 2e-2),
        ("llama", 1_200_000_000, "0.001", 3e-3),
        ("llama", 8_000_000_000, "0.0003", 1e-3),
        ("qwen3", 8_000_000_000, "0.001", 3e-3),
        ("gpt_oss", 21_000_000_000, "0.0001", 1e-3),
    ],
)
@pytest.mark.parametrize("methods", [(), ("lora",), ("ia3", "lora")])
def test_the_best_known_rate_is_tried_first(
    model_type: str, parameters: int, rate: str, high: float, methods: tuple[str, ...]
) -> None:
    prior = prior_of(model_type, parameters)
    text = commented_space("s", "m", "a.jsonl", "instruction", parameters, methods=methods, prior=prior)
    space = parse_space(text, "space.yaml", Path("/there")).space
    name = "learning_rate.lora" if len(methods) > 1 else "learning_rate"
    (first,) = resolve(space, parameters, 120).enqueue
    assert f"{first[name]:g}" == rate
    (searched,) = (each for each in space.parameters if each.name == name)
    assert searched.high == pytest.approx(high)
    assert max(len(line) for line in text.splitlines()) <= 140


@pytest.mark.parametrize(
    ("task_type", "methods"), [("preference", ()), ("instruction", ("ia3",)), ("instruction", ("full", "adalora"))]
)
def test_a_rate_of_lora_is_tried_with_lora_alone_and_not_for_preferences(
    task_type: str, methods: tuple[str, ...]
) -> None:
    prior = prior_of("qwen3", 8_000_000_000)
    text = commented_space("s", "m", "a.jsonl", task_type, 8_000_000_000, methods=methods, prior=prior)
    assert not parse_space(text, "space.yaml", Path("/there")).space.enqueue


def test_nothing_is_known_of_other_families() -> None:
    assert prior_of("mamba", 8_000_000_000) is None


def test_every_line_with_a_choice_says_what_it_means() -> None:
    text = commented_space("s", "m", "a.csv", "classification", 22_700_000)
    space = text[text.index("space:") : text.index("search:")]
    assert all("#" in line for line in space.splitlines() if ": " in line)


def test_columns_are_renamed_only_where_they_differ() -> None:
    columns = {"text": "body of it", "label": "label"}
    spec = parse_space(commented_space("s", "m", "a.csv", "classification", 10, columns), "s.yaml", Path("/there"))
    assert spec.task.data.columns == {"text": "body of it"}
    assert spec.task.data.files == {"train": "/there/a.csv"}


@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS)
def test_any_path_and_column_come_back_as_they_were(name: str, column: str) -> None:
    text = commented_space("s", f"./{name}", f"./{name}.csv", "classification", None, {"text": column})
    spec = parse_space(text, "s.yaml", Path("/there"))
    assert spec.task.data.columns.get("text", "text") == column
    assert spec.task.data.files["train"].endswith(".csv")


@pytest.mark.parametrize("study", ["on", "1e-4", "null", "2024-01-01", "a b"])
def test_names_that_look_like_something_else_are_quoted(study: str) -> None:
    spec = parse_space(commented_space(study, "m", "a.csv", "completion"), "s.yaml", Path("/there"))
    assert spec.study == study


@pytest.mark.parametrize("task_type", ["completion", "instruction", "preference"])
def test_a_text_to_keep_is_offered_for_language(task_type: str) -> None:
    text = commented_space("s", "org/model", "rows.jsonl", task_type)
    spec = parse_space(text.replace("\n# keep: ", "\nkeep: "), "space.yaml", Path("/there"))
    assert spec.keep is not None
    place = package_path(spec.keep.data.location, spec.keep.data.path)
    assert len(place.read_text(encoding="utf-8").splitlines()) == 40
    assert "\n# keep: " not in commented_space("s", "org/model", "rows.jsonl", "classification")
