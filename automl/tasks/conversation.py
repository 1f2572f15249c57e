"""Records of every instruction format as one thing: a conversation, that is messages with a role and a text."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from automl.errors import DataError
from automl.space.spec import DataSettings
from automl.tasks.fields import (
    Record,
    check_text,
    column_name,
    fault,
    missing_column,
    shown,
    take,
    take_optional_text,
    take_text,
)

INPUT = "input"
"""Role of the Alpaca field of that name, between the user's instruction and the assistant's response."""


class Message(NamedTuple):
    """role: system, user, assistant, or INPUT. text: never empty."""

    role: str
    text: str


Conversation = tuple[Message, ...]
ReadConversation = Callable[[Record, DataSettings], Conversation]


def choose_format(name: str, record: Record, data: DataSettings) -> ReadConversation:
    """The reader of format `name`; "auto" takes the first whose columns this record has.

    Raises DataError for an unknown name, or if no format fits the columns.
    """
    if name != "auto":
        if name not in FORMATS:
            close = difflib.get_close_matches(name, FORMATS, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise DataError(f"task.format: unknown format {name!r}; known: auto, {', '.join(FORMATS)}{hint}")
        return FORMATS[name]
    for columns, reader in _BY_COLUMNS:
        if all(column_name(data, column) in record.values for column in columns):
            return reader
    wanted = column_name(data, "messages")
    listed = "; ".join(" + ".join(columns) for columns, _ in _BY_COLUMNS)
    error = missing_column(record.file, record.row, wanted, record.values)
    raise DataError(f"{error}; one of these sets is needed: {listed}")


def question(conversation: Conversation) -> str:
    """Everything said before the assistant's first message."""
    texts = []
    for message in conversation:
        if message.role == "assistant":
            break
        texts.append(message.text)
    return "\n".join(texts)


def _read_alpaca(record: Record, data: DataSettings) -> Conversation:
    asked = Message("user", take_text(record, column_name(data, "instruction")))
    extra = take_optional_text(record, column_name(data, "input"))
    answer = Message("assistant", take_text(record, column_name(data, "output")))
    return (asked, Message(INPUT, extra), answer) if extra else (asked, answer)


def _read_pair(record: Record, data: DataSettings) -> Conversation:
    asked = take_text(record, column_name(data, "prompt"))
    return Message("user", asked), Message("assistant", take_text(record, column_name(data, "response")))


class _Keys(NamedTuple):
    """How a list of messages is written: its column, the keys of a message, and the names of the roles."""

    column: str
    role: str
    text: str
    roles: Mapping[str, str]


_MESSAGES = _Keys("messages", "role", "content", {name: name for name in ("system", "user", "assistant")})
_SHAREGPT = _Keys(
    "conversations",
    "from",
    "value",
    {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"},
)


def _read_messages(record: Record, data: DataSettings) -> Conversation:
    return _read_list(record, column_name(data, _MESSAGES.column), _MESSAGES)


def _read_sharegpt(record: Record, data: DataSettings) -> Conversation:
    column = data.columns.get("messages", _SHAREGPT.column)
    return _read_list(record, column, _SHAREGPT)


def _read_list(record: Record, column: str, keys: _Keys) -> Conversation:
    found = take(record, column)
    if not isinstance(found, Sequence) or isinstance(found, str) or not found:
        what = "an empty list" if found == [] else f"{type(found).__name__} {shown(found)}"
        raise fault(record, column, f"is {what}; a list of messages ({keys.role}, {keys.text}) is needed")
    messages = tuple(_read_message(record, column, keys, entry, number) for number, entry in enumerate(found, start=1))
    return _check_order(record, column, messages)


def _read_message(record: Record, column: str, keys: _Keys, entry: Any, number: int) -> Message:
    what = f"message {number}"
    if not isinstance(entry, Mapping) or keys.role not in entry or keys.text not in entry:
        raise fault(record, column, f"{what} is {shown(entry)}; an object with {keys.role} and {keys.text} is needed")
    role = keys.roles.get(entry[keys.role]) if isinstance(entry[keys.role], str) else None
    if role is None:
        known = ", ".join(keys.roles)
        raise fault(record, column, f"{what} has the {keys.role} {shown(entry[keys.role])}; known: {known}")
    return Message(role, check_text(record, column, entry[keys.text], what=f"text of {what}"))


def _check_order(record: Record, column: str, messages: Conversation) -> Conversation:
    """The conversation up to the assistant's last message; raises DataError if it has none, or speaks first."""
    roles = [message.role for message in messages]
    if "assistant" not in roles:
        raise fault(record, column, "no message of the assistant; there is nothing to learn from the row")
    if "user" not in roles[: roles.index("assistant")]:
        raise fault(record, column, "the assistant speaks first; a message of the user must come before")
    return messages[: len(roles) - roles[::-1].index("assistant")]


FORMATS: dict[str, ReadConversation] = {
    "alpaca": _read_alpaca,
    "messages": _read_messages,
    "sharegpt": _read_sharegpt,
    "prompt_response": _read_pair,
}
"""Every instruction format by name."""

_BY_COLUMNS: tuple[tuple[tuple[str, ...], ReadConversation], ...] = (
    (("messages",), _read_messages),
    (("conversations",), _read_sharegpt),
    (("instruction", "output"), _read_alpaca),
    (("prompt", "response"), _read_pair),
)
