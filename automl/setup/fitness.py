"""Whether model, tokenizer and space fit each other, found out before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from inspect import signature
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automl.errors import ConfigError, MissingExtraError, ModelError, Problem
from automl.head import WRITERS
from automl.lora import LinearShape
from automl.methods.registry import METHODS
from automl.methods.virtual import TOKENS
from automl.metric import METRICS
from automl.models.folder import folder_at_hand, read_config, stored_quantization
from automl.models.positions import positions
from automl.models.quantisation import check_installed
from automl.space.defaults import resolve
from automl.space.entries import head_of
from automl.space.extremes import corners, extremes, names_of, setting_values, starts_from_inputs
from automl.space.messages import shown
from automl.space.spec import SearchSpace, SweepSpec
from automl.tasks.base import IGNORED, Row

if TYPE_CHECKING:  # `automl validate` does without torch
    from torch import nn

    from automl.tasks.base import Head, Prepared, Task

_READ_AT_END = frozenset({"bart", "bigbird_pegasus", "mbart", "mt5", "mvp", "plbart", "t5", "umt5"})
"""Architectures whose classifier takes a text's representation where its end token is."""

ADAPTER_FILES = ("adapter_config.json", "adapter.safetensors")
"""What a trained adapter is known by: as PEFT saves it, or with the model's own weights."""

_JUDGING = ("classification", "regression", "multi-label")


def check_architecture(spec: SweepSpec, config: Mapping[str, Any]) -> None:
    """Raise ConfigError if the task trains an encoder with a decoder and the model is none, or the other way round.

    config: the model's, as JSON.
    """
    kind, task, name = head_of(spec.task.type), spec.task.type, config.get("model_type")
    if kind not in WRITERS or bool(config.get("is_encoder_decoder")) == (kind == "seq2seq-lm"):
        return
    what = (
        f"{name!r} has no encoder with a decoder behind it, which is what task {task} trains (t5, mt5, bart …);"
        " completion and instruction train decoders (gpt2, llama, qwen3 …)"
        if kind == "seq2seq-lm"
        else f"{name!r} is an encoder with a decoder, and task {task} trains a decoder alone (gpt2, llama, qwen3 …);"
        " type: seq2seq trains this model, from columns source and target"
    )
    raise ConfigError([Problem(spec.source, 0, 0, "task.type", what)])


def check_start(model: nn.Module) -> None:
    """Raise ModelError if a model with a decoder behind an encoder does not say what its targets begin with."""
    config: Any = model.config
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        raise ModelError(
            f"'{config.model_type}': config.json has no decoder_start_token_id, the token that targets begin after;"
            " T5 begins with its pad token, BART with </s>"
        )


def check_length(spec: SweepSpec, folder: Path) -> Iterator[str]:
    """A note if texts may be longer than the model in `folder` was made for.

    Needs neither torch nor data. Raises ConfigError with both numbers if the model cannot read texts as long as the
    limits of the file allow, ModelError if the folder holds no model that can be adapted.
    """
    config = read_config(folder)
    limit, named = positions(config), f"the model ({config.get('model_type')})"
    for key, length in _lengths(spec):
        if limit is None or length <= limit.tokens:
            continue
        if limit.is_hard:
            message = f"{length} is above the {limit.tokens} positions of {named}, the most that it can read"
            raise ConfigError([Problem(spec.source, 0, 0, key, message)])
        key = key.rpartition(".")[2]
        yield f"{key}: {length} is above the {limit.tokens} tokens that {named} was made for, and may be read worse"


def _lengths(spec: SweepSpec) -> Iterator[tuple[str, int]]:
    """Most tokens that the model has to find positions for, and the keys that say so."""
    task = spec.task
    yield "fixed.max_length", task.max_length
    if task.max_target_length:
        yield "task.max_target_length", task.max_target_length
        if any(METRICS[name].generates for name in task.measured):
            yield "task.max_new_tokens", task.max_new_tokens


