"""Memory of one step as it is counted on a CPU."""

from __future__ import annotations

import torch
from torch import nn

from automl.lora import Hyperparameters
from automl.training import optim
from automl.training.peak import step_bytes

ROWS, IN, HIDDEN = 5, 7, 11


def test_what_is_kept_for_the_backward_pass_is_counted_once_beside_weights_gradients_and_moments() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(IN, HIDDEN), nn.Sigmoid(), nn.Linear(HIDDEN, 1))
    model[0].requires_grad_(False)
    rows = torch.randn(ROWS, IN)
    trained = HIDDEN + 1
    frozen = 4 * (IN * HIDDEN + HIDDEN)
    alone = step_bytes(model, lambda: model(rows).sum(), held=frozen)
    assert alone == frozen + 2 * 4 * trained + 4 * ROWS * HIDDEN  # the input of the last layer, for its weight
    model.requires_grad_(True)
    trained += IN * HIDDEN + HIDDEN
    all_of_it = step_bytes(model, lambda: model(rows).sum(), held=frozen)
    # the rows, too; the sigmoid's output is the last layer's input and is kept once
    assert all_of_it == frozen + 2 * 4 * trained + 4 * ROWS * HIDDEN + 4 * ROWS * IN
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_moments_that_are_there_are_counted() -> None:
    layer = nn.Linear(IN, HIDDEN)
    optimizer = optim.adamw(optim.trainable(layer), Hyperparameters())
    assert optim.held_bytes(optimizer) == 2 * 4 * (IN * HIDDEN + HIDDEN) + 2 * 4  # and two counters of steps
