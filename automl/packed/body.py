"""One forward pass of the backbone for many losses: the calls of several batches are recorded, run as one, replayed.

A model of transformers is a body (its `base_model_prefix`) and what is on top of it: pooling, a head, the lm_head. The
task calls the whole model once per batch; here the body's part of these calls is done together. So nothing needs to be
known about an architecture, and the logits of one batch at a time are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from automl.errors import ModelError


class _Recorded(Exception):
    pass


class Call:
    """Arguments of one call of the body. run: the forward that was called. rows: that it was called with."""

    def __init__(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.run = run
        self.args = args
        self.kwargs = kwargs | {name: False for name in ("use_cache",) if name in kwargs}
        self.rows = _rows_of((*args, *kwargs.values()))

    def is_like(self, other: Call | None) -> bool:
        """Whether the body is called in the same way, so that both can be run as one."""
        return other is not None and self._shapes == other._shapes

    @property
    def _shapes(self) -> tuple[list[int], dict[str, int]]:
        """Numbers of dimensions of all arguments: a mask of joined rows has more than one of padding."""
        return list(map(_dimensions, self.args)), {name: _dimensions(value) for name, value in self.kwargs.items()}


def _rows_of(values: Iterable[Any]) -> int:
    """Rows of the first of them that has a row for each of the batch."""
    return next(len(value) for value in values if isinstance(value, Tensor) and value.dim() > 1)


def _dimensions(value: Any) -> int:
    """Those of a tensor, -1 of anything else."""
    return value.dim() if isinstance(value, Tensor) else -1


def find_body(model: nn.Module) -> nn.Module | None:
    """The part of the model below pooling and heads; None if it does not say which that is."""
    prefix = getattr(model, "base_model_prefix", "")
    body = getattr(model, prefix, None) if prefix else None
    if isinstance(body, nn.Module):
        return body
    return model if has_bare_stacks(model) else None


def has_bare_stacks(model: Any) -> bool:
    """Whether the model itself calls its encoder, and then its decoder, as a T5 that writes does."""
    is_both = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    stacks = (getattr(model, name, None) for name in ("encoder", "decoder"))
    has_body = hasattr(model, getattr(model, "base_model_prefix", ""))
    return is_both and not has_body and all(isinstance(stack, nn.Module) for stack in stacks)


def _entries(body: nn.Module) -> list[nn.Module]:
    """Where a model may enter its body: OPT's language model calls the decoder inside, past the body's own forward."""
    if has_bare_stacks(body):
        return [body.encoder, body.decoder]  # type: ignore[list-item]  # a T5's: modules both
    decoder = None if getattr(body.config, "is_encoder_decoder", False) else getattr(body, "decoder", None)
    return [body, decoder] if isinstance(decoder, nn.Module) else [body]


class Body:
    """The body of a model, with its `forward` under our control. `close` gives it back as it was.

    It keeps no keys and values for later unless it is asked to, as generating text does: in training nobody reads them,
    and a layer that is computed twice would add its own twice.
    """

    def __init__(self, model: nn.Module) -> None:
        body = find_body(model)
        if body is None:
            prefix = getattr(model, "base_model_prefix", "")
            raise ModelError(f"{type(model).__name__} has no body under the name '{prefix}'; it cannot be packed")
        self.module = body
        self._handler: Callable[..., Any] | None = None
        self._entries = _entries(body)
        self._reads: Callable[..., Any] | None = self._entries[0].forward if has_bare_stacks(body) else None
        self._cached: bool | None = getattr(body.config, "use_cache", None)
        if self._cached is not None:
            body.config.use_cache = False  # type: ignore[union-attr]
        for entry in self._entries:
            entry.forward = self._watched(entry.forward)

    def close(self) -> None:
        """Undo what the constructor did."""
        for entry in self._entries:
            del entry.forward
        if self._cached is not None:
            self.module.config.use_cache = self._cached  # type: ignore[union-attr]

    def record(self, work: Callable[[], Any]) -> Call:
        """The call of the body that `work` makes first; `work` is left there. Raises what `work` raises before."""
        calls: list[Call] = []
        reading = _Reading()

        def keep(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if run == self._reads:
                return reading.begin(run, args, kwargs)
            calls.append(reading.call(run, args, kwargs))
            raise _Recorded

        with self._handled_by(keep):
            try:
                work()
            except _Recorded:
                return calls[0]
        raise ModelError("the task did not call the model's body; it cannot be packed")

    def run(self, calls: Sequence[Call]) -> Outputs:
        """All calls as one, rows one below the other."""
        args = [_joined(list(values), calls) for values in zip(*(call.args for call in calls), strict=True)]
        kwargs = {name: _joined([call.kwargs[name] for call in calls], calls) for name in calls[0].kwargs}
        return Outputs(calls[0].run(*args, **kwargs), calls)

    @contextmanager
    def replaying(self, output: Any) -> Iterator[None]:
        """Inside the block the body answers with this output whatever it is asked."""
        with self._handled_by(lambda run, *args, **kwargs: output):
            yield

    def _watched(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """`run`, unless somebody handles the calls of the body."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            return run(*args, **kwargs) if self._handler is None else self._handler(run, *args, **kwargs)

        return forward

    @contextmanager
    def _handled_by(self, handler: Callable[..., Any]) -> Iterator[None]:
        before, self._handler = self._handler, handler
        try:
            yield
        finally:
            self._handler = before


