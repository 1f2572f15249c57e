"""One trial over several processes, each with a part of the backbone: for models larger than one device (FSDP).

The processes form torch's default process group (Ray Train makes one, see `execution.ray_group`), and each has a host.
All hosts are told the same, in the same order. Each process holds its share of every weight, of the adapter and of its
moments, trains on its share of the rows of every batch, and evaluates on all rows, so all of them come to the same
measurements: those of one process, but for the rounding of sums and, with dropout, for the masks, which every process
draws for its own rows. Only the process of rank 0 writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from automl.errors import PeerLost
from automl.methods.seeding import SeededDropout, stream
from automl.models.plainly_held import hold_plainly
from automl.tasks.base import Row
from automl.tasks.batches import require_targets
from automl.training.host import SoloHost
from automl.training.optim import Parameters
from automl.training.parallel import Forward, ParallelStrategy, StepLoss
from automl.training.runtime import HostSettings, choose_device, load_runtime
from automl.training.state import TrainState

T = TypeVar("T")

_SIGNS_OF_A_LOST_PEER = ("connection closed by peer", "connection reset by peer", "connection refused", "broken pipe")


def build_sharded_host(settings: HostSettings) -> SoloHost:
    """Load backbone and data and return this process's part of a host; called in every process of the group.

    The backbone is on the CPU, whole. Every process reads it anew for every trial but the first, and puts it on the
    device block by block, where only the share stays.
    """
    device = choose_device(settings.device)
    runtime = replace(load_runtime(replace(settings, device="cpu")), device=device)
    return SoloHost(settings, runtime, FullySharded(device))


class FullySharded(ParallelStrategy):
    """Every process has a share of every weight, on its device, and of the rows of every batch.

    Weights keep their types: frozen ones may be in 16 or in 4 bits, what is trained is in float32, and so are its
    gradients when they are summed over the processes. Works with methods whose parameters need no step of their own
    (`Method.shardable`). A process that is short of memory cannot make the batch of all smaller: the trial fails.
    """

    keeps_backbone: ClassVar[bool] = False

    def __init__(self, device: torch.device) -> None:
        self.mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
        self._device = device

    @property
    def is_writer(self) -> bool:
        """Whether this is the process of rank 0."""
        return distributed.get_rank() == 0

    def wait(self) -> None:
        """Raises PeerLost if one will not come."""
        with peers_named():
            distributed.barrier()

    def naming_lost_peers(self) -> AbstractContextManager[None]:
        """See `peers_named`."""
        return peers_named()

    def distribute(self, model: nn.Module, *, seed: int | None = None) -> None:
        """Every process draws the dropout masks of its own rows."""
        hold_plainly(model)
        shard(model, self.mesh)
        if seed is None:
            return
        masks = stream(seed, f"dropout of process {distributed.get_rank()}", self._device)
        for module in model.modules():
            if isinstance(module, SeededDropout):
                module.generator = masks

    def full(self, tensor: Tensor) -> Tensor:
        """Every process must ask for it."""
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def gather(self, masks: Tensor | None) -> Tensor | None:
        """One after the other, by rank."""
        if masks is None:
            return None
        own = masks.to(self._device)
        states = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
        distributed.all_gather(states, own)
        return torch.cat(states).cpu()

    def scatter(self, state: TrainState, parameters: Parameters) -> TrainState:
        """Nothing is sent: each process has all."""
        masks = state.dropout
        if masks is not None:
            masks = masks.chunk(distributed.get_world_size())[distributed.get_rank()].clone()
        params, moments = (shared_out(tensors, parameters) for tensors in (state.params, state.moments))
        return replace(state, params=params, moments=moments, dropout=masks)

    def within_memory(self, size: int, work: Callable[[int], T], *, what: str) -> tuple[T, int]:
        """Do the work at its size: less at once would have to be less in every process."""
        return work(size), size

    def accumulate(
        self, rows: Sequence[Row], at_once: int, forward: Forward, parameters: Parameters, *, step: int
    ) -> StepLoss:
        """The gradient of the sum is gathered and divided at the end, as in one process; FSDP averages over processes.

        A process without a row goes along with one of no weight.
        """
        rank, world = distributed.get_rank(), distributed.get_world_size()
        mine = rows[rank::world]
        part = forward(mine or rows[:1])
        own = [float(part.total.detach()), part.terms, part.tokens] if mine else [0.0, 0, 0]
        sums = torch.tensor(own, dtype=torch.float64, device=self._device)
        distributed.all_reduce(sums)
        total, count, tokens = sums.tolist()
        require_targets(int(count), step=step)
        torch.autograd.backward(part.total if mine else part.total * 0.0)
        for parameter in parameters.values():
            if parameter.grad is not None:
                parameter.grad.mul_(world / count)
        return StepLoss(total, int(count), int(tokens))

    def after_evaluation(self, model: nn.Module) -> None:
        """An evaluation leaves the outermost module whole, of which not all would gather the same then."""
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Share the model's parameters out over the mesh: each block of a list of layers by itself, then what is left."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    inner = {id(module) for each in lists for block in each for module in block.modules() if module is not block}
    for block in [block for each in lists if id(each) not in inner for block in each]:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if hasattr(model, "generate"):  # it calls what is inside of the outermost module, whose own weights are shared out
        register_fsdp_forward_method(model, "generate")


def shared_out(tensors: Mapping[str, Tensor], parameters: Parameters) -> dict[str, Tensor]:
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
