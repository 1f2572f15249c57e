"""What a task's model ends in: the kind of its head, in the words of transformers and PEFT, and the unit it speaks in.

Cheap to import: reports, which load no model, name the classes too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

Kind = Literal["classification", "regression", "multi-label", "token-classification", "causal-lm", "seq2seq-lm"]

WRITERS: frozenset[Kind] = frozenset({"causal-lm", "seq2seq-lm"})
"""Kinds of models that write text, and have no head of their own to train."""


class HeadClass(NamedTuple):
    """auto: transformers' class that loads such a model. peft: PEFT's `task_type`. problem: transformers'
    `problem_type`, empty if it has none."""

    auto: str
    peft: str
    problem: str = ""


HEADS: Mapping[Kind, HeadClass] = {
    "classification": HeadClass("AutoModelForSequenceClassification", "SEQ_CLS", "single_label_classification"),
    "regression": HeadClass("AutoModelForSequenceClassification", "SEQ_CLS", "regression"),
    "multi-label": HeadClass("AutoModelForSequenceClassification", "SEQ_CLS", "multi_label_classification"),
    "token-classification": HeadClass("AutoModelForTokenClassification", "TOKEN_CLS"),
    "causal-lm": HeadClass("AutoModelForCausalLM", "CAUSAL_LM"),
    "seq2seq-lm": HeadClass("AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM"),
}


class Scale(NamedTuple):
    """The unit of the numbers that a regression predicts: label = mean + deviation x what the model says.

    mean, deviation: of the training rows' labels; the deviation is above 0. levels: the least and the greatest of
    them, if all of them are whole numbers and few enough to be grades.
    """

    mean: float
    deviation: float
    levels: tuple[int, int] | None = None


def peft_task(model: object, *, has_head: bool) -> str:
    """PEFT's `task_type` for a model of transformers, whose class is named after its head."""
    if type(model).__name__.endswith("ForTokenClassification"):
        return HEADS["token-classification"].peft
    if has_head:
        return HEADS["classification"].peft
    is_encoder_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return HEADS["seq2seq-lm" if is_encoder_decoder else "causal-lm"].peft


def about_head(kind: Kind, scale: Scale | None) -> dict[str, Any]:
    """What a manifest says of a head beside its labels; nothing for the two kinds that these tell apart."""
    found: dict[str, Any] = {} if kind in ("classification", "causal-lm") else {"head": kind}
    return found | ({"scale": scale_to_json(scale)} if scale is not None else {})


def kind_of(about: Mapping[str, Any]) -> Kind:
    """The kind of head of an exported adapter, by its manifest. Raises KeyError for one that is not known."""
    kind: Kind = about.get("head") or ("classification" if about.get("labels") else "causal-lm")
    if kind not in HEADS:
        raise KeyError(kind)
    return kind


def scale_to_json(scale: Scale | None) -> dict[str, Any] | None:
    """The scale as it is stored."""
    if scale is None:
        return None
    return {"mean": scale.mean, "deviation": scale.deviation, "levels": list(scale.levels) if scale.levels else None}


def scale_from_json(values: Mapping[str, Any] | None) -> Scale | None:
    """The inverse of `scale_to_json`; raises KeyError if a value is missing."""
    if values is None:
        return None
    levels = values["levels"]
    return Scale(values["mean"], values["deviation"], (levels[0], levels[1]) if levels else None)