def model_remarks(spec: SweepSpec) -> list[str]:
    """The notes of `check_length` if the model is on this machine, without importing torch; else none.

    Raises ConfigError for what a search would refuse.
    """
    folder = folder_at_hand(spec.model)
    check_extras(spec)
    try:
        held = spec.model.quantization or (stored_quantization(read_config(folder)) if folder is not None else None)
        if held is not None:
            check_installed(f"quantization {held.kind}")
        if folder is None:
            return []
        if spec.model.adapter:
            check_adapter(spec)
        check_architecture(spec, read_config(folder))
        check_positions(spec, read_config(folder), _virtual_tokens(spec))
        return list(check_length(spec, folder))
    except (ModelError, MissingExtraError) as error:
        raise ConfigError([Problem(spec.source, 0, 0, "model", str(error))]) from error


def check_adapter(spec: SweepSpec) -> None:
    """Raise ConfigError unless the folder of the adapter that a search begins with holds one."""
    folder = Path(spec.model.adapter)
    if not folder.is_dir():
        message = f"{folder} is no folder; the folder of a trained adapter is needed"
    elif not any((folder / name).is_file() for name in ADAPTER_FILES):
        message = f"{folder} holds no adapter: a folder with {' or '.join(ADAPTER_FILES)} is needed"
    else:
        return
    raise ConfigError([Problem(spec.source, 0, 0, "model.adapter", message)])


def check_extras(spec: SweepSpec) -> None:
    """Raise ConfigError if a setting may have a value that needs a package which is not installed."""
    own = names_of(spec.space).own
    for name, value in ((name, value) for name, setting in own.items() for value in setting.quant):
        if value in setting_values(spec.space, own[name]):
            try:
                check_installed(f"{name} {value}")
            except MissingExtraError as error:
                raise ConfigError([Problem(spec.source, 0, 0, name, str(error))]) from error


def check_positions(spec: SweepSpec, config: Mapping[str, Any], virtual_tokens: int) -> None:
    """Raise ConfigError if virtual tokens and texts together may need more positions than the model has.

    config: the model's. virtual_tokens: most that a trial may have.
    """
    limit, length = positions(config), spec.task.longest_row
    if virtual_tokens and limit is not None and limit.is_hard and virtual_tokens + length > limit.tokens:
        name = "max_length" if length == spec.task.max_length else "max_target_length"
        both = f"{virtual_tokens} and {name} {length} are above the {limit.tokens} positions of the model"
        message = f"{both} ({config.get('model_type')}), the most that it can read; lower one of them"
        raise ConfigError([Problem(spec.source, 0, 0, "virtual_tokens", message)])


def check_harness_methods(spec: SweepSpec, virtual_tokens: int) -> None:
    """Raise ConfigError if lm-eval is to judge models with virtual tokens, of which a trial may have so many."""
    if virtual_tokens and any(own.lm_eval is not None for own in spec.task.own_metrics.values()):
        message = "lm-eval reads answers by their places, which virtual tokens move; choose other methods or metrics"
        raise ConfigError([Problem(spec.source, 0, 0, "task.metric", message)])


def check_joins(spec: SweepSpec, model: nn.Module, virtual_tokens: int) -> None:
    """Raise ConfigError if joined rows cannot be kept apart. virtual_tokens: most that a trial may have."""
    if spec.task.short_texts and (reason := _joins_badly(spec, model, virtual_tokens)):
        raise ConfigError([Problem(spec.source, 0, 0, "task.short_texts", f"{reason}; leave it out")])


def _joins_badly(spec: SweepSpec, model: nn.Module, virtual_tokens: int) -> str:
    """Why rows are not to be joined, as far as it is known without weights; empty if nothing is in the way."""
    config: Any = model.config
    text = config.get_text_config(decoder=True)  # of a model that sees images too
    if virtual_tokens:
        return "virtual tokens belong before each row, and in a block they would stand before the first alone"
    is_told = {"position_ids", "attention_mask"} <= signature(model.forward).parameters.keys()
    if not is_told or getattr(config, "alibi", False):  # Falcon's ALiBi counts positions by the mask of padding
        return f"a model of type {config.model_type} cannot be told where a joined row begins"
    window = getattr(text, "sliding_window", None) or getattr(text, "attention_chunk_size", None)
    if window and getattr(text, "use_sliding_window", True) and window < spec.task.max_length:
        return f"the model attends to {window} tokens at once, fewer than max_length {spec.task.max_length}"
    return ""


