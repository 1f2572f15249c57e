"""Conversations as text with a loss mask: through the model's chat template, or as the classic Alpaca text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from jinja2 import TemplateError  # comes with transformers: chat templates are written in it

from automl.errors import DataError
from automl.space.spec import TaskSettings
from automl.tasks.causal import MaskedText, TextPart
from automl.tasks.conversation import CALLS, INPUT, TOOL, TOOLS, UNLEARNT, Conversation, Message
from automl.tasks.fields import place, shown
from automl.tasks.split import Example

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
"""Source: Taori et al. 2023, stanford_alpaca, train.py (PROMPT_DICT)."""

_ALPACA_ROLES = (["user", "assistant"], ["user", INPUT, "assistant"])

Thinking = Literal["refuse", "keep", "template"]

_THOUGHT_END = "</think>"
_NO_THOUGHT = r"(?:<think>\s*</think>\s*)?"
_STAND_IN = "answer-with-its-thoughts-{}-"


def text_maker(tokenizer: Any, settings: TaskSettings) -> Callable[[Example], MaskedText]:
    """What makes text of conversations for this tokenizer: its chat template if it has one, else the Alpaca text."""
    if tokenizer.chat_template is None:
        return alpaca_text
    return lambda example: chat_text(example, tokenizer, thinking=settings.thinking, is_strict=settings.rules > 1)


def knows_tools(template: object) -> bool:
    """Whether a chat template (a text, or several by name) writes descriptions and calls of tools."""
    text = str(template)
    return "tools" in text and "tool_calls" in text


def alpaca_text(example: Example) -> MaskedText:
    """One instruction (with or without input) and one response; raises DataError for any other conversation."""
    conversation = _conversation(example)
    roles = [message.role for message in conversation]
    if roles not in _ALPACA_ROLES:
        message = f"a conversation of {', '.join(roles)} needs a chat template; the model's tokenizer has none"
        raise DataError(f"{place(example.file, example.row)}: {message}")
    asked, *extra, answer = (message.text for message in conversation)
    prompt = ALPACA_WITH_INPUT.format(instruction=asked, input=extra[0]) if extra else ALPACA.format(instruction=asked)
    return MaskedText((TextPart(prompt, has_loss=False), TextPart(answer, has_loss=True)), is_closed=True)


def chat_text(example: Example, tokenizer: Any, *, thinking: Thinking = "refuse", is_strict: bool = True) -> MaskedText:
    """The conversation as the chat template writes it; every message of the assistant carries loss.

    Where such a message begins is found by templating what comes before it; it ends with the end-of-turn text that
    the template writes after the last one. White space after that is nobody's response. thinking: what becomes of
    thoughts that the template removes. is_strict: the text of every message has to be in what the template writes.
    Raises DataError if the template refuses the conversation or changes the assistant's text.
    """
    written = _merge_inputs(_conversation(example))
    _check_tools(example, tokenizer, written)
    messages = _thoughtless(written, thinking)
    whole = _template(example, tokenizer, messages, is_prompt=False)
    spans = _spans(example, tokenizer, messages, whole)
    if is_strict:
        _check_complete(example, messages, whole)
    ending = "" if spans[-1].is_whole else whole[spans[-1].stop :].rstrip()  # end-of-turn text
    parts: list[TextPart] = []
    cursor = 0
    for start, stop, is_whole in spans:
        end = stop + len(ending) if not is_whole and whole.startswith(ending, stop) else stop
        parts += [TextPart(whole[cursor:start], has_loss=False), TextPart(whole[start:end], has_loss=True)]
        cursor = end
    if thinking == "keep":
        parts = [part._replace(text=_with_thoughts(part.text, written)) for part in parts]
    return MaskedText(tuple(parts), is_closed=not ending and not spans[-1].is_whole, is_opened=False)


class _Span(NamedTuple):
    """Where a message of the assistant begins and ends in the templated conversation. is_whole: its end of turn too."""

    start: int
    stop: int
    is_whole: bool


def _spans(example: Example, tokenizer: Any, messages: Conversation, whole: str) -> list[_Span]:
    """The span of every message of the assistant that is learnt."""
    spans: list[_Span] = []
    for number, message in enumerate(messages):
        if message.role not in ("assistant", CALLS):
            continue
        before = _template(example, tokenizer, messages[:number], is_prompt=True)
        # Not always all of `before`: some templates open a thought in a prompt and leave it out of finished messages.
        start = _common_start(before, whole)
        if message.role == CALLS:
            after = _template(example, tokenizer, messages[: number + 1], is_prompt=False)
            found, length = start, len(whole[start : _common_start(after, whole)].rstrip())
        else:
            text = message.text if whole.find(message.text, start) >= 0 else message.text.strip()  # many strip
            found, length = whole.find(text, start), len(text)
        if found < 0 or not length or (spans and start < spans[-1].stop):
            raise DataError(f"{place(example.file, example.row)}: {_changed(message, number)}")
        spans.append(_Span(start, found + length, is_whole=message.role == CALLS))
    return spans


def _changed(message: Message, number: int) -> str:
    what = f"the model's chat template changes message {number + 1}, so its loss cannot be placed"
    if _THOUGHT_END not in message.text:
        return what
    thought = shown(message.text.rpartition(_THOUGHT_END)[0] + _THOUGHT_END)
    return (
        f"the model's chat template removes {thought} from message {number + 1}; set task.thinking to keep (thoughts"
        " are learnt too) or template (answers alone), or put a chat_template.jinja of your own beside the model"
    )


def _thoughtless(messages: Conversation, thinking: Thinking) -> Conversation:
    """The messages as they are templated: an answer without its thoughts, or a stand-in for an answer with them."""
    if thinking == "refuse":
        return messages
    return tuple(_without_thought(message, number, thinking) for number, message in enumerate(messages))


def _without_thought(message: Message, number: int, thinking: Thinking) -> Message:
    answer = message.text.rpartition(_THOUGHT_END)[2].strip()
    if message.role not in ("assistant", UNLEARNT) or _THOUGHT_END not in message.text or not answer:
        return message
    return message._replace(text=answer if thinking == "template" else _STAND_IN.format(number))


def _with_thoughts(text: str, messages: Conversation) -> str:
    """The text with stand-ins replaced by what they stand for, and without an empty thought before them."""
    for number, message in enumerate(messages):
        stand_in = _STAND_IN.format(number)
        if stand_in in text:
            text = re.sub(_NO_THOUGHT + re.escape(stand_in), lambda _, message=message: message.text, text)  # type: ignore[misc]
    return text


def _check_tools(example: Example, tokenizer: Any, messages: Conversation) -> None:
    if any(message.role in (TOOL, CALLS) for message in messages) and not knows_tools(tokenizer.chat_template):
        message = "holds a call of a function or its result; the model's chat template knows no tools"
        raise DataError(f"{place(example.file, example.row)}: {message}")


def _check_complete(example: Example, messages: Conversation, whole: str) -> None:
    """Raise DataError if the template leaves out what somebody else than the assistant says."""
    for number, message in enumerate(messages):
        text = message.text.strip()
        escaped = json.dumps(text, ensure_ascii=False)[1:-1]  # results of tools are written as JSON by some
        if message.role in ("system", "user", TOOL) and text not in whole and escaped not in whole:
            what = f"the model's chat template leaves out message {number + 1} ({message.role}) or changes it"
            remedy = "; task.data.ignore: [system] leaves a system column out" if message.role == "system" else ""
            raise DataError(f"{place(example.file, example.row)}: {what}{remedy}")


def _common_start(first: str, second: str) -> int:
    """Number of characters that both texts begin with."""
    if second.startswith(first):
        return len(first)
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))


def _template(example: Example, tokenizer: Any, messages: Sequence[Message], *, is_prompt: bool) -> str:
    chat = [_as_chat(message) for message in messages if message.role != TOOLS]
    tools = next((json.loads(message.text) for message in messages if message.role == TOOLS), None)
    try:
        text: str = tokenizer.apply_chat_template(chat, tools=tools, tokenize=False, add_generation_prompt=is_prompt)
    except (TemplateError, TypeError, ValueError) as error:  # the last two: of descriptions of tools
        reason = str(error).partition("\n")[0]
        raise DataError(f"{place(example.file, example.row)}: the model's chat template refuses it: {reason}") from None
    return text


def _as_chat(message: Message) -> dict[str, Any]:
    """The message as chat templates take it."""
    if message.role == CALLS:
        return {"role": "assistant", **json.loads(message.text)}
    return {"role": "assistant" if message.role == UNLEARNT else message.role, "content": message.text}


def _merge_inputs(conversation: Conversation) -> Conversation:
    """The Alpaca input as part of the user's message, after a blank line."""
    merged: list[Message] = []
    for message in conversation:
        if message.role == INPUT:
            merged[-1] = Message("user", f"{merged[-1].text}\n\n{message.text}")
        else:
            merged.append(message)
    return tuple(merged)


def _conversation(example: Example) -> Conversation:
    return tuple(Message(role, text) for role, text in example.content)
