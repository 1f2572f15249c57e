"""How a storage that stands in front of another one hands its calls on: a line for each, with Optuna's signature."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol, TypeVar, cast

Method = TypeVar("Method", bound=Callable[..., Any])


class InFront(Protocol):
    """A storage in front of another."""

    def _pass_on(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Do what the storage behind does under that name."""


def passed_on(method: Method) -> Method:
    """A method of `optuna.storages.BaseStorage` that is done by the storage behind."""
    name = method.__name__

    @wraps(method, updated=())  # an abstract method's dictionary says that it is abstract
    def call(self: InFront, *arguments: Any, **named: Any) -> Any:
        return self._pass_on(name, *arguments, **named)

    return cast("Method", call)
