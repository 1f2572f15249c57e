"""Conversations as text with a loss mask: through the model's chat template, or as the classic Alpaca text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import TemplateError  # comes with transformers: chat templates are written in it

from automl.errors import DataError
from automl.tasks.causal import Layout, Segment
from automl.tasks.conversation import INPUT, Conversation, Message
from automl.tasks.fields import place
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


def layout_for(tokenizer: Any) -> Callable[[Example], Layout]:
    """The layout of conversations for this tokenizer: its chat template if it has one, else the Alpaca text."""
    if tokenizer.chat_template is None:
        return alpaca_layout
    return lambda example: chat_layout(example, tokenizer)


def alpaca_layout(example: Example) -> Layout:
    """One instruction (with or without input) and one response; raises DataError for any other conversation."""
    conversation = _conversation(example)
    roles = [message.role for message in conversation]
    if roles not in _ALPACA_ROLES:
        message = f"a conversation of {', '.join(roles)} needs a chat template; the model's tokenizer has none"
        raise DataError(f"{place(example.file, example.row)}: {message}")
    asked, *extra, answer = (message.text for message in conversation)
    prompt = ALPACA_WITH_INPUT.format(instruction=asked, input=extra[0]) if extra else ALPACA.format(instruction=asked)
    return Layout((Segment(prompt, has_loss=False), Segment(answer, has_loss=True)), is_closed=True)


def chat_layout(example: Example, tokenizer: Any) -> Layout:
    """The conversation as the chat template writes it; every message of the assistant carries loss.

    Where such a message begins is found by templating what comes before it; it ends with the end-of-turn text that
    the template writes after the last one. White space after that is nobody's response. Raises DataError if the
    template refuses the conversation or changes the assistant's text.
    """
    messages = _merge_inputs(_conversation(example))
    whole = _template(example, tokenizer, messages, is_prompt=False)
    spans = _spans(example, tokenizer, messages, whole)
    ending = whole[spans[-1][1] :].rstrip()  # end-of-turn text
    segments: list[Segment] = []
    cursor = 0
    for start, stop in spans:
        end = stop + len(ending) if whole.startswith(ending, stop) else stop
        segments += [Segment(whole[cursor:start], has_loss=False), Segment(whole[start:end], has_loss=True)]
        cursor = end
    return Layout(tuple(segments), is_closed=not ending, is_opened=False)


def _spans(example: Example, tokenizer: Any, messages: Conversation, whole: str) -> list[tuple[int, int]]:
    """Where each message of the assistant begins and where its text ends, in the templated conversation."""
    spans: list[tuple[int, int]] = []
    for number, message in enumerate(messages):
        if message.role != "assistant":
            continue
        before = _template(example, tokenizer, messages[:number], is_prompt=True)
        # Not always all of `before`: some templates open a thought in a prompt and leave it out of finished messages.
        start = _common_start(before, whole)
        text = message.text if whole.find(message.text, start) >= 0 else message.text.strip()  # many templates strip
        found = whole.find(text, start)
        if found < 0 or (spans and start < spans[-1][1]):
            raise DataError(
                f"{place(example.file, example.row)}: the model's chat template changes message {number + 1}, "
                "so its loss cannot be placed"
            )
        spans.append((start, found + len(text)))
    return spans


def _common_start(first: str, second: str) -> int:
    """Number of characters that both texts begin with."""
    if second.startswith(first):
        return len(first)
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))


def _template(example: Example, tokenizer: Any, messages: Sequence[Message], *, is_prompt: bool) -> str:
    chat = [{"role": message.role, "content": message.text} for message in messages]
    try:
        text: str = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=is_prompt)
    except TemplateError as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{place(example.file, example.row)}: the model's chat template refuses it: {reason}") from None
    return text


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
