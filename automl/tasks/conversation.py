"""Records of every instruction format as one thing: a conversation, that is messages with a role and a text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from automl.errors import DataError
from automl.nearest import did_you_mean
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
from automl.tasks.reading import says_something

INPUT = "input"
"""Role of the Alpaca field of that name, between the user's instruction and the assistant's response."""
TOOL = "tool"
"""Role of what a tool answered."""
CALLS = "tool_calls"
"""Role of a message in which the assistant calls tools; its text is the message as a JSON object, without its role."""
UNLEARNT = "assistant, not learnt"
"""Role of a message of the assistant with the weight 0: it is read, and carries no loss."""
TOOLS = "tools"
"""Role of the description of the tools there are, as a JSON list; always the first, and no message of its own."""

SAID_BY_ASSISTANT = frozenset({"assistant", CALLS, UNLEARNT})

_ROLE_KEYS = ("role", "from")
_TEXT_KEYS = ("content", "value")
_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "tool_response", "ipython"), TOOL),
    **dict.fromkeys(("function_call", "tool_call"), CALLS),
}


class Message(NamedTuple):
    """role: system, user, assistant, or one of the constants above. text: never empty."""

    role: str
    text: str


Conversation = tuple[Message, ...]


class Extras(NamedTuple):
    """Which columns beside the turns are read: what a chat template can write, and the rules of the study allow."""

    turns: bool  # system and history
    tools: bool


class Format(NamedTuple):
    """A shape of rows. columns: those that have to be there; more: those that are read where they are."""

    columns: tuple[str, ...]
    more: tuple[str, ...]
    read: Callable[[Record, DataSettings], Conversation]


def choose_format(name: str, record: Record, data: DataSettings) -> Format:
    """The format `name`; "auto" takes the first whose columns this record has.

    Raises DataError for an unknown name, or if no format fits the columns.
    """
    if name != "auto":
        if name not in FORMATS:
            known = f"known: auto, {', '.join(FORMATS)}{did_you_mean(name, FORMATS)}"
            raise DataError(f"task.format: unknown format {name!r}; {known}")
        return FORMATS[name]
    for found in FORMATS.values():
        if all(_column(record, data, column) in record.values for column in found.columns):
            return found
    wanted = column_name(data, "messages")
    listed = "; ".join(" + ".join(found.columns) for found in FORMATS.values())
    error = missing_column(record.file, record.row, wanted, record.values)
    raise DataError(f"{error}; one of these sets is needed: {listed}")


def read_conversation(record: Record, data: DataSettings, shape: Format, extras: Extras) -> Conversation:
    """The record's conversation with what stands beside its turns. Raises DataError if it cannot be used."""
    return completed(record, data, column_name(data, shape.columns[0]), shape.read(record, data), extras)


def completed(record: Record, data: DataSettings, column: str, turns: Conversation, extras: Extras) -> Conversation:
    """The turns with what stands beside them in the record, up to the assistant's last message.

    column: that the turns are from. Raises DataError if they are no conversation.
    """
    if extras.turns:
        turns = _with_system(record, data, (*_history(record, data), *turns))
    else:
        turns = tuple(map(_said_plainly, turns))
    if extras.tools and (column := _beside(record, data, TOOLS)):
        turns = (Message(TOOLS, json.dumps(_json_list(record, column), ensure_ascii=False)), *turns)
    return _check_order(record, column, turns)


def unread(record: Record, data: DataSettings, shape: Format, extras: Extras) -> Iterator[tuple[str, Any]]:
    """Columns, and keys of messages, that `read_conversation` does not read, with their values."""
    beside = (("system", "history") if extras.turns else ()) + ((TOOLS,) if extras.tools else ())
    known = {_column(record, data, name) for name in (*shape.columns, *shape.more, *beside)}
    for name, value in record.values.items():
        if name not in known:
            yield name, value
        elif isinstance(value, list):
            yield from _unread_keys(name, value, extras)


def _unread_keys(column: str, entries: Sequence[Any], extras: Extras) -> Iterator[tuple[str, Any]]:
    read = {*_ROLE_KEYS, *_TEXT_KEYS, *(("weight", "tool_calls", "function_call") if extras.turns else ())}
    for entry in entries:
        if isinstance(entry, Mapping) and any(key in entry for key in _ROLE_KEYS):
            yield from ((f"{column}: {key}", value) for key, value in entry.items() if key not in read)


