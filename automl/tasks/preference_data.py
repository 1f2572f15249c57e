"""Records of preferences as examples, and examples as token rows.

A pair has a prompt, a chosen and a rejected answer; the prompt is a column of its own, or the messages that both
answers begin with. A single label has a prompt, a completion, and whether it is desirable.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, takewhile
from typing import Any, NamedTuple

from automl.errors import DataError
from automl.space.spec import DataSettings, TaskSettings
from automl.tasks.causal import make_recipe
from automl.tasks.conversation import (
    SAID_BY_ASSISTANT,
    TOOLS,
    UNLEARNT,
    Conversation,
    Extras,
    Format,
    Message,
    completed,
    read_list,
    unread,
)
from automl.tasks.fields import Record, column_name, fault, missing_column, shown, take, take_text
from automl.tasks.prepare import Encode, Encoded, Recipe
from automl.tasks.reading import Reader, Reading
from automl.tasks.split import Example
from automl.tasks.templates import text_maker

VERSION = 1
"""Version of the way preferences become tokens; a change makes old caches unused."""

DESIRABLE, UNDESIRABLE = "desirable", "undesirable"

_MESSAGES = re.compile(r"\s*\[\s*\{\s*[\"'](role|from|content|value)[\"']\s*:")
_LABELS = {1: DESIRABLE, 0: UNDESIRABLE}  # true and false among them
_LABEL_TEXTS = {"true": DESIRABLE, "false": UNDESIRABLE, "1": DESIRABLE, "0": UNDESIRABLE}


class _Kind(NamedTuple):
    """A kind of rows: what it is called, its columns, and what makes an example's content of a record."""

    name: str
    columns: tuple[str, ...]
    read: Callable[[Record, DataSettings, Extras], tuple[Conversation, ...]]

    @property
    def shape(self) -> Format:
        """What is known of its columns."""
        return Format(self.columns, ("prompt",), lambda *_: ())


def reader(extras: Extras, settings: TaskSettings, reading: Reading) -> Reader:
    """What makes checked examples of one file, all of the kind of its first one.

    An example's content is (prompt, chosen, rejected), or (prompt, completion) with a label; each is messages.
    """
    data = settings.data
    kinds: list[_Kind] = []

    def read(record: Record) -> Example:
        kind = kinds[0] if kinds else _kind(record, data)
        content = kind.read(record, data, extras)
        label = _label(record, column_name(data, "label")) if kind is _SINGLES else None
        kinds[:] = [kind]
        reading.unused(unread(record, data, kind.shape, extras))
        asked = "\n".join(message.text for message in content[0] if message.role != TOOLS)
        return Example(record.file, record.row, asked, content, label)

    return read


def kind_of(example: Example) -> str:
    """What its kind is called: pairs or single labels."""
    return _PAIRS.name if len(example.content) == 3 else _SINGLES.name


def recipe(tokenizer: Any, settings: TaskSettings, kind: str) -> Recipe:
    """The recipe of rows `input_ids`, `labels` of two texts one after the other, and `first`, tokens of the first one.

    The texts are prompt and chosen, prompt and rejected answer; of a single label the completion, and that of the row
    before it in its place, from which KTO estimates how far the model has moved. Those have `desirable`, 1 or 0, too.
    A row of which one text has no token to learn left is dropped.
    """
    text = make_recipe(text_maker(tokenizer, settings), tokenizer, settings, version=VERSION)
    columns = {"input_ids": True, "labels": True, "first": False}
    return Recipe(
        encode=_encoder(text.encode),
        version=VERSION,
        columns=columns if kind == _PAIRS.name else {**columns, "desirable": False},
        baseline={},
    )


def _encoder(encode: Encode) -> Encode:
    def encode_both(chunk: Sequence[Example]) -> list[Encoded]:
        texts = encode(list(chain.from_iterable(_texts(chunk, place) for place in range(len(chunk)))))
        both = zip(texts[::2], texts[1::2], chunk, strict=True)
        return [_joined(first, second, example) for first, second, example in both]

    return encode_both


def _texts(chunk: Sequence[Example], place: int) -> Iterator[Example]:
    """The two conversations of an example; an answer in the prompt carries no loss."""
    example = chunk[place]
    prompt, first, *rest = example.content
    (second,) = rest or [chunk[place - 1].content[1]]
    silent = tuple(Message(UNLEARNT if role == "assistant" else role, text) for role, text in prompt)
    for answer in (first, second):
        yield example._replace(content=(*silent, *answer))


def _joined(first: Encoded, second: Encoded, example: Example) -> Encoded:
    error, tokens = first.error or second.error, max(first.tokens, second.tokens)
    if error is not None or first.row is None or second.row is None:
        return Encoded(None, tokens, error=error)
    row: dict[str, Any] = {name: [*first.row[name], *second.row[name]] for name in ("input_ids", "labels")}
    row["first"] = len(first.row["input_ids"])
    if example.label is not None:
        row["desirable"] = int(example.label == DESIRABLE)
    return Encoded(row, tokens, first.is_unfinished or second.is_unfinished)


