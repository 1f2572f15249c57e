"""PEFT methods by name. A new one is a file beside `lora.py` and a line here."""

from automl.methods.adalora import AdaLora
from automl.methods.base import Method
from automl.methods.lora import Lora

METHODS: dict[str, Method] = {method.name: method for method in (Lora(), AdaLora())}
