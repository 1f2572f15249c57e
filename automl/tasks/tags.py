"""Tags of words: what they are made of, and how predicted ones are held against true ones."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from automl.errors import DataError
from automl.metric import Metric
from automl.tasks.fields import shown

OUTSIDE = "O"
_PREFIXED = re.compile(r"[BI]-.*", re.DOTALL)

_TAGS = ("token_classification",)

ENTITY_F1 = Metric("maximize", 0.0, 1.0, _TAGS)
TAG_ACCURACY = Metric("maximize", 0.0, 1.0, _TAGS)


class Entity(NamedTuple):
    """Words from `start` up to `stop`, `stop` excluded, of one kind."""

    kind: str
    start: int
    stop: int


def has_entities(tags: Sequence[str], where: str) -> bool:
    """Whether these are the tags of a set of data in the scheme IOB2: O, B-… and I-….

    Raises DataError for tags that mix the scheme with others, or that name no kind. Tags without any B- or I-, as of
    parts of speech, are none of it.
    """
    prefixed = [tag for tag in tags if _PREFIXED.fullmatch(tag)]
    if not prefixed:
        return False
    if nameless := [tag for tag in prefixed if not tag[2:].strip()]:
        raise DataError(f"{where}: tag {shown(nameless[0])} names no kind of entity; B-PER does")
    if others := [tag for tag in tags if tag != OUTSIDE and tag not in prefixed]:
        raise DataError(
            f"{where}: tag {shown(others[0])} is neither {OUTSIDE} nor B-… or I-…, as {shown(prefixed[0])} is; IOB2 is"
            " read"
        )
    return True


def entities(tags: Sequence[str]) -> list[Entity]:
    """Entities of one row in IOB2. An I- that continues nothing of its kind begins an entity, as in conlleval.

    Source: Tjong Kim Sang and Buchholz 2000, conlleval; the same as seqeval's default mode for tags B, I and O.
    """
    found: list[Entity] = []
    for place, tag in enumerate(tags):
        if not _PREFIXED.fullmatch(tag):
            continue
        kind = tag[2:]
        if tag[0] == "I" and found and found[-1].kind == kind and found[-1].stop == place:
            found[-1] = found[-1]._replace(stop=place + 1)
        else:
            found.append(Entity(kind, place, place + 1))
    return found


def orphans(tags: Sequence[str]) -> int:
    """How many I- of a row continue nothing of their kind."""
    starts = {entity.start for entity in entities(tags)}
    return sum(tag.startswith("I-") for place, tag in enumerate(tags) if place in starts)


def entity_f1(truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """F1 of entities over all rows: right if kind, first and last word are; 0 where there are none on either side."""
    pairs = [(set(entities(a)), set(entities(b))) for a, b in zip(truth, predicted, strict=True)]
    hits = sum(len(a & b) for a, b in pairs)
    size = sum(len(a) + len(b) for a, b in pairs)
    return 2 * hits / size if size else 0.0


def first_tokens(words: Sequence[str], tokens: Sequence[tuple[int, int]]) -> Mapping[int, int]:
    """Word number -> number of its first token, where the words stand side by side with a space between them.

    tokens: span of each in that text, in characters; a token is of the word that its last character is of, since some
    tokenizers count a space as part of the token after it. Words of which no token is left are not there.
    """
    owner = list(_owners(words))
    found: dict[int, int] = {}
    for number, (start, stop) in enumerate(tokens):
        word = owner[stop - 1] if stop > start else None
        if word is not None:
            found.setdefault(word, number)
    return found


def _owners(words: Sequence[str]) -> Iterator[int | None]:
    """For each character of the text, which word it is of."""
    for number, word in enumerate(words):
        if number:
            yield None
        yield from [number] * len(word)