class _Reading:
    """What an encoder is called with, until its decoder is: the two become one call, whose arguments have other names.

    Without an encoder of its own a call stays what it is.
    """

    def __init__(self) -> None:
        self._run: Callable[..., Any] | None = None
        self._given: dict[str, Any] = {}
        self._read = torch.empty(0)

    def begin(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The encoder's call; what it returns stands for what it will read."""
        if args:
            raise ModelError("the encoder is called with arguments without names; it cannot be packed")
        self._run, self._given = run, kwargs
        return BaseModelOutput(last_hidden_state=self._read)

    def call(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """The call of the decoder, or of a body that is one module."""
        if self._run is None:
            return Call(run, args, kwargs)
        (place,) = (name for name, value in kwargs.items() if value is self._read)
        own = {name: value for name, value in kwargs.items() if name != place}
        given = {_IN + name: value for name, value in self._given.items()}
        return Call(partial(_both, self._run, run, place), args, given | own)


_IN = "encoder."
"""What names of an encoder's arguments begin with in a call of both stacks."""


def _both(read: Callable[..., Any], write: Callable[..., Any], place: str, *args: Any, **kwargs: Any) -> Any:
    """Encoder, and then decoder, which takes what the first has read as its argument `place`."""
    given = {name.removeprefix(_IN): value for name, value in kwargs.items() if name.startswith(_IN)}
    own = {name: value for name, value in kwargs.items() if not name.startswith(_IN)}
    return write(*args, **own, **{place: read(**given).last_hidden_state})


class Outputs:
    """What the body returned for all rows, taken apart by call, with the gradients that come back for each part."""

    def __init__(self, output: Any, calls: Sequence[Call]) -> None:
        if not isinstance(output, ModelOutput):
            raise ModelError(f"the model's body returns {type(output).__name__} where a ModelOutput is needed")
        total = sum(call.rows for call in calls)
        self._type = type(output)
        self._tensors = {
            name: value
            for name, value in output.items()
            if isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == total
        }
        self._rows = [call.rows for call in calls]
        pieces = {name: torch.split(tensor.detach(), self._rows) for name, tensor in self._tensors.items()}
        self._parts = [{name: pieces[name][index] for name in pieces} for index in range(len(calls))]

    def part(self, index: int) -> Any:
        """The output for one call. Its tensors are leaves: a backward pass ends in them, and `backward` goes on."""
        for tensor in self._parts[index].values():
            tensor.requires_grad_(torch.is_grad_enabled())
        return self._type(**self._parts[index])

    def forget(self, index: int) -> None:
        """No gradient goes back for this call, whatever has come in."""
        for tensor in self._parts[index].values():
            tensor.grad = None

    def backward(self) -> None:
        """One backward pass of the body with the gradients that have come in for the parts."""
        roots, grads = [], []
        for name, tensor in self._tensors.items():
            found = [part[name].grad for part in self._parts]
            if tensor.requires_grad and any(grad is not None for grad in found):
                roots.append(tensor)
                grads.append(_stacked(found, [part[name] for part in self._parts]))
        if roots:
            torch.autograd.backward(roots, grads)


class View:
    """A model as one adapter sees it: its own heads, everything else shared. What a task takes for the model."""

    def __init__(self, model: nn.Module, head: Mapping[str, Tensor]) -> None:
        self._model = model
        self._head = dict(head)

    def __call__(self, **inputs: Any) -> Any:
        """The model's output with this adapter's heads."""
        return functional_call(self._model, self._head, (), inputs) if self._head else self._model(**inputs)

    def get_base_model(self) -> nn.Module:
        """The model itself, as PEFT's wrapper has it."""
        return self._model

    def parameters(self) -> Iterator[nn.Parameter]:
        """The shared model's parameters; the device can be read off them."""
        return self._model.parameters()

    def generate(self, **inputs: Any) -> Tensor:
        """The shared model's generation."""
        found: Tensor = self._model.generate(**inputs)  # type: ignore[operator]  # of every causal language model
        return found


def _stacked(grads: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    return torch.cat([torch.zeros_like(part) if grad is None else grad for grad, part in zip(grads, like, strict=True)])


def _joined(values: list[Any], calls: Sequence[Call]) -> Any:
    """One argument for all calls: tensors with a row for each row of the batch below each other, others as they are.

    Raises ModelError if calls differ in something that cannot be joined.
    """
    first = values[0]
    if len(values) == 1:
        return first
    if isinstance(first, Tensor) and first.dim() > 1:
        return torch.cat(values)
    same = torch.equal if isinstance(first, Tensor) else lambda one, other: one is other or one == other
    if not all(same(first, value) for value in values[1:]):
        raise ModelError("the batches of a pack call the model differently; they cannot be run as one")
    return first