def _virtual_tokens(spec: SweepSpec) -> int:
    """Most that a trial of the file may have, as it is known without the model."""
    space = resolve(spec.space, model_parameters=0, steps=spec.search.steps)
    found = (int(TOKENS.of(hyper)) for hyper in corners(space) if TOKENS in METHODS[hyper.method].settings)
    return max(found, default=0)


def check_vocabulary(tokenizer: Any, model: nn.Module, task: Task, prepared: Prepared) -> Iterator[str]:
    """A note if the tokenizer knows tokens for which the model has no embedding.

    Raises ModelError with both sizes if one of them is in the data, or is the padding.
    """
    rows = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    if len(tokenizer) <= rows:
        return
    sizes = f"the tokenizer has {len(tokenizer)} tokens, the model {rows} embeddings"
    highest = max(int(tokenizer.pad_token_id), _highest_id(task, prepared))
    if highest >= rows:
        token = tokenizer.convert_ids_to_tokens(highest)
        raise ModelError(
            f"{sizes}: {token!r} (id {highest}) has none; use the tokenizer that belongs to the model, or save the"
            " model with its embeddings resized to the tokenizer"
        )
    yield f"{sizes}; no text needs the others"


def check_ends(tokenizer: Any, model: nn.Module, task: Task, prepared: Prepared) -> None:
    """Raise ModelError if a classifier reads texts at their end token and not all texts have equally many of them.

    transformers refuses such a batch, in every trial: a T5's whose tokenizer adds none, or one with a text that spells
    it.
    """
    config: Any = model.config
    if config.model_type not in _READ_AT_END or task.head(prepared).kind not in _JUDGING:
        return
    end, usual = config.eos_token_id, 0
    for ids in _texts(task, prepared):
        found = list(ids).count(end)
        usual = usual or found
        if found != usual or not found:
            token, text = tokenizer.convert_ids_to_tokens(end), tokenizer.decode(ids)
            raise ModelError(
                f"'{config.model_type}' judges texts by their end token {token!r} (id {end}), which has to be in all"
                f" equally often; {shown(text)} has {found}"
                + (f", others {usual}; take it out of the text" if found > usual else "; its tokenizer should add one")
            )


def check_stacks(spec: SweepSpec, space: SearchSpace, head: Head) -> None:
    """Raise ConfigError if trials are to start from inputs of the layers of two stacks, which read different texts."""
    if head.kind == "seq2seq-lm" and starts_from_inputs(space):
        message = "eva finds directions in the inputs of one stack of layers; with an encoder and a decoder use another"
        raise ConfigError([Problem(spec.source, 0, 0, "init", message)])


def check_inputs(spec: SweepSpec, space: SearchSpace, layers: Iterable[LinearShape], rows: Iterable[Row]) -> None:
    """Raise ConfigError if trials are to start from more directions of layers' inputs than there are.

    layers: all that trials may adapt. rows: those that are trained on.
    """
    if not starts_from_inputs(space):
        return
    rank = extremes(space, "rank")[-1]
    narrow = min(layers, key=lambda layer: layer.in_features)
    there = f"the {narrow.in_features} inputs of {narrow.path}"
    if rank <= narrow.in_features:
        tokens = accumulate(map(_learnt_tokens, rows))
        there = next(("" for seen in tokens if seen > rank), "the tokens of the training rows, less one")
    if there:
        message = f"{rank} is above {there}, and init eva needs a direction of the inputs for each; lower it"
        raise ConfigError([Problem(spec.source, 0, 0, "rank", message)])


def _learnt_tokens(row: Row) -> int:
    """Tokens of a row whose inputs are read: those to learn, or all if they are not what is learnt."""
    labels = row["labels"]
    return sum(label != IGNORED for label in labels) if isinstance(labels, Sequence) else len(row["input_ids"])


def _highest_id(task: Task, prepared: Prepared) -> int:
    return max((max(ids) for ids in _texts(task, prepared)), default=0)


def _texts(task: Task, prepared: Prepared) -> Iterator[Sequence[int]]:
    """Token ids of every row, and those of its target if that is apart."""
    splits: tuple[Any, ...] = ("train", "validation", "test")
    names = ("input_ids", "labels") if task.settings.max_target_length else ("input_ids",)
    rows = (row for split in splits if prepared.rows.get(split) for row in task.rows(prepared, split))
    return (row[name] for row in rows for name in names)
