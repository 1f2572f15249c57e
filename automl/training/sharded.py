"""One trial over several processes, each with a part of the backbone: for models larger than one device (FSDP).

The processes form torch's default process group (Ray Train makes one, see `execution.ray_group`), and each has a host.
All hosts are told the same, in the same order. Each process holds its share of every weight, of the adapter and of its
moments, trains on its share of the rows of every batch, and evaluates on all rows, so all of them come to the same
measurements: those of `training.solo`, but for the rounding of sums and, with dropout, for the masks, which every
process draws for its own rows. Only the process of rank 0 writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from automl.errors import DataError, PeerLost
from automl.importance.sensitivity import Factors
from automl.methods.seeding import SeededDropout, dropout_state, stream
from automl.tasks.base import Row
from automl.training import optim
from automl.training.adapter import AdapterMeta
from automl.training.checkpoint import SlotFolder
from automl.training.export import export_adapter, travelling
from automl.training.host import Resident, SoloHost
from automl.training.runtime import HostSettings, Runtime, choose_device, load_model, load_runtime
from automl.training.solo import SoloTrial
from automl.training.state import SlotRecord, TrainState
from automl.trial import Measurement, TrialSpec

T = TypeVar("T")

_SIGNS_OF_A_LOST_PEER = ("connection closed by peer", "connection reset by peer", "connection refused", "broken pipe")


def build_sharded_host(settings: HostSettings) -> ShardedHost:
    """Load backbone and data and return this process's host; called in every process of the group."""
    device = choose_device(settings.device)
    return ShardedHost(settings, replace(load_runtime(replace(settings, device="cpu")), device=device))


class ShardedHost(SoloHost):
    """This process's part of a host for one trial at a time; follows `automl.execution.base.Host`.

    bench: with the backbone on the CPU, whole. Every process reads it anew for every trial but the first, and puts it
    on the device block by block, where only the share stays.
    """

    def __init__(self, settings: HostSettings, runtime: Runtime) -> None:
        super().__init__(settings, runtime)
        self.mesh = init_device_mesh(runtime.device.type, (distributed.get_world_size(),))
        self._is_whole = True

    @property
    def is_writer(self) -> bool:
        """Whether files are this process's business."""
        return distributed.get_rank() == 0

    def close(self, trial: int) -> None:
        """Free the trial's memory; the slot file is deleted by the writer."""
        if self.is_writer:
            super().close(trial)
        else:
            self.park(trial)

    def _trial(self, spec: TrialSpec, state: TrainState | None) -> SoloTrial:
        return ShardedTrial(spec, self._whole(), state, mesh=self.mesh)

    def _untrained(self) -> nn.Module:
        runtime = self._whole()
        shard(runtime.model, self.mesh)
        return runtime.model

    def _whole(self) -> Runtime:
        """The bench with a backbone that nothing has been shared out of."""
        if not self._is_whole:
            self.runtime = replace(self.runtime, model=load_model(self.settings))
        self._is_whole = False
        return self.runtime

    def _stretch(self, resident: Resident) -> Measurement:
        with peers_named():
            return super()._stretch(resident)

    def _claim(self, slot: SlotFolder) -> None:
        """The others read when the writer has claimed."""
        if self.is_writer:
            super()._claim(slot)
        with peers_named():
            distributed.barrier()

    def _write(self, slot: SlotFolder, record: SlotRecord) -> None:
        if self.is_writer:
            super()._write(slot, record)

    def _export(self, trial: SoloTrial, folder: Path, meta: AdapterMeta) -> None:
        tensors = {name: whole(tensor) for name, tensor in travelling(trial.model).items()}
        if self.is_writer:
            export_adapter(trial.model, folder, meta, tokenizer=self.runtime.tokenizer, tensors=tensors)


