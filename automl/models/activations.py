"""What a training step keeps for its backward pass, counted on shapes: one block of each kind is run without numbers.

The network is copied without its weights and runs on fake tensors of torch: every operation says what it keeps, and
nothing is computed. Blocks that are alike are run once. An architecture whose path depends on the numbers (most
mixtures of experts) cannot be run so; then a linear layer is charged its input and its output for each token.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer

from automl.lora import Hyperparameters, LinearShape
from automl.methods.registry import METHODS
from automl.methods.whole import InPlace
from automl.models.inventory import head_modules, linear_layers
from automl.models.quantised import is_quantised

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 128
"""Rows of which there are logits at once where the output layer of a pack computes the loss itself."""

COUNTED = 64
"""Tokens of the rows that are run unless the caller says otherwise."""

_ROWS = 2
_AMPLE = 4
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Block(NamedTuple):
    """Bytes for one row. times: blocks that are alike. kept: by one of them. given: its input from the block before."""

    times: int
    kept: int
    given: int


class Activations(NamedTuple):
    """Bytes that one row of so many tokens keeps for the backward pass.

    rest: outside of the blocks. head: from the output over the vocabulary on. widest: the largest tensor of a block.
    is_counted: False if the network could not be run without numbers. is_bare: the logits are known to be what the
    output over the vocabulary, which is not trained, says, unchanged, at the places that it is asked for.
    """

    tokens: int
    blocks: tuple[Block, ...]
    rest: int
    head: int
    widest: int
    is_counted: bool
    is_bare: bool = False

    @property
    def depth(self) -> int:
        """Number of blocks, at least 1."""
        return max(1, sum(block.times for block in self.blocks))

    @property
    def body(self) -> int:
        """All that is kept before the output over the vocabulary."""
        return self.rest + sum(block.times * block.kept for block in self.blocks)

    @property
    def recomputed(self) -> int:
        """With gradient checkpointing: the inputs of all blocks, and one block as it is run again."""
        if not self.blocks:
            return self.body
        given = sum(block.times * block.given for block in self.blocks)
        return self.rest + given + max(block.kept for block in self.blocks)


def activations(
    model: nn.Module,
    layers: Sequence[LinearShape],
    hyper: Hyperparameters,
    *,
    tokens: int = COUNTED,
    dtype: str = "fp32",
    attention: str = "sdpa",
    is_shared: bool = True,
    is_joined: bool = False,
) -> Activations:
    """What the backbone keeps if the method adapts these layers; what the method keeps besides is its footprint.

    attention: `eager` keeps the scores; `sdpa` and `flash` do not. is_shared: layers that read the same keep it once;
    otherwise what adapted layers read is left out. is_joined: rows are blocks, with a mask (T, T) of their own.
    """
    known = _known.setdefault(model, {})
    names = frozenset(_read(model, layers, hyper) if is_shared else ())
    begins = _begins(model, layers, hyper) if is_shared else ""
    key = _Key(names, begins, tokens, dtype, attention, is_joined)
    if key not in known:
        known[key] = _counted(model, key) or _by_width(model, dtype, tokens)
    return known[key]


class _Key(NamedTuple):
    """What the count follows from.

    read: parameters whose gradients would need what is read. begins: module from whose output on gradients are needed
    anyway, empty: from the embeddings on; None: from the first of `read`.
    """

    read: frozenset[str]
    begins: str | None
    tokens: int
    dtype: str
    attention: str
    is_joined: bool


_known: WeakKeyDictionary[nn.Module, dict[_Key, Activations]] = WeakKeyDictionary()


def _read(model: nn.Module, layers: Sequence[LinearShape], hyper: Hyperparameters) -> Iterator[str]:
    """Parameters of the backbone for whose gradients autograd would keep what the method reads."""
    method = METHODS[hyper.method]
    if isinstance(method, InPlace):
        yield from method.chosen(model, hyper)
    elif "rank" in method.takes:  # A reads the layer's input; of others the footprint has it
        yield from (f"{layer.path}.weight" for layer in layers)


def _begins(model: nn.Module, layers: Sequence[LinearShape], hyper: Hyperparameters) -> str | None:
    """Down to where gradients go although nothing of the backbone is read."""
    method = METHODS[hyper.method]
    if isinstance(method, InPlace) or "rank" in method.takes:
        return None
    return method.footprint(model, layers, hyper).begins


def bound(model: nn.Module, dtype: str) -> Activations:
    """More than any architecture keeps, known at once: four times what its linear layers read and write."""
    found = _by_width(model, dtype, COUNTED)
    return found._replace(blocks=tuple(block._replace(kept=_AMPLE * block.kept) for block in found.blocks))


def _by_width(model: nn.Module, dtype: str, tokens: int) -> Activations:
    width = tokens * _TYPES[dtype].itemsize
    output = _output(model)[0]
    layers = [layer for layer in linear_layers(model) if layer.path != output]
    kept = width * sum(layer.in_features + layer.out_features for layer in layers)
    hidden = width * int(model.config.get_text_config().hidden_size)  # type: ignore[operator, union-attr]
    count = max(1, len(blocks_of(model)))
    block = Block(count, kept // count, hidden)
    head = 4 * tokens * vocabulary(model)
    return Activations(tokens, (block,), 0, head, max((width * each.out_features for each in layers), default=0), False)


def vocabulary(model: nn.Module) -> int:
    """Outputs of the lm_head; 0 for a classifier, whose logits are one row per text."""
    output = _output(model)[1]
    return output.out_features if isinstance(output, nn.Linear) else 0


def _output(model: Any) -> tuple[str, nn.Module | None]:
    """Path and module of the output over the vocabulary, empty and None if there is none."""
    getter = getattr(model, "get_output_embeddings", None)
    output = getter() if getter is not None else None
    return next(((path, module) for path, module in model.named_modules() if module is output), ("", None))


# Running it


class _Kind(NamedTuple):
    """Blocks that are alike. path: of the first one, which is run."""

    path: str
    times: int


def _counted(model: nn.Module, key: _Key) -> Activations | None:
    """None if this architecture cannot be run without numbers."""
    kinds = _kinds(model, key)
    try:
        return _run(_shapes(model, kinds, key), kinds, key)
    except Exception:  # noqa: BLE001  # whatever a model's own code raises when there are no numbers
        logger.info("%s cannot be run on shapes; what it keeps is told from its linear layers", type(model).__name__)
        return None


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """The repeated blocks, as transformers marks them, by path; none if this architecture has no such mark."""
    lists = {f"{path}." for path, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, GradientCheckpointingLayer) and path[: path.rfind(".") + 1] in lists
    }


def _kinds(model: nn.Module, key: _Key) -> list[_Kind]:
    """Blocks are alike if they have the same shapes, the same is read in them, and gradients reach them or do not."""
    found: dict[object, _Kind] = {}
    blocks = blocks_of(model)
    inside = tuple(f"{path}." for path in blocks)
    is_reached = key.begins == "" or any(not name.startswith(inside) for name in key.read)
    for path, block in blocks.items():
        shapes = tuple((name, parameter.shape) for name, parameter in block.named_parameters())
        reads = tuple(name for name, _ in shapes if f"{path}.{name}" in key.read)
        is_begin = (key.begins or "").startswith(f"{path}.")
        alike = (path.rpartition(".")[0], type(block), shapes, reads, is_begin, is_reached)
        kind = found.get(alike, _Kind(path, 0))
        found[alike] = kind._replace(times=kind.times + 1)
        is_reached = is_reached or is_begin or bool(reads)
    return list(found.values())


class _Shapes(NamedTuple):
    """A copy of the network without numbers. blocks: those that are left of it, in the order of the kinds.

    begins: modules from whose output on gradients are needed anyway.
    """

    mode: FakeTensorMode
    model: nn.Module
    blocks: list[nn.Module]
    begins: list[nn.Module]
    own: set[int]


def _shapes(model: nn.Module, kinds: Sequence[_Kind], key: _Key) -> _Shapes:
    """One block of each kind, and all that is around them, on a CPU that is not asked to compute."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    dtype, read = _TYPES[key.dtype], key.read
    heads = tuple(f"{name}." for name in head_modules(model))

    def fake(tensor: Tensor, *, is_converted: bool) -> Tensor:
        kind = dtype if is_converted and tensor.is_floating_point() else tensor.dtype
        return FakeTensor(mode, torch.empty(tensor.shape, dtype=kind, device="meta"), torch.device("cpu"))

    memo: dict[int, Any] = {}
    for name, parameter in model.named_parameters():
        is_read = parameter.is_floating_point() and (name in read or name.startswith(heads))
        memo[id(parameter)] = nn.Parameter(fake(parameter, is_converted=True), requires_grad=is_read)
    memo |= {id(buffer): fake(buffer, is_converted=False) for buffer in model.buffers()}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and is_quantised(module):
            memo[id(module)] = _dense(module, fake, is_read=f"{path}.weight" in read)
    kept = {kind.path for kind in kinds}
    memo |= {id(block): None for path, block in blocks_of(model).items() if path not in kept}
    copied: Any = copy.deepcopy(model, memo)
    for module in copied.modules():
        if isinstance(module, nn.ModuleList) and None in module._modules.values():
            module._modules = {str(n): each for n, each in enumerate(filter(None, module._modules.values()))}
    if key.attention == "eager":
        copied.set_attn_implementation("eager")
    text = copied.config.get_text_config()
    if getattr(text, "pad_token_id", None) is None:
        text.pad_token_id = 0  # decoders without one classify a single row at a time
    own = {each.untyped_storage()._cdata for each in (*copied.parameters(), *copied.buffers())}
    begins = [memo[id(each)] for each in _where_it_begins(model, key)]
    return _Shapes(mode, copied.train(), [memo[id(model.get_submodule(kind.path))] for kind in kinds], begins, own)


