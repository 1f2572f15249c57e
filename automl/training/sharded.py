"""One trial over several processes, each with a part of the backbone: for models larger than one device (FSDP).

The processes form torch's default process group (Ray Train makes one, see docs/operations.md). Each holds its share of
every weight, of the adapter and of its moments, trains on its share of the rows of every batch, and evaluates on all
rows, so all of them come to the same measurements: those of `training.solo`, but for the rounding of sums and, with
dropout, for the masks, which every process draws for its own rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from automl.errors import DataError
from automl.methods.registry import METHODS
from automl.models.inventory import head_modules, resolve_targets
from automl.tasks.base import Row
from automl.tasks.batches import batch_rows
from automl.training import optim
from automl.training.adapter import adapter_folder, adapter_meta
from automl.training.bench import HostSettings, choose_device, load_bench
from automl.training.export import export_adapter
from automl.trial import Measurement, TrialSpec


class ShardedTrial:
    """This process's part of the trial. Everything here is done by all processes of the group, in the same order.

    The backbone is read by every process, and put on the device block by block, where only the share stays. Works in
    fp32 and with methods whose parameters need no step of their own (LoRA).
    """

    def __init__(self, spec: TrialSpec, settings: HostSettings) -> None:
        self.spec = spec
        self.settings = settings
        device = choose_device(settings.device)
        self.bench = replace(load_bench(replace(settings, device="cpu")), device=device)
        self.step = 0
        self.tokens = 0
        model = self.bench.model
        paths = [layer.path for layer in resolve_targets(model, spec.hyper.target, self.bench.targets)]
        method = METHODS[spec.hyper.method]
        self.model: Any = method.attach(model, spec.hyper, paths, head_modules(model), spec.seed, steps=spec.steps)
        shard(self.model, init_device_mesh(device.type, (distributed.get_world_size(),)))
        self._parameters = optim.trainable(self.model)
        self._optimizer = optim.adamw(self._parameters, spec.hyper)

    def train(self) -> Iterator[Measurement]:
        """To the last step; the adapter is written by the process of rank 0 and named in the last measurement."""
        while self.step < self.spec.steps:
            self._take_step()
            if self.step % self.spec.evaluate_every == 0 or self.step == self.spec.steps:
                metrics = self.bench.evaluate(self.model, self.bench.evaluation_rows, self.bench.evaluation_tokens)
                measurement = Measurement(trial=self.spec.number, step=self.step, metrics=metrics, tokens=self.tokens)
                yield self._exported(measurement) if self.step == self.spec.steps else measurement

    def _take_step(self) -> None:
        hyper = self.spec.hyper
        rows = self.bench.train_rows
        chosen = batch_rows(self.spec.data_seed, self.step, hyper.batch_size, len(rows))
        self.model.train()
        self._optimizer.zero_grad(set_to_none=True)
        self._backward([rows[index] for index in chosen])
        optim.take_step(self._optimizer, self._parameters, hyper, step=self.step, steps=self.spec.steps)
        self.step += 1

    def _backward(self, rows: list[Row]) -> None:
        """Gradients of the mean loss over all rows of the batch.

        A process without a row goes along with one of no weight. FSDP averages gradients over the processes, so each
        loss is scaled by their number.
        """
        rank, world = distributed.get_rank(), distributed.get_world_size()
        mine = rows[rank::world]
        batch = self.bench.batch(mine or rows[:1])
        parts = self.bench.task.loss(self.model, batch)
        counts = torch.tensor([parts.count, int(batch["attention_mask"].sum())]) * bool(mine)
        counts = counts.to(self.bench.device)
        distributed.all_reduce(counts)
        count, tokens = (int(value) for value in counts)
        if count == 0:
            raise DataError(f"the batch of step {self.step + 1} has no target to learn from: every token is masked")
        torch.autograd.backward(parts.total * (world * bool(mine) / count))
        self.tokens += tokens

    def _exported(self, measurement: Measurement) -> Measurement:
        folder = adapter_folder(Path(self.settings.output).absolute(), self.spec.number)
        tensors = gathered(self._parameters)
        if distributed.get_rank() == 0:
            meta = adapter_meta(self.settings, self.bench.task, self.spec, measurement)
            export_adapter(self.model, folder, meta, tokenizer=self.bench.tokenizer, tensors=tensors)
        distributed.barrier()
        return replace(measurement, adapter=str(folder))


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Share the model's parameters out over the mesh: each block of a list of layers by itself, then what is left."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    inner = {id(module) for each in lists for block in each for module in block.modules() if module is not block}
    for block in [block for each in lists if id(each) not in inner for block in each]:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def gathered(parameters: optim.Parameters) -> dict[str, Tensor]:
    """The whole tensors on the CPU, by name; every process must ask for them."""
    return {
        name: (each.full_tensor() if isinstance(each, DTensor) else each).detach().cpu()
        for name, each in parameters.items()
    }