class ShardedTrial(SoloTrial):
    """This process's part of the trial. Everything here is done by all processes of the group, in the same order.

    bench: with a whole backbone on the CPU, which it shares out and does not give back. Works in fp32 and with methods
    whose parameters need no step of their own (LoRA). A process that is short of memory cannot make the batch of all
    smaller: the trial fails.
    """

    def __init__(self, spec: TrialSpec, runtime: Runtime, state: TrainState | None = None, *, mesh: DeviceMesh) -> None:
        super().__init__(spec, runtime, state)
        self._mesh = mesh

    def measure(self) -> Measurement:
        """See `SoloTrial.measure`."""
        measurement = super().measure()
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # an evaluation leaves the outermost one whole, so that not all would gather the same
        return measurement

    def detach(self) -> None:
        """Let go of the shares; they are no backbone any more."""
        self._attached = None

    def _attach_adapter(self) -> Any:
        model = super()._attach_adapter()
        shard(model, self._mesh)
        masks = stream(self.spec.seed, f"dropout of process {distributed.get_rank()}", self.runtime.device)
        for module in model.modules():
            if isinstance(module, SeededDropout):
                module.generator = masks
        return model

    def _put_back(
        self, start: TrainState, model: Any, parameters: optim.Parameters, optimizer: torch.optim.AdamW
    ) -> None:
        if start.dropout is not None:
            own = start.dropout.chunk(distributed.get_world_size())[distributed.get_rank()]
            start = replace(start, dropout=own.clone())
        shares = replace(
            start, params=shared_out(start.params, parameters), moments=shared_out(start.moments, parameters)
        )
        super()._put_back(shares, model, parameters, optimizer)

    def _copied(self, tensor: Tensor) -> Tensor:
        return optim.copied(whole(tensor))

    def _dropout(self, model: Any) -> Tensor | None:
        """The states of all processes, one after the other."""
        own = dropout_state(model)
        if own is None:
            return None
        own = own.to(self.runtime.device)
        states = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
        distributed.all_gather(states, own)
        return torch.cat(states).cpu()

    def _factors(self, model: Any) -> list[Factors]:
        return [
            Factors(whole(a), whole(b), None if gradient is None else whole(gradient), scaling)
            for a, b, gradient, scaling in super()._factors(model)
        ]

    def _within_memory(self, size: int, work: Callable[[int], T], *, what: str) -> tuple[T, int]:
        return work(size), size

    def _accumulate(self, rows: Sequence[Row], at_once: int, masks: Tensor | None) -> float:
        """Gradients of the mean loss over all rows of the batch; returns that loss.

        A process without a row goes along with one of no weight. FSDP averages gradients over the processes, so each
        loss is scaled by their number.
        """
        rank, world = distributed.get_rank(), distributed.get_world_size()
        mine = rows[rank::world]
        batch = self.runtime.batch(mine or rows[:1])
        self._seat.optimizer.zero_grad(set_to_none=True)
        parts = self.runtime.task.loss(self._seat.model, batch)
        own = [float(parts.total.detach()), parts.count, int(batch["attention_mask"].sum())] if mine else [0.0, 0, 0]
        sums = torch.tensor(own, dtype=torch.float64, device=self.runtime.device)
        distributed.all_reduce(sums)
        total, count, tokens = sums.tolist()
        if count == 0:
            raise DataError(f"the batch of step {self.step + 1} has no target to learn from: every token is masked")
        torch.autograd.backward(parts.total * (world * bool(mine) / count))
        self.tokens += int(tokens)
        return float(total / count)


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Share the model's parameters out over the mesh: each block of a list of layers by itself, then what is left."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    inner = {id(module) for each in lists for block in each for module in block.modules() if module is not block}
    for block in [block for each in lists if id(each) not in inner for block in each]:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that is shared out; every process must ask for it. Others are returned as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shared_out(tensors: Mapping[str, Tensor], parameters: optim.Parameters) -> dict[str, Tensor]:
    """Whole tensors as the shares of the parameters they belong to: those named like them, or `<moment>/<name>`.

    What belongs to none, or has no shares (AdamW's steps), stays as it is. Nothing is sent: each process has all.
    """
    return {key: _like(tensor, parameters.get(key.split("/")[-1])) for key, tensor in tensors.items()}


def _like(tensor: Tensor, parameter: Tensor | None) -> Tensor:
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    return distribute_tensor(
        tensor.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )


@contextmanager
def peers_named() -> Iterator[None]:
    """Turn what torch says of a connection that broke into PeerLost: it is nothing that the trial has done."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if isinstance(error, distributed.DistError) or any(sign in text for sign in _SIGNS_OF_A_LOST_PEER):
            line = str(error).strip().splitlines()[0]
            raise PeerLost(f"a process that trains the trial with this one is gone: {line[:200]}") from error
        raise
