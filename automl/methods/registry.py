"""PEFT methods by name. A new one is a file beside `lora.py` and a line here, or an entry point of a package."""

from automl.methods.base import Method
from automl.registry import Registry


def _method(found: object) -> Method:
    if isinstance(found, type) and issubclass(found, Method):
        return found()
    raise TypeError(f"{found!r} is not a class derived from automl.methods.base.Method")


METHODS: Registry[Method] = Registry(
    "method", {"lora": "automl.methods.lora:Lora", "adalora": "automl.methods.adalora:AdaLora"}, _method
)
"""Every method `method` may name."""