def question(conversation: Conversation, record: Record, data: DataSettings, extras: Extras) -> str:
    """Everything said before the assistant's first message; before the last one if earlier turns are mere history."""
    said = [place for place, message in enumerate(conversation) if message.role in SAID_BY_ASSISTANT]
    asked = conversation[: said[-1] if extras.turns and _beside(record, data, "history") else said[0]]
    return "\n".join(message.text for message in asked if message.role != TOOLS)


def _column(record: Record, data: DataSettings, name: str) -> str:
    """The data's name of our column; other libraries call the response of a prompt its completion."""
    if name == "conversations":
        return data.columns.get(name, data.columns.get("messages", name))
    if name == "response" and name not in data.columns and name not in record.values and "completion" in record.values:
        return "completion"
    return column_name(data, name)


def _said_plainly(message: Message) -> Message:
    """The message without weight and calls, if it has a text beside them."""
    text = json.loads(message.text)["content"] if message.role == CALLS else message.text
    return Message("assistant", text) if message.role in (CALLS, UNLEARNT) and text.strip() else message


def _read_alpaca(record: Record, data: DataSettings) -> Conversation:
    asked = Message("user", take_text(record, column_name(data, "instruction")))
    extra = take_optional_text(record, column_name(data, "input"))
    answer = Message("assistant", take_text(record, column_name(data, "output")))
    return (asked, Message(INPUT, extra), answer) if extra else (asked, answer)


def _read_pair(record: Record, data: DataSettings) -> Conversation:
    prompt, response = column_name(data, "prompt"), _column(record, data, "response")
    if isinstance(record.values.get(prompt), list):  # both are messages, as TRL has it
        return (*read_list(record, prompt), *read_list(record, response))
    return Message("user", take_text(record, prompt)), Message("assistant", take_text(record, response))


def _read_messages(record: Record, data: DataSettings) -> Conversation:
    return read_list(record, column_name(data, "messages"))


def _read_sharegpt(record: Record, data: DataSettings) -> Conversation:
    return read_list(record, _column(record, data, "conversations"))


def read_list(record: Record, column: str) -> Conversation:
    """The messages in this column, of which there has to be one. Raises DataError."""
    entries = _json_list(record, column, "a list of messages (role, content) or (from, value)")
    if not entries:
        raise fault(record, column, "is an empty list; a list of messages (role, content) or (from, value) is needed")
    read = (_read_message(record, column, entry, number) for number, entry in enumerate(entries, start=1))
    return tuple(message for message in read if message is not None)


def _json_list(record: Record, column: str, needed: str = "a list") -> Sequence[Any]:
    """The list in this column, where CSV has it as JSON text."""
    found = take(record, column)
    if isinstance(found, str) and found.lstrip().startswith("["):
        try:
            found = json.loads(found)
        except (RecursionError, ValueError):
            raise fault(record, column, f"{shown(found)} is not JSON; {needed} is needed") from None
    if not isinstance(found, Sequence) or isinstance(found, str):
        raise fault(record, column, f"is {type(found).__name__} {shown(found)}; {needed} is needed")
    return found


def _read_message(record: Record, column: str, entry: Any, number: int) -> Message | None:
    """One message, or None for a system message that says nothing."""
    what = f"message {number}"
    if not isinstance(entry, Mapping):
        raise fault(record, column, f"{what} is {shown(entry)}; an object with role and content is needed")
    name = next((key for key in _ROLE_KEYS if entry.get(key) is not None), None)
    keys = sorted((key for key in _TEXT_KEYS if key in entry), key=lambda key: entry[key] is None)
    key = keys[0] if keys else None
    calls = _own_calls(entry)
    if name is None or (key is None and not calls):
        raise fault(record, column, f"{what} is {shown(entry)}; an object with role and content is needed")
    written = entry[name]
    role = _ROLES.get(written.casefold()) if isinstance(written, str) else None
    if role is None:
        raise fault(record, column, f"{what} has the {name} {shown(written)}; known: {', '.join(_ROLES)}")
    value = _joined(record, column, entry[key] if key else None, what)
    if role == "system" and (value is None or (isinstance(value, str) and not value.strip())):
        return None
    if role == CALLS:
        return Message(CALLS, _calls_text(_called(record, column, value, what), ""))
    if role == "assistant" and calls:
        return Message(CALLS, _calls_text(calls, value if isinstance(value, str) else ""))
    text = check_text(record, column, value, what=f"text of {what}")
    return Message(_weighed(record, column, entry, role, what), text)


def _joined(record: Record, column: str, content: Any, what: str) -> Any:
    """The text of a content that is a list of parts, of which all have to be text; anything else as it is."""
    if not isinstance(content, Sequence) or isinstance(content, str):
        return content
    texts = []
    for part in content:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else part
            raise fault(record, column, f"{what} has a part of type {shown(kind)}; only text can be learnt")
        texts.append(text)
    return "\n".join(texts)


