"""Metrics as plain functions over Python sequences; nothing here needs torch. `automl.metric` lists them by name.

Counts are whole numbers until the last division, so an accuracy of 11 in 50 is 0.22 and not 0.2199999.
"""

from __future__ import annotations

import math
import re
import string
import unicodedata
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

from automl.metric import METRICS, Metric

_WORD = re.compile(r"\w+")
_WORD_OF_KINDS = re.compile("sm*|[wm]+")
_JOINERS = "\u200c\u200d"
# Thai, Lao, Tibetan, Myanmar, Khmer; Chinese and Japanese with their marks of repetition; half-width Katakana.
_SPACELESS = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u312f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua4cf"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U000323af]"
)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CLASSES = ("classification",)
_TEXTS = ("completion", "instruction", "seq2seq")
_PREFERENCES = ("preference",)
_ROUNDING = 1e-4
_ARTICLE = re.compile(r"\b(a|an|the)\b")


def accuracy(truth: Sequence[int], predicted: Sequence[int]) -> float:
    """Share of equal pairs, in [0, 1]. Raises ValueError for no rows or unequal lengths, as all functions here do."""
    check_pairs(truth, predicted)
    return sum(a == b for a, b in zip(truth, predicted, strict=True)) / len(truth)


def macro_f1(truth: Sequence[int], predicted: Sequence[int]) -> float:
    """Unweighted mean of the F1 of every class that occurs in truth or predictions, in [0, 1]; as in scikit-learn."""
    check_pairs(truth, predicted)
    hits = Counter(a for a, b in zip(truth, predicted, strict=True) if a == b)
    sizes = Counter(truth) + Counter(predicted)  # 2 tp + fn + fp
    return math.fsum(2 * hits[name] / size for name, size in sizes.items()) / len(sizes)


def mcc(truth: Sequence[int], predicted: Sequence[int]) -> float:
    """Matthews correlation over any number of classes, in [-1, 1]; 0 if either side has one class only.

    Source: Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation coefficient", eq. 8.
    """
    check_pairs(truth, predicted)
    rows = len(truth)
    hits = sum(a == b for a, b in zip(truth, predicted, strict=True))
    true, guessed = Counter(truth), Counter(predicted)
    shared = sum(true[name] * guessed[name] for name in true)
    spread_true = rows * rows - sum(count * count for count in true.values())
    spread_guessed = rows * rows - sum(count * count for count in guessed.values())
    if not spread_true or not spread_guessed:
        return 0.0
    return (hits * rows - shared) / math.sqrt(spread_true * spread_guessed)


ACCURACY = Metric("maximize", 0.0, 1.0, _CLASSES, score=accuracy)
MACRO_F1 = Metric("maximize", 0.0, 1.0, (*_CLASSES, "multi_label"), score=macro_f1)
MCC = Metric("maximize", -1.0, 1.0, _CLASSES, score=mcc)


def class_scores(
    truth: Sequence[int], predicted: Sequence[int], *, objective: str, also: Sequence[str] = ()
) -> dict[str, float]:
    """Every built-in metric of classes, the objective, and others that are wanted, by name."""
    names = [*(name for name in METRICS.built_in if _CLASSES[0] in METRICS[name].tasks), objective, *also]
    scores = {name: METRICS[name].score for name in names}
    return {name: float(score(truth, predicted)) for name, score in scores.items() if score is not None}


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean, summed without rounding on the way, so it does not depend on the order."""
    if not values:
        raise ValueError("a metric needs at least one row")
    return math.fsum(values) / len(values)


def entropy(truth: Sequence[int]) -> float:
    """Loss in nats of always predicting the class frequencies of `truth` itself: what no model without input beats."""
    if not truth:
        raise ValueError("a metric needs at least one row")
    rows = len(truth)
    return math.fsum(count / rows * math.log(rows / count) for count in Counter(truth).values())


def perplexity(loss: float) -> float:
    """exp of a loss in nats per token; infinite where it exceeds a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def win(lead: float) -> float:
    """1 if the chosen answer is ahead, 0 if it is behind, 0.5 if neither is by more than rounding."""
    return 0.5 + 0.5 * ((lead > _ROUNDING) - (lead < -_ROUNDING))


def logistic_loss(lead: float) -> float:
    """-log sigmoid(lead), without overflow."""
    return max(-lead, 0.0) + math.log1p(math.exp(-abs(lead)))