def _kind(record: Record, data: DataSettings) -> _Kind:
    """The first kind whose columns the record has; raises DataError if there is none."""
    has = {kind: [_column(record, data, name) in record.values for name in kind.columns] for kind in _KINDS}
    for kind, found in has.items():
        if all(found):
            return kind
    nearest = max(_KINDS, key=lambda kind: sum(has[kind]))
    absent = nearest.columns[has[nearest].index(False)]
    error = missing_column(record.file, record.row, _column(record, data, absent), record.values)
    raise DataError(f"{error}; one of these sets is needed: prompt + chosen + rejected; prompt + completion + label")


def _column(record: Record, data: DataSettings, name: str) -> str:
    """The data's name of our column; a response is usually called completion here."""
    is_usual = name == "response" and name not in data.columns and name not in record.values
    return "completion" if is_usual else column_name(data, name)


def _read_pair(record: Record, data: DataSettings, extras: Extras) -> tuple[Conversation, ...]:
    chosen, rejected = (_column(record, data, name) for name in ("chosen", "rejected"))
    kinds = {column: _is_list(take(record, column)) for column in (chosen, rejected)}
    if kinds[chosen] != kinds[rejected]:
        texts = chosen if kinds[rejected] else rejected
        raise fault(record, texts, "is a text, the other answer a list of messages; both have to be of one kind")
    first, second = (_conversation(record, data, column, extras) for column in (chosen, rejected))
    shared = len(list(takewhile(lambda both: both[0] == both[1], zip(first, second, strict=False))))
    if first == second or _same_text(first[shared:], second[shared:]):
        raise fault(record, rejected, "is the same as chosen; a pair needs two different answers")
    _check_answers(record, {chosen: first, rejected: second}, shared)
    return first[:shared], first[shared:], second[shared:]


def _check_answers(record: Record, answers: Mapping[str, Conversation], shared: int) -> None:
    """Raise DataError unless the assistant speaks in all of them where they begin to differ."""
    for column, messages in answers.items():
        if len(messages) == shared:
            raise fault(record, column, f"ends after {shared} messages, where the other one has an answer")
    for column, messages in answers.items():
        if messages[shared].role not in SAID_BY_ASSISTANT:
            what = f"message {shared + 1} ({messages[shared].role}) differs from the other's"
            raise fault(record, column, f"{what}; chosen and rejected have to answer the same prompt")


def _read_single(record: Record, data: DataSettings, extras: Extras) -> tuple[Conversation, ...]:
    messages = _conversation(record, data, _column(record, data, "response"), extras)
    said = max(place for place, message in enumerate(messages) if message.role not in SAID_BY_ASSISTANT) + 1
    return messages[:said], messages[said:]


def _conversation(record: Record, data: DataSettings, column: str, extras: Extras) -> Conversation:
    """Prompt and answer: the messages of the column, with those of the prompt before them unless they hold it."""
    asked = column_name(data, "prompt")
    if not _is_list(take(record, column)):
        answer: Conversation = (Message("assistant", take_text(record, column)),)
        return completed(record, data, column, (*_prompt(record, asked), *answer), extras)
    answer = read_list(record, column)
    if answer[0].role in SAID_BY_ASSISTANT:
        return completed(record, data, column, (*_prompt(record, asked), *answer), extras)
    if record.values.get(asked) is not None:
        _check_inside(record, asked, column, answer)
    return completed(record, data, column, answer, extras)


def _check_inside(record: Record, asked: str, column: str, answer: Conversation) -> None:
    """Raise DataError unless a prompt of its own is what the messages begin with, or what a user says in them."""
    prompt = _prompt(record, asked)
    said = [message.text.strip() for message in answer]
    if answer[: len(prompt)] != prompt and prompt[-1].text.strip() not in said:
        what = f"{shown(prompt[-1].text)} is not in the messages of {column!r}, which begin with a prompt themselves"
        raise fault(record, asked, f"{what}; remove one of the two")


def _prompt(record: Record, column: str) -> Conversation:
    if column not in record.values:
        error = missing_column(record.file, record.row, column, record.values)
        raise DataError(f"{error}; only lists of messages can hold the prompt themselves")
    if not _is_list(record.values[column]):
        return (Message("user", take_text(record, column)),)
    messages = read_list(record, column)
    if messages[-1].role in SAID_BY_ASSISTANT:
        raise fault(record, column, "ends with a message of the assistant; a prompt ends with what is to be answered")
    return messages


def _label(record: Record, column: str) -> str:
    value = take(record, column)
    is_text = isinstance(value, str)
    known: dict[Any, str] = _LABEL_TEXTS if is_text else _LABELS
    key = value.strip().lower() if is_text else value
    if not isinstance(key, (str, bool, int, float)) or key not in known:
        raise fault(record, column, f"label is {shown(value)}; true (desirable) or false (undesirable) is needed")
    return known[key]


def _is_list(value: object) -> bool:
    """Whether it is a list of messages, which CSV has as JSON text."""
    return isinstance(value, list) or (isinstance(value, str) and _MESSAGES.match(value) is not None)


def _same_text(first: Conversation, second: Conversation) -> bool:
    return [(role, text.strip()) for role, text in first] == [(role, text.strip()) for role, text in second]


_PAIRS = _Kind("pairs", ("chosen", "rejected"), _read_pair)
_SINGLES = _Kind("single labels", ("response", "label"), _read_single)
_KINDS = (_PAIRS, _SINGLES)