def _weighed(record: Record, column: str, entry: Mapping[str, Any], role: str, what: str) -> str:
    """The role, by which a message of the assistant with weight 0 carries no loss."""
    weight = entry.get("weight")
    if role != "assistant" or weight is None or weight == 1:
        return role
    if weight != 0:
        raise fault(record, column, f"{what} has the weight {shown(weight)}; 0 (no loss) or 1 is needed")
    return UNLEARNT


def _own_calls(entry: Mapping[str, Any]) -> list[Any]:
    """Tool calls as OpenAI writes them beside the text, the older single function_call among them."""
    calls = entry.get("tool_calls")
    if isinstance(calls, Sequence) and not isinstance(calls, str) and calls:
        return [_function_of(call) for call in calls]
    single = entry.get("function_call")
    return [_function_of(single)] if isinstance(single, Mapping) and single.get("name") else []


def _function_of(call: Any) -> Any:
    inner = call.get("function", call) if isinstance(call, Mapping) else call
    if not isinstance(inner, Mapping):
        return inner
    return {"name": inner.get("name"), "arguments": _parsed(inner.get("arguments", {}))}


def _parsed(arguments: Any) -> Any:
    """Arguments as an object: templates write it as JSON themselves."""
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments


def _called(record: Record, column: str, value: Any, what: str) -> list[Any]:
    """The calls of a ShareGPT turn of its own: a JSON object with name and arguments, or a list of them."""
    found = _parsed(value)
    calls = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, Mapping) and call.get("name") for call in calls):
        raise fault(record, column, f"{what} calls a function as {shown(value)}; a JSON object with a name is needed")
    return [_function_of(call) for call in calls]


def _calls_text(calls: Sequence[Any], content: str) -> str:
    calling = [{"type": "function", "function": call} for call in calls]
    return json.dumps({"content": content, "tool_calls": calling}, ensure_ascii=False)


def _beside(record: Record, data: DataSettings, name: str) -> str:
    """The data's name of a column beside the turns; empty if it says nothing here, or is left out on purpose."""
    column = column_name(data, name)
    return column if column not in data.ignore and says_something(record.values.get(column)) else ""


def _history(record: Record, data: DataSettings) -> Iterator[Message]:
    """Earlier turns: pairs of a question and its answer, or messages."""
    column = _beside(record, data, "history")
    if not column:
        return
    for number, entry in enumerate(_json_list(record, column, "a list of pairs (question, answer)"), start=1):
        if isinstance(entry, Mapping):
            message = _read_message(record, column, entry, number)
            if message is not None:
                yield message
        elif isinstance(entry, Sequence) and not isinstance(entry, str) and len(entry) == 2:
            for role, text in zip(("user", "assistant"), entry, strict=True):
                yield Message(role, check_text(record, column, text, what=f"text of the {role} in turn {number}"))
        else:
            raise fault(record, column, f"turn {number} is {shown(entry)}; a pair (question, answer) is needed")


def _with_system(record: Record, data: DataSettings, turns: Conversation) -> Conversation:
    column = _beside(record, data, "system")
    text = take_optional_text(record, column)
    if not text:
        return turns
    if turns and turns[0].role == "system":
        if turns[0].text.strip() != text.strip():
            raise fault(record, column, "is another text than that of the conversation's own system message")
        return turns
    return (Message("system", text), *turns)


def _check_order(record: Record, column: str, messages: Conversation) -> Conversation:
    """The conversation up to the assistant's last message; raises DataError if it has none, or speaks first."""
    roles = [message.role for message in messages]
    said = [place for place, role in enumerate(roles) if role in SAID_BY_ASSISTANT]
    if not any(roles[place] != UNLEARNT for place in said):
        raise fault(record, column, "no message of the assistant; there is nothing to learn from the row")
    if "user" not in roles[: said[0]]:
        raise fault(record, column, "the assistant speaks first; a message of the user must come before")
    return messages[: max(place for place in said if roles[place] != UNLEARNT) + 1]


FORMATS: dict[str, Format] = {
    "messages": Format(("messages",), (), _read_messages),
    "sharegpt": Format(("conversations",), (), _read_sharegpt),
    "alpaca": Format(("instruction", "output"), ("input",), _read_alpaca),
    "prompt_response": Format(("prompt", "response"), (), _read_pair),
}
"""Every instruction format by name, in the order in which they are tried."""
