"""What a model has written against what is right: metrics of generated texts beside exact_match and ROUGE-L.

Values of BLEU and chrF are those that sacrebleu prints, from 0 to 100; all others are shares.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from automl.metric import METRICS, Metric, is_own
from automl.space.extraction import extracted
from automl.space.json_schema import is_valid
from automl.space.spec import TaskSettings
from automl.tasks.metrics import (
    exact_match,
    one_spaced,
    rouge_l,
    squad_normal,
    words,
    words_by_rules_1,
)
from automl.tasks.own_metrics import own_scores

_TEXTS = ("completion", "instruction", "seq2seq")
_SACREBLEU = ("sacrebleu",)


def text_scores(
    references: Sequence[str], predictions: Sequence[str], settings: TaskSettings, prompts: Sequence[str] = ()
) -> dict[str, float]:
    """exact_match and rouge_l, and every other metric of generated texts that is wanted, by name.

    prompts: for programs that judge answers.
    """
    if settings.extract:
        references, predictions = _answers(references, predictions, settings.extract)
    normal = squad_normal if settings.normalize == "squad" else one_spaced
    split = words if settings.rules > 1 else words_by_rules_1
    scores = {
        "exact_match": exact_match(references, predictions, normal=normal),
        "rouge_l": rouge_l(references, predictions, split=split),
    }
    wanted = generating(settings)
    if "json_schema" in wanted:
        scores["json_schema"] = json_schema(predictions, settings.json_schema)
    scores |= own_scores(prompts or [""] * len(references), references, predictions, settings)
    others = {name: METRICS[name].score for name in wanted if name not in scores}
    return scores | {name: float(score(references, predictions)) for name, score in others.items() if score is not None}


def generating(settings: TaskSettings) -> list[str]:
    """Those of the metrics that are to be measured for which the model has to write."""
    asked = {name for name, own in settings.own_metrics.items() if own.lm_eval is not None}  # lm-eval has them write
    return [name for name in settings.measured if METRICS[name].generates or (is_own(name) and name not in asked)]


def _answers(references: Sequence[str], predictions: Sequence[str], pattern: str) -> tuple[list[str], list[str]]:
    """What the pattern finds. A reference without it is its own answer, a prediction without it has none."""
    found = [extracted(pattern, text) for text in references]
    right = [text if answer is None else answer for text, answer in zip(references, found, strict=True)]
    return right, [extracted(pattern, text) or "" for text in predictions]


def bleu(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Corpus BLEU of sacrebleu (Papineni et al. 2002; Post 2018), tokenised by 13a, in [0, 100].

    Where no text has four words, of the n-grams there are; otherwise it would be 0 for right answers too.
    """
    from sacrebleu import metrics

    score = metrics.BLEU(effective_order=True).corpus_score(list(predictions), [list(references)]).score
    return min(float(score), 100.0)


def chrf(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Corpus chrF2 of sacrebleu (Popović 2015), in [0, 100]."""
    from sacrebleu import metrics

    return min(float(metrics.CHRF().corpus_score(list(predictions), [list(references)]).score), 100.0)


def rouge_n(references: Sequence[str], predictions: Sequence[str], n: int) -> float:
    """Mean F-measure of shared runs of n words over the pairs, in [0, 1]; words as for ROUGE-L. Lin 2004, section 2."""
    return _mean(references, predictions, lambda right, said: _overlap(_runs(words(right), n), _runs(words(said), n)))


def rouge_1(references: Sequence[str], predictions: Sequence[str]) -> float:
    """ROUGE-1."""
    return rouge_n(references, predictions, 1)


def rouge_2(references: Sequence[str], predictions: Sequence[str]) -> float:
    """ROUGE-2."""
    return rouge_n(references, predictions, 2)


def squad_em(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Share of predictions equal to their reference by the normalisation of SQuAD; in [0, 1]."""
    return exact_match(references, predictions, normal=squad_normal)


def squad_f1(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Mean F1 of shared words by the normalisation of SQuAD; of two texts of which one is empty, 1 if both are.

    Source: Rajpurkar et al. 2018, SQuAD, evaluate-v2.0.py (compute_f1).
    """
    return _mean(references, predictions, _squad_f1)


def json_valid(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Share of predictions that are JSON (RFC 8259: no NaN), in [0, 1]."""
    return _mean(references, predictions, lambda _, said: float(_parsed(said) is not _NONE))


def json_match(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Share of predictions that are the same JSON value as the reference: order of keys and spaces aside; in [0, 1]."""
    return _mean(references, predictions, lambda right, said: float(_is_same(_parsed(right), _parsed(said))))


def json_schema(predictions: Sequence[str], schema: Mapping[str, Any]) -> float:
    """Share of predictions that are JSON which fits the schema, in [0, 1]."""
    return _mean(predictions, predictions, lambda _, said: float(_fits(_parsed(said), schema)))


BLEU = Metric("maximize", 0.0, 100.0, _TEXTS, score=bleu, generates=True, packages=_SACREBLEU)
CHRF = Metric("maximize", 0.0, 100.0, _TEXTS, score=chrf, generates=True, packages=_SACREBLEU)
ROUGE_1 = Metric("maximize", 0.0, 1.0, _TEXTS, score=rouge_1, generates=True)
ROUGE_2 = Metric("maximize", 0.0, 1.0, _TEXTS, score=rouge_2, generates=True)
SQUAD_EM = Metric("maximize", 0.0, 1.0, _TEXTS, score=squad_em, generates=True)
SQUAD_F1 = Metric("maximize", 0.0, 1.0, _TEXTS, score=squad_f1, generates=True)
JSON_VALID = Metric("maximize", 0.0, 1.0, _TEXTS, score=json_valid, generates=True)
JSON_MATCH = Metric("maximize", 0.0, 1.0, _TEXTS, score=json_match, generates=True)
JSON_SCHEMA = Metric("maximize", 0.0, 1.0, _TEXTS, generates=True)

_NONE = object()
"""What a text is read as that is no JSON."""


def _mean(references: Sequence[str], predictions: Sequence[str], score: Callable[[str, str], float]) -> float:
    if not references or len(references) != len(predictions):
        raise ValueError(f"{len(references)} references and {len(predictions)} predictions; equal numbers are needed")
    return math.fsum(map(score, references, predictions)) / len(references)


def _runs(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1))


def _overlap(right: Counter[Any], said: Counter[Any]) -> float:
    """F1 of two bags, 0 if they share nothing."""
    shared = (right & said).total()
    return 2 * shared / (right.total() + said.total()) if shared else 0.0


def _squad_f1(right: str, said: str) -> float:
    ours, theirs = squad_normal(right).split(), squad_normal(said).split()
    return _overlap(Counter(ours), Counter(theirs)) if ours and theirs else float(ours == theirs)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _NONE


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _is_same(right: Any, said: Any) -> bool:
    """Whether two values are one to JSON, to which true is no number."""
    if right is _NONE or said is _NONE or isinstance(right, bool) != isinstance(said, bool):
        return False
    if isinstance(right, dict) and isinstance(said, dict):
        return right.keys() == said.keys() and all(_is_same(right[key], said[key]) for key in right)
    if isinstance(right, list) and isinstance(said, list):
        return len(right) == len(said) and all(map(_is_same, right, said))
    return bool(right == said)


def _fits(value: Any, schema: Mapping[str, Any]) -> bool:
    try:
        return value is not _NONE and is_valid(schema, value)
    except (RecursionError, OverflowError):  # nested deeper, or a number larger, than can be judged
        return False