def label_scores(scores: Sequence[float], desirable: Sequence[bool]) -> dict[str, float]:
    """preference_accuracy and margin of single labels, over all pairs of a desirable and an undesirable row.

    The first is the area under the ROC curve (Fawcett 2006), equal scores counting half. 0.5 and 0 without any pair.
    """
    good, bad = (
        [score for score, label in zip(scores, desirable, strict=True) if label is kind] for kind in (True, False)
    )
    if not good or not bad:
        return {"preference_accuracy": 0.5, "margin": 0.0}
    bad.sort()
    wins = math.fsum((bisect_left(bad, score) + bisect_right(bad, score)) / 2 for score in good)
    return {"preference_accuracy": wins / (len(good) * len(bad)), "margin": mean(good) - mean(bad)}


PREFERENCE_ACCURACY = Metric("maximize", 0.0, 1.0, _PREFERENCES)
MARGIN = Metric("maximize", -math.inf, math.inf, _PREFERENCES)
KL = Metric("minimize", 0.0, math.inf, _PREFERENCES)
LOSS = Metric("minimize", 0.0, math.inf, ())
PERPLEXITY = Metric("minimize", 1.0, math.inf, _TEXTS)


def one_spaced(text: str) -> str:
    """The text with runs of white space as one space, and none at its ends."""
    return " ".join(text.split())


def squad_normal(text: str) -> str:
    """Lower case, without ASCII punctuation, without the words a, an and the, runs of white space as one space.

    Source: Rajpurkar et al. 2016, SQuAD, evaluate-v1.1.py (normalize_answer).
    """
    bare = text.lower().translate(_NO_PUNCTUATION)
    return one_spaced(_ARTICLE.sub(" ", bare))


def exact_match(
    references: Sequence[str], predictions: Sequence[str], *, normal: Callable[[str], str] = one_spaced
) -> float:
    """Share of predictions equal to their reference once both are `normal`; in [0, 1]."""
    check_pairs(references, predictions)
    pairs = zip(references, predictions, strict=True)
    return sum(normal(a) == normal(b) for a, b in pairs) / len(references)


def words(text: str) -> list[str]:
    """Lower-cased words of letters and digits with their marks; in scripts without spaces each character is a word."""
    folded = unicodedata.normalize("NFC", text).lower()
    kinds = "".join(map(_kind, folded))
    return [folded[found.start() : found.end()] for found in _WORD_OF_KINDS.finditer(kinds)]


def words_by_rules_1(text: str) -> list[str]:
    """What studies of the first rules for data compare: runs of \\w, and one empty word where there are none."""
    return _WORD.findall(text.lower()) or [""]


def rouge_l(
    references: Sequence[str], predictions: Sequence[str], *, split: Callable[[str], list[str]] = words
) -> float:
    """Mean ROUGE-L F-measure over the pairs, in [0, 1]: no stemming, precision and recall alike, 0 without any word.

    split: a text into the words that are compared. Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of
    Summaries", section 3.1, with beta = 1.
    """
    check_pairs(references, predictions)
    pairs = zip(references, predictions, strict=True)
    return math.fsum(_rouge_l(split(a), split(b)) for a, b in pairs) / len(references)


EXACT_MATCH = Metric("maximize", 0.0, 1.0, _TEXTS, generates=True)
ROUGE_L = Metric("maximize", 0.0, 1.0, _TEXTS, generates=True)


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence; time len(first) * len(second), memory len(second)."""
    best = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for column, other in enumerate(second, start=1):
            above = best[column]
            best[column] = diagonal + 1 if word == other else max(above, best[column - 1])
            diagonal = above
    return best[-1]


def _rouge_l(reference: Sequence[str], prediction: Sequence[str]) -> float:
    if not reference or not prediction:
        return 0.0
    return 2 * common_subsequence(reference, prediction) / (len(reference) + len(prediction))


@lru_cache(maxsize=4096)
def _kind(letter: str) -> str:
    """w: part of a word; s: a word of its own, in a script without spaces; m: a mark, which stays with what it follows;
    a space: none of them."""
    category = unicodedata.category(letter)[0]
    if category == "M" or letter in _JOINERS:
        return "m"
    if category not in "LN":
        return " "
    return "s" if _SPACELESS.match(letter) else "w"


def check_pairs(truth: Sequence[object], predicted: Sequence[object]) -> None:
    """Raise ValueError for no rows or unequal lengths."""
    if not truth or len(truth) != len(predicted):
        raise ValueError(f"{len(truth)} references and {len(predicted)} predictions; equal numbers above 0 are needed")
