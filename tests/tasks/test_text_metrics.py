"""Metrics of generated texts against known answers and against the packages that define them."""

from __future__ import annotations

import random

import pytest
from rouge_score import rouge_scorer

from automl.errors import MetricError
from automl.metric import METRICS
from automl.space.extraction import extracted, extraction_mistake
from automl.space.json_schema import schema_mistake
from automl.space.spec import DataSettings, TaskSettings
from automl.tasks import text_metrics
from automl.tasks.metrics import rouge_l
from automl.tasks.text_metrics import text_scores


def scores(references: list[str], predictions: list[str], **settings: object) -> dict[str, float]:
    names = ("bleu", "chrf", "rouge_1", "rouge_2", "squad_em", "squad_f1", "json_valid", "json_match")
    given = {"metric": "loss", "metrics": names, **settings}
    made = TaskSettings(type="completion", data=DataSettings(kind="files"), **given)  # type: ignore[arg-type]
    return text_scores(references, predictions, made)


@pytest.mark.parametrize(
    ("metric", "reference", "prediction", "expected"),
    [
        ("bleu", "a b c d f", "a b c d e", 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25),
        ("bleu", "a b c d e f", "a b c d", 100 * 2.718281828459045 ** (1 - 6 / 4)),  # brevity alone
        ("bleu", "yes", "yes", 100.0),  # no text of four words
        ("bleu", "yes", "", 0.0),
        ("chrf", "ac", "ab", 25.0),  # 1 of 2 characters, 0 of 1 pairs
        ("chrf", "same words", "same words", 100.0),
        ("rouge_1", "the cat sat on the mat", "the the the cat", 2 * 3 / 10),  # each word as often as it is there
        ("rouge_2", "the cat sat on the mat", "the cat on the mat", 2 * 3 / 9),
        ("rouge_1", "Привет мир", "привет", 2 / 3),
        ("rouge_2", "one", "one", 0.0),
        ("squad_em", "The Eiffel Tower!", "eiffel tower", 1.0),
        ("squad_f1", "The cat sat.", "a cat", 2 / 3),
        ("squad_f1", "cat cat dog", "cat", 1 / 2),
        ("squad_f1", "the", "", 1.0),  # nothing is left of either
        ("squad_f1", "the", "cat", 0.0),
        ("json_valid", "", '{"a": [1, 2.5e3, null]}', 1.0),
        ("json_valid", "", "NaN", 0.0),
        ("json_valid", "", "{'a': 1}", 0.0),
        ("json_valid", "", "", 0.0),
        ("json_valid", "", "[" * 100_000, 0.0),
        ("json_match", '{"a": 1, "b": [true]}', '{ "b": [true], "a": 1.0 }', 1.0),
        ("json_match", '{"a": 1}', '{"a": true}', 0.0),
        ("json_match", "[1, 2]", "[2, 1]", 0.0),
        ("json_match", "no JSON", "no JSON", 0.0),
    ],
)
def test_known_answers(metric: str, reference: str, prediction: str, expected: float) -> None:
    assert scores([reference], [prediction])[metric] == pytest.approx(expected, abs=1e-9)


def test_bleu_is_of_the_corpus_and_shares_are_means() -> None:
    found = scores(["a b c d e", "x"], ["a b c d e", "y y y y"])
    assert found["bleu"] == pytest.approx(100 * (5 / 9 * 4 / 7 * 3 / 5 * 2 / 3) ** 0.25)
    assert found["rouge_1"] == found["squad_em"] == 0.5


def test_rouge_is_that_of_rouge_score() -> None:
    draw = random.Random(4)
    words = ["The", "cat", "sat,", "on", "a", "mat.", "don't", "3.5", "x-ray"]
    texts = [" ".join(draw.choices(words, k=draw.randint(0, 9))) for _ in range(60)]
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    theirs = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    for name, function in {"rouge1": text_metrics.rouge_1, "rouge2": text_metrics.rouge_2, "rougeL": rouge_l}.items():
        expected = [theirs.score(right, said)[name].fmeasure for right, said in pairs]
        assert [function([right], [said]) for right, said in pairs] == pytest.approx(expected)


@pytest.mark.parametrize(
    "name", ["bleu", "chrf", "rouge_1", "rouge_2", "squad_em", "squad_f1", "json_valid", "json_match"]
)
def test_values_stay_in_their_range(name: str) -> None:
    metric = METRICS[name]
    assert metric.score is not None
    for texts in (["a b c d", "1"], [""], ["{}", "[1]"]):
        assert metric.low <= metric.score(texts, texts) <= metric.high


def test_answers_are_taken_out_of_both_texts() -> None:
    right = ["So 3 + 4 = 7\n#### 7", "#### 1,200", "no mark: 5"]
    said = ["It is\n#### 7", "1,200", "5"]
    pattern = r"#### (-?[\d.,]+)"
    assert extracted(pattern, right[1]) == "1,200"
    # Found and right; not found, so no answer; a reference without the mark is taken whole.
    assert scores(right, said, extract=pattern)["exact_match"] == pytest.approx(1 / 3)
    assert scores(right, said)["exact_match"] == 0.0


def test_a_pattern_that_would_run_for_ever_is_stopped() -> None:
    with pytest.raises(
        MetricError, match=r"task.extract '\(a\|a\)\*\$' took longer than 1 s on a text of 41 characters"
    ):
        extracted("(a|a)*$", "a" * 40 + "!")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("#### (.*)", ""),
        (r"\\boxed\{(.+?)\}", ""),
        ("(", "is not a regular expression: missing )"),
        ("(a)(b)", "has 2 groups"),
        (".*", "matches nothing at all"),
        ("a" * 501, "is 501 characters long"),
        ("a{999999999999}", "is not a regular expression"),
    ],
)
def test_patterns_are_judged_before_training(pattern: str, expected: str) -> None:
    found = extraction_mistake(pattern)
    assert found.startswith(expected) if expected else found == ""


PERSON = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string", "pattern": "^[A-Z]"}}}


def test_json_is_held_against_a_schema() -> None:
    said = ['{"name": "Ada"}', '{"name": "ada"}', '{"age": 3}', "Ada", '{"name": "Bob", "age": 1}']
    given = {"metric": "json_schema", "metrics": (), "json_schema": PERSON}
    assert scores([""] * 5, said, **given)["json_schema"] == pytest.approx(2 / 5)


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({}, ""),
        (PERSON, ""),
        ({"$defs": {"n": {"type": "number"}}, "items": {"$ref": "#/$defs/n"}}, ""),
        ({"properties": {"child": {"$ref": "#"}}}, ""),
        ({"type": "objekt"}, "is no JSON schema: $.type"),
        ({"$ref": "http://127.0.0.1:1/schema.json"}, "refers to 'http://127.0.0.1:1/schema.json'; nothing outside"),
        ({"$ref": "file:///etc/passwd"}, "refers to 'file:///etc/passwd'"),
        ({"$ref": "#"}, "refers to itself without end"),
        ({"$ref": "#/$defs/none"}, "refers to what it does not hold"),
        ({"pattern": "(a+)+$"}, "pattern '(a+)+$' repeats a group"),
        ({"items": {"patternProperties": {"(": {}}}}, "is no JSON schema"),
        ({"pattern": 3}, "is no JSON schema"),
        ({"required": "name"}, "is no JSON schema: $.required"),
    ],
)
def test_schemas_are_judged_before_training(schema: dict[str, object], expected: str) -> None:
    found = schema_mistake(schema)
    assert found.startswith(expected) if expected else found == ""
