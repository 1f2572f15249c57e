"""Micro-steps of a bank: forward, losses and backward of all segments with static shapes.

Every shape has buffers of its own that stay where they are: tokens, labels, and whose rows are where. A micro-step
writes into them, computes, and reads the losses back as one vector, the only time it waits for the device. So on a GPU
the computation of a shape can be recorded once as a CUDA graph and replayed, whichever adapters take part: a slot is
changed by copying into its row of the bank. The recording is one guarded piece (`_Recorder`); without it the same lines
run eagerly, on any device. Segments may have different numbers of rows of different lengths: all rows lie below each
other, padded to the longest. Legend: K segments, B most rows of one, N rows, T tokens, C columns with targets.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from automl.packed import masks
from automl.packed.adapter import Adapter
from automl.packed.bank import Bank
from automl.packed.segments import Pack, Segmentation, Spread
from automl.packed.workload import MicroBatch
from automl.tasks import causal, classification
from automl.tasks.base import IGNORED, Batch, Task
from automl.tasks.causal import target_columns
from automl.tasks.classification import Classification
from automl.tasks.completion import Completion
from automl.tasks.instruction import Instruction

logger = logging.getLogger(__name__)

RECORD_AT = 3
"""A shape is recorded when it occurs for this time: one that comes once or twice is not worth it."""

MOST_GRAPHS = 24
"""Shapes that are recorded; further ones run eagerly, since every graph keeps memory."""

RowLosses = Callable[[nn.Module, Batch], Tensor]
"""Sum of the losses of every row, (N,) float32. A batch of token targets is given as `causal.losses_by_row` says."""

_ROW_LOSSES: dict[object, RowLosses] = {
    Classification.loss: classification.losses_by_row,
    Completion.loss: causal.losses_by_row,
    Instruction.loss: causal.losses_by_row,
}

Share = tuple[Adapter, MicroBatch, int]
"""One segment: adapter, its rows on the CPU, and the number of the first of them in the batch of its step."""


class Shape(NamedTuple):
    """What decides the sizes of all tensors of a micro-step. columns, targets: 0 for classification.

    total: rows of the batch, K * B if every segment has B. is_full: no token is padding, so no mask is given.
    is_dropping: some segment has dropout. fields: its names.
    """

    segments: int
    rows: int
    total: int
    width: int
    columns: int
    targets: int
    is_full: bool
    is_dropping: bool
    fields: tuple[str, ...]


def static_width(longest: int, limit: int) -> int:
    """Tokens to which rows are padded in a bank: a multiple of 32 up to 256, of 128 above; at most `limit`.

    Coarser than `workload.padded_length`: a run then needs a few graphs only. A longer row keeps its length.
    """
    step = 32 if longest <= 256 else 128
    return max(longest, min(-(-longest // step) * step, limit))


WORTH_A_PASS = 1024
"""Tokens of padding at which a trial waits for a pass of its own: a GPU computes about so many while a host launches
the kernels of one."""


def bank_tokens(micros: Sequence[MicroBatch], limit: int, most: int) -> int:
    """Tokens of these micro-batches in one micro-step, padding included; 0 if they are not to share one.

    They share one if their batches have the same fields (a model reads joined rows and pairs of texts by some of their
    own), if the last of them causes less padding than a pass is worth, and if all are at most `most` tokens. limit:
    tokens of the longest row the task lets through.
    """
    if len({tuple(micro.batch) for micro in micros}) > 1:
        return 0
    tokens = _padded(micros, limit)
    own = _padded(micros[:-1], limit) + _padded(micros[-1:], limit)
    return tokens if tokens <= most and tokens - own <= WORTH_A_PASS else 0


def _padded(micros: Sequence[MicroBatch], limit: int) -> int:
    rows = sum(micro.rows for micro in micros)
    return rows * max((static_width(micro.longest, limit) for micro in micros), default=0)


def row_losses(task: Task) -> RowLosses | None:
    """The losses by row that add up to the task's own loss; None if its loss is not known to be a sum over rows.

    Trials of such a task, or of a subclass with a loss of its own, are asked for their loss one by one.
    """
    return _ROW_LOSSES.get(type(task).loss)


class BankStep:
    """Runs micro-steps over the slots of a bank; its graphs and their memory live as long as it does.

    limit: tokens of the longest row the task lets through. pad_id: token that fills rows up. around: what a pass over
    rows of so many tokens runs inside of (casts, choice of attention kernels). uses_graphs: record CUDA graphs; needs a
    CUDA device.
    """

    def __init__(
        self,
        model: nn.Module,
        bank: Bank,
        segmentation: Segmentation,
        losses: RowLosses,
        *,
        device: torch.device,
        limit: int,
        pad_id: int,
        around: Callable[[int], AbstractContextManager[object]],
        uses_graphs: bool,
    ) -> None:
        self.bank = bank
        self._model = model
        self._segmentation = segmentation
        self._losses = losses
        self._device = device
        self._limit = limit
        self._fillers = {"input_ids": pad_id, "labels": IGNORED}
        self._around = around
        self._statics: dict[Shape, _Static] = {}
        self._recorder = _Recorder() if uses_graphs else None

    def run(self, shares: Sequence[Share]) -> list[tuple[float, int]]:
        """Sum and number of the loss terms of every segment, in order, the gradients added to the bank's.

        `bank_tokens` says which shares go together. A sum that is not finite concerns its own segment alone.
        """
        self.bank.update()
        shape, counts, columns = self._shape(shares)
        if shape not in self._statics:
            self._statics[shape] = _Static(shape, self.bank, self._device, self._fillers)
        static = self._statics[shape]
        static.segment(shares, columns)
        if static.graph is not None:
            static.graph.replay()
        else:
            self._compute(static)
            static.uses += 1
            if self._recorder is not None and static.uses == RECORD_AT:
                totals = static.totals.clone()
                self._recorder.record(static, lambda: self._compute(static))
                static.totals.copy_(totals)
        return list(zip(static.totals.tolist(), counts, strict=False))

    @property
    def shapes(self) -> list[Shape]:
        """Shapes that have occurred."""
        return list(self._statics)

    @property
    def graphs(self) -> int:
        """Shapes that are replayed from a recording."""
        return sum(static.graph is not None for static in self._statics.values())

    def _compute(self, static: _Static) -> None:
        """The micro-step on the buffers as they are: nothing here looks at a value or waits for the device."""
        with self._segmentation.packed(static.pack), self._around(static.shape.width):
            losses = self._losses(self._model, static.batch)  # (N,)
            totals = static.pack.totals(losses)  # (K,)
            static.totals.copy_(totals.detach())
            torch.autograd.backward(totals.sum())  # a gradient of 1 for each segment, whatever the others' values are

    def _shape(self, shares: Sequence[Share]) -> tuple[Shape, list[int], Tensor | None]:
        """The shape, the number of loss terms of every share, and for token targets the columns that have any."""
        micros = [micro for _, micro, _ in shares]
        width = max(static_width(micro.longest, self._limit) for micro in micros)
        is_full = all(micro.tokens == micro.rows * width for micro in micros)
        fields = tuple(name for name in micros[0].batch if not (is_full and name == "attention_mask"))
        columns, counts = None, [micro.rows for micro in micros]
        if micros[0].batch["labels"].dim() > 1:
            columns = torch.unique(torch.cat([target_columns(micro.batch["labels"]) for micro in micros]))
            counts = [int((micro.batch["labels"][:, 1:] != IGNORED).sum()) for micro in micros]
        segments, rows = _rounded_segments(len(shares), self.bank.slots), max(micro.rows for micro in micros)
        is_even = all(micro.rows == rows for micro in micros)
        shape = Shape(
            segments=segments,
            rows=rows,
            total=segments * rows if is_even else _rounded(sum(micro.rows for micro in micros), 8),
            width=width,
            columns=0 if columns is None else max(1, min(static_width(len(columns), width), width - 1)),
            targets=0 if columns is None else _rounded(sum(counts), 2),
            is_full=is_full,
            is_dropping=any(adapter.mask_seed is not None for adapter, _, _ in shares),
            fields=fields,
        )
        return shape, counts, columns


def _rounded_segments(segments: int, most: int) -> int:
    """The next power of two, at most as many as there are slots: few shapes, and little for nobody."""
    return min(1 << (segments - 1).bit_length(), most)


def _rounded(number: int, parts: int) -> int:
    """The next multiple of the power of two below over `parts`: more parts, less that is nobody's, but more shapes."""
    step = max(1, (1 << (number.bit_length() - 1)) // parts)
    return -(-number // step) * step


class _Static:
    """The buffers of one shape. batch: on the device, as the losses take it. uses: times it was computed eagerly."""

    def __init__(self, shape: Shape, bank: Bank, device: torch.device, fillers: Mapping[str, int]) -> None:
        self.shape = shape
        self.uses = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.totals = torch.zeros(shape.segments, device=device)
        self._spare = bank.spare
        self._fillers = fillers
        self._mirrors: list[tuple[Tensor, Tensor]] = []
        self._batch = {name: self._mirrored(*size, dtype=torch.int64, device=device) for name, size in self._sizes()}
        self._rows, rows = self._mirrored(shape.segments, dtype=torch.int64, device=device)
        self._scaling, scaling = self._mirrored(shape.segments, 1, 1, dtype=torch.float32, device=device)
        self._spread = self._mirrored_spread(device) if shape.total != shape.segments * shape.rows else None
        self._numbers, numbers = self._mirrored(4, shape.segments, dtype=torch.int32, device=device)
        self.batch = {name: on_device for name, (_, on_device) in self._batch.items()}
        if shape.is_full:
            self.batch["attention_mask"] = None  # type: ignore[assignment]  # models take None as no padding
        seeds, steps, first, limits = numbers
        self.pack = Pack(
            bank,
            rows=rows,
            rows_each=shape.rows,
            scaling=scaling,
            seeds=seeds,
            steps=steps,
            first=first,
            limits=limits.view(-1, 1, 1, 1),
            is_dropping=shape.is_dropping,
            spread=self._spread[1] if self._spread else None,
        )

    def segment(self, shares: Sequence[Share], columns: Tensor | None) -> None:
        """Write these shares into the buffers. Segments beyond them are the spare slot's, and rows beyond theirs repeat
        those of the first share.
        """
        filling = self.shape.segments - len(shares)
        self._write_segments([*((adapter, first) for adapter, _, first in shares), *[(None, 0)] * filling])
        micros = [micro for _, micro, _ in shares]
        if self._spread is not None:
            self._write_spread(self._spread[0], [micro.rows for micro in micros])
        for name in self.shape.fields:
            joined = self._joined(name, [micro.batch[name] for micro in micros])
            if name == "labels" and columns is not None:
                self._write_targets(columns, joined[: sum(micro.rows for micro in micros)])
            else:
                self._write(name, joined)
        self._send()

    def vacate(self) -> None:
        """Give every segment to the spare slot; the rows stay."""
        self._write_segments([(None, 0)] * self.shape.segments)
        self._send()

    def _write_segments(self, segments: Sequence[tuple[Adapter | None, int]]) -> None:
        rows, scaling, numbers = [], [], []
        for adapter, first in segments:
            dropout = adapter.hyper.dropout if adapter else 0.0
            rows.append(adapter.storage.row if adapter else self._spare)
            scaling.append(adapter.hyper.scaling / (1.0 - dropout) if adapter else 0.0)
            seed, step = (adapter.mask_seed or 0, adapter.step) if adapter else (0, 0)
            numbers.append((seed, step, first, masks.keep_limit(dropout)))
        self._rows.copy_(torch.tensor(rows))
        self._scaling.copy_(torch.tensor(scaling).view(-1, 1, 1))
        self._numbers.copy_(torch.tensor(numbers, dtype=torch.int32).t())

    def _write_spread(self, spread: Spread, counts: Sequence[int]) -> None:
        """Where the rows of segments with so many of them each are."""
        each = self.shape.rows
        rows: list[int] = []
        places: list[int] = []
        for segment, count in enumerate(counts):
            start = len(places)
            places += range(segment * each, segment * each + count)
            rows += [*range(start, len(places)), *[start] * (each - count)]
        rows += [0] * (self.shape.segments * each - len(rows))
        places += [0] * (self.shape.total - len(places))
        taken = torch.tensor([*counts, *[0] * (self.shape.segments - len(counts))]).view(-1, 1)
        spread.rows.copy_(torch.tensor(rows))
        spread.places.copy_(torch.tensor(places))
        spread.is_taken.copy_(torch.arange(each) < taken)

    def _joined(self, name: str, tensors: Sequence[Tensor]) -> Tensor:
        """All segments' rows below each other, filled up to the width and to the number of rows."""
        if tensors[0].dim() > 1:
            filler, width = self._fillers.get(name, 0), self.shape.width
            tensors = [functional.pad(each, (0, width - each.shape[1]), value=filler) for each in tensors]
        joined = torch.cat(list(tensors))
        missing = self.shape.total - len(joined)
        return torch.cat([joined, *_repeated(tensors[0], missing)]) if missing else joined

    def _write_targets(self, columns: Tensor, labels: Tensor) -> None:
        """Where the targets of these rows are, and what they are, as the losses by row take them."""
        at_columns = functional.pad(labels[:, columns + 1], (0, self.shape.columns - len(columns)), value=IGNORED)
        targets = at_columns.flatten()
        chosen = (targets != IGNORED).nonzero().squeeze(1)
        missing = self.shape.targets - len(chosen)
        self._write("columns", functional.pad(columns, (0, self.shape.columns - len(columns))))
        self._write("chosen", functional.pad(chosen, (0, missing)))
        self._write("labels", functional.pad(targets[chosen], (0, missing), value=IGNORED))

    def _write(self, name: str, values: Tensor) -> None:
        host, _ = self._batch[name]
        host.copy_(values)

    def _send(self) -> None:
        # The host's side is free to be written: the losses of the last micro-step of this shape have been read.
        for host, on_device in self._mirrors:
            if host is not on_device:
                on_device.copy_(host, non_blocking=True)

    def _sizes(self) -> list[tuple[str, tuple[int, ...]]]:
        shape, total = self.shape, self.shape.total
        sizes = [(name, (total, shape.width)) for name in shape.fields if name != "labels"]
        if shape.columns:
            return [*sizes, ("labels", (shape.targets,)), ("chosen", (shape.targets,)), ("columns", (shape.columns,))]
        return [*sizes, ("labels", (total,))]

    def _mirrored_spread(self, device: torch.device) -> tuple[Spread, Spread]:
        """Buffers as `_mirrored` gives them: on the host, and on the device."""
        shape = self.shape
        sizes = ((shape.segments * shape.rows,), torch.int64), ((shape.total,), torch.int64)
        pairs = [self._mirrored(*size, dtype=dtype, device=device) for size, dtype in sizes]
        pairs.append(self._mirrored(shape.segments, shape.rows, dtype=torch.float32, device=device))
        return Spread(*(host for host, _ in pairs)), Spread(*(own for _, own in pairs))

    def _mirrored(self, *size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """A buffer on the host, pinned for a GPU, and the one on the device; on a CPU they are the same."""
        is_remote = device.type != "cpu"
        host = torch.zeros(size, dtype=dtype, pin_memory=device.type == "cuda")
        self._mirrors.append((host, torch.zeros(size, dtype=dtype, device=device) if is_remote else host))
        return self._mirrors[-1]


def _repeated(tensor: Tensor, rows: int) -> list[Tensor]:
    """Its rows over and over, so many altogether."""
    whole, rest = divmod(rows, len(tensor))
    return [*[tensor] * whole, tensor[:rest]]


class _Recorder:
    """Records CUDA graphs until it fails once or has enough of them. All graphs share one pool of memory."""

    def __init__(self) -> None:
        self._left = MOST_GRAPHS
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, static: _Static, compute: Callable[[], None]) -> None:
        """Record this computation; if that is not possible, say why and leave everything as it is.

        Nobody's gradient changes: the warm-up computes with every segment given to the spare slot, and recording
        computes nothing.
        """
        if not self._left:
            return
        self._left -= 1
        static.vacate()
        try:
            _warm_up(compute)
            graph = torch.cuda.CUDAGraph()
            # Other threads may copy slot files off the device meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                compute()
            static.graph = graph
        except RuntimeError as error:
            self._left = 0
            torch.cuda.synchronize()
            logger.warning(
                "CUDA graphs are not used, micro-steps run eagerly: %s", str(error).split("\n", maxsplit=1)[0]
            )


def _warm_up(compute: Callable[[], None]) -> None:
    """Run it on a stream of its own, as recording asks for (PyTorch's notes on CUDA, whole-network capture)."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            compute()
    torch.cuda.current_stream().wait_stream(stream)
