"""The task `seq2seq`: its section."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from automl.head import Kind
from automl.space.schema_task import TextTask


class Seq2SeqTask(TextTask):
    """Write a target text for a source text, with an encoder and a decoder (T5, mT5, BART)."""

    type: Literal["seq2seq"]
    max_target_length: Annotated[int, Field(ge=1, le=1_000_000)] = 128
    """Tokens of a target, longer ones are cut; `max_length` is that of sources."""

    implementation: ClassVar[str] = "automl.tasks.seq2seq:Seq2Seq"
    head: ClassVar[Kind | Literal[""]] = "seq2seq-lm"
