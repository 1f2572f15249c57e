from __future__ import annotations

import math
import random

import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss, matthews_corrcoef

from automl.tasks import metrics


@pytest.mark.parametrize("classes", [2, 3, 20])
@pytest.mark.parametrize("rows", [1, 5, 50, 1000])
@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize("skill", [0.0, 0.5, 0.95])
def test_scores_equal_those_of_scikit_learn(classes: int, rows: int, skill: float) -> None:
    draw = random.Random(f"{classes}:{rows}:{skill}")
    truth = [min(draw.randrange(classes), draw.randrange(classes)) for _ in range(rows)]
    predicted = [true if draw.random() < skill else draw.randrange(classes) for true in truth]
    assert metrics.accuracy(truth, predicted) == pytest.approx(accuracy_score(truth, predicted), abs=1e-15)
    assert metrics.macro_f1(truth, predicted) == pytest.approx(f1_score(truth, predicted, average="macro"), abs=1e-12)
    assert metrics.mcc(truth, predicted) == pytest.approx(matthews_corrcoef(truth, predicted), abs=1e-12)


def test_accuracy_is_exact() -> None:
    # In float32 it would be 0.2199999988079071.
    assert metrics.accuracy([1] * 50, [1] * 11 + [0] * 39) == 0.22


EXTREMES = {"all right": ([0, 1, 2, 1], [0, 1, 2, 1], 1.0), "all wrong": ([0, 1, 0, 1], [1, 0, 1, 0], -1.0)}


@pytest.mark.parametrize(("truth", "predicted", "expected"), EXTREMES.values(), ids=EXTREMES)
def test_mcc_reaches_its_bounds_exactly(truth: list[int], predicted: list[int], expected: float) -> None:
    assert metrics.mcc(truth, predicted) == expected


ONE_SIDED = {"one class predicted": ([0, 1, 1], [1, 1, 1]), "one class true": ([1, 1, 1], [0, 1, 1])}


@pytest.mark.parametrize(("truth", "predicted"), ONE_SIDED.values(), ids=ONE_SIDED)
def test_mcc_of_a_single_class_is_zero(truth: list[int], predicted: list[int]) -> None:
    assert metrics.mcc(truth, predicted) == 0.0


def test_entropy_is_the_loss_of_saying_the_class_frequencies() -> None:
    truth = [0] * 6 + [1] * 3 + [2]
    assert metrics.entropy(truth) == pytest.approx(log_loss(truth, [[0.6, 0.3, 0.1]] * 10), abs=1e-12)


def test_perplexity_never_overflows() -> None:
    assert metrics.perplexity(0.0) == 1.0
    assert metrics.perplexity(math.log(7)) == pytest.approx(7)
    assert metrics.perplexity(1e6) == math.inf


def test_exact_match_ignores_white_space_only() -> None:
    assert metrics.exact_match(["a b", "a b", "a b", "a b"], ["a b", " a\nb ", "A b", "a b."]) == 0.5


ROUGE = {
    # The example of Lin 2004, section 3.1: S1 against S2 and S3, both with a common subsequence of 3 and 2 of 4 words.
    "police killed": ("police killed the gunman", "police kill the gunman", 0.75),
    "the gunman": ("police killed the gunman", "the gunman kill police", 0.5),
    "equal but for case and marks": ("The film was good.", "the film, was GOOD", 1.0),
    "nothing in common": ("one two", "three four", 0.0),
    "short against long": ("a b c d", "b d", 2 * 1.0 * 0.5 / 1.5),
    "no prediction": ("a b", "", 0.0),
    "both without words": ("...", "!", 0.0),
    "umlauts": ("größer als", "größer wie", 0.5),
    "two empty texts": ("", "", 0.0),
    "underscores": ("foo_bar baz", "foo bar baz", 1.0),
    "Chinese, 5 of 6 characters": ("我喜欢吃苹果", "我喜欢吃香果", 5 / 6),
    "Japanese among Latin": ("今日 PyTorch を使う", "今日 pytorch を見る", 4 / 6),
    "Thai": ("แมว", "แมว", 1.0),
    "Hindi words keep their vowel signs": ("नमस्ते दुनिया", "नमस्ते", 2 / 3),
    "composed and decomposed": ("café", "cafe\u0301", 1.0),
}


@pytest.mark.parametrize(("reference", "prediction", "expected"), ROUGE.values(), ids=ROUGE)
def test_rouge_l(reference: str, prediction: str, expected: float) -> None:
    assert metrics.rouge_l([reference], [prediction]) == pytest.approx(expected, abs=1e-12)


def test_words_of_scripts_without_spaces() -> None:
    assert metrics.words("Die 3 Größen: 我喜欢PyTorch_2") == ["die", "3", "größen", "我", "喜", "欢", "pytorch", "2"]
    assert metrics.words("नमस्ते दुनिया") == ["नमस्ते", "दुनिया"]


SQUAD = {
    "articles, case, marks": ("The Eiffel Tower.", "eiffel tower", True),
    "an article inside a word": ("theory", "ory", False),
    "another answer": ("Paris", "Paris, France", False),
}


@pytest.mark.parametrize(("reference", "prediction", "is_same"), SQUAD.values(), ids=SQUAD)
def test_exact_match_as_in_squad(reference: str, prediction: str, is_same: bool) -> None:
    assert metrics.exact_match([reference], [prediction], normal=metrics.squad_normal) == float(is_same)


def test_studies_of_the_first_rules_keep_their_rouge_l() -> None:
    pairs = [("...", "!", 1.0), ("foo_bar", "foo bar", 0.0), ("a b", "", 0.0), ("我喜欢", "我喜", 0.0)]
    for reference, prediction, expected in pairs:
        assert metrics.rouge_l([reference], [prediction], split=metrics.words_by_rules_1) == expected


def test_rouge_l_is_the_mean_over_pairs() -> None:
    assert metrics.rouge_l(["a b", "c d"], ["a b", "x y"]) == 0.5


def test_common_subsequence_against_all_subsequences() -> None:
    draw = random.Random(0)
    for _ in range(200):
        first = [draw.choice("abc") for _ in range(draw.randrange(8))]
        second = [draw.choice("abc") for _ in range(draw.randrange(8))]
        assert metrics.common_subsequence(first, second) == longest(first, second)


def longest(first: list[str], second: list[str]) -> int:
    """By trying every subsequence of `first`."""
    best = 0
    for mask in range(2 ** len(first)):
        chosen = [word for place, word in enumerate(first) if mask >> place & 1]
        rest = iter(second)
        if all(word in rest for word in chosen):
            best = max(best, len(chosen))
    return best


FUNCTIONS = [metrics.accuracy, metrics.macro_f1, metrics.mcc]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
@pytest.mark.parametrize(("truth", "predicted"), [([], []), ([1], [1, 2])], ids=["no rows", "unequal"])
def test_a_metric_of_nothing_is_an_error(function: object, truth: list[int], predicted: list[int]) -> None:
    with pytest.raises(ValueError, match="equal numbers above 0"):
        function(truth, predicted)  # type: ignore[operator]