def _where_it_begins(model: nn.Module, key: _Key) -> list[nn.Module]:
    """Modules from whose output on gradients are needed: stacks of T5 have an embedding each, of the same weights."""
    if key.begins is None:
        return []
    if key.begins:
        return [model.get_submodule(key.begins)]
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    same = [each for each in model.modules() if getattr(each, "weight", None) is embedding.weight]
    return [each for each in same if type(each) is type(embedding)]


def _dense(module: nn.Linear, fake: Any, *, is_read: bool) -> nn.Linear:
    """What stands for a layer in few bits: what it keeps is what a dense one would keep."""
    dense = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
    dense.weight = nn.Parameter(fake(dense.weight.detach(), is_converted=True), requires_grad=is_read)
    return dense


def _run(shapes: _Shapes, kinds: Sequence[_Kind], key: _Key) -> Activations:
    """A forward pass over _ROWS rows with the loss, whose kept tensors are put down to where they were kept."""
    mode, model, blocks, begins, own = shapes
    network: Any = model
    limit = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    tokens = min(key.tokens, limit or key.tokens)
    ledger = _Ledger(own)
    for number, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda _, given, number=number: ledger.enter(number, given))
        block.register_forward_hook(lambda *_: ledger.leave())
    path, output = _output(model)
    said: list[object] = []
    if output is not None:
        output.register_forward_pre_hook(lambda *_: ledger.enter(_HEAD))
        output.register_forward_hook(lambda _, __, found: said.append(found))
    for module in begins:
        module.register_forward_hook(lambda _, __, found: found.requires_grad_())
    half = torch.autocast("cpu", dtype=torch.bfloat16, enabled=key.dtype == "bf16")
    with mode, half, saved_tensors_hooks(ledger.note, lambda tensor: tensor):
        logits = _logits(network, _batch(tokens, is_joined=key.is_joined))
        loss = _loss(logits)
    assert loss.requires_grad, "nothing is trained"
    found = tuple(
        Block(kind.times, ledger.sizes.get(number, 0) // _ROWS, ledger.given.get(number, 0) // _ROWS)
        for number, kind in enumerate(kinds)
    )
    rest, head = ledger.sizes.get(_AROUND, 0) // _ROWS, ledger.sizes.get(_HEAD, 0) // _ROWS
    is_asked = "logits_to_keep" in inspect.signature(network.forward).parameters
    is_trained = any(path.startswith(f"{name}.") for name in head_modules(model))
    is_bare = is_asked and not is_trained and any(each is logits and not logits._version for each in said)
    return Activations(tokens, found, rest, head, ledger.widest // _ROWS, True, is_bare)


def _batch(tokens: int, *, is_joined: bool) -> dict[str, Tensor]:
    """_ROWS rows; of blocks with what keeps their rows apart, as `automl.tasks.joining` has it."""
    ids = torch.zeros(_ROWS, tokens, dtype=torch.long)
    if not is_joined:
        return {"input_ids": ids}
    allowed = torch.ones(_ROWS, 1, tokens, tokens, dtype=torch.bool)
    return {"input_ids": ids, "position_ids": torch.zeros_like(ids), "attention_mask": allowed}


def _logits(network: Any, batch: dict[str, Tensor]) -> Tensor:
    """What the loss is made of. A classifier with encoder and decoder looks for the texts' ends: it is run in parts."""
    head = getattr(network, "classification_head", None)
    if head is None:
        return network(**batch).logits  # type: ignore[no-any-return]
    hidden = network.base_model(**batch, decoder_input_ids=batch["input_ids"]).last_hidden_state
    return head(hidden[:, -1])  # type: ignore[no-any-return]


def _loss(logits: Tensor) -> Tensor:
    """A cross entropy over the last dimension, as the tasks compute it."""
    rows = logits.float().flatten(0, -2)
    return functional.cross_entropy(rows, torch.zeros(rows.shape[0], dtype=torch.long), reduction="none").sum()


_AROUND, _HEAD = -1, -2


class _Ledger:
    """Bytes that are kept, by the number of the block, or around the blocks, or from the output on."""

    def __init__(self, own: set[int]) -> None:
        self.sizes: dict[int, int] = {}
        self.given: dict[int, int] = {}
        self.widest = 0
        self._seen = set(own)
        self._alive: list[object] = []  # a storage that is gone would leave its address to another one
        self._where = _AROUND

    def enter(self, where: int, given: tuple[Any, ...] = ()) -> None:
        self._where = where
        if given and isinstance(given[0], Tensor):
            self.given[where] = given[0].nbytes

    def leave(self) -> None:
        self._where = _AROUND

    def note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._alive.append(storage)
            self.sizes[self._where] = self.sizes.get(self._where, 0) + storage.nbytes()
            if self._where >= 0:
                self.widest = max(self.widest, storage.nbytes())
        return tensor
