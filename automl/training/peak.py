"""Memory of one step of a trial: what a GPU's allocator has seen at most, or what is counted on a CPU.

A process on a CPU keeps memory that earlier trials have freed, so its resident size says nothing of one trial. Counted
there are the frozen weights, what is trained with its gradients, the optimizer's state, and all that the step
keeps for its backward pass: all that is there at once, but for scratch space of single operations.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


def step_bytes(model: nn.Module, loss: Callable[[], Tensor], *, held: int) -> int:
    """Bytes at the peak of a step. loss: of the step's rows, (), with its graph.

    held: bytes of the backbone and of the optimizer's state. Gradients are gone afterwards.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if trained[0].is_cuda:
        return _allocated(trained, loss)
    return held + 2 * sum(parameter.nbytes for parameter in trained) + _kept(model, loss)  # values and gradients


def _allocated(trained: list[nn.Parameter], loss: Callable[[], Tensor]) -> int:
    device = trained[0].device
    torch.cuda.reset_peak_memory_stats(device)
    torch.autograd.backward(loss())
    for parameter in trained:
        parameter.grad = None
    return torch.cuda.max_memory_allocated(device)


def _kept(model: nn.Module, loss: Callable[[], Tensor]) -> int:
    """Bytes that are kept for the backward pass, the model's own tensors aside."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        graph = loss()  # kept until all is counted, so that no address is used twice
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    counted = sum(size for place, size in kept.items() if place not in own)
    del graph
    return counted
