"""PEFT methods by name. A new one is a file beside `lora.py` and a line here, or an entry point of a package."""

from dataclasses import fields

from automl.lora import Hyperparameters
from automl.methods.base import Method
from automl.registry import Registry

TAKEN = frozenset({*(field.name for field in fields(Hyperparameters)), "alpha_ratio", "max_length", "trainable_params"})
"""Names that no setting of a method may have: everybody's hyperparameters, and what constraints read beside them."""


def _method(found: object) -> Method:
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise TypeError(f"{found!r} is not a class derived from automl.methods.base.Method")
    names = [setting.name for setting in found.settings]
    for name in names:
        if name in TAKEN or names.count(name) > 1:
            raise ValueError(f"setting {name!r} is there already; choose another name")
    return found()


METHODS: Registry[Method] = Registry(
    "method",
    {
        "lora": "automl.methods.lora:Lora",
        "adalora": "automl.methods.adalora:AdaLora",
        "prompt": "automl.methods.prompt:Prompt",
        "p-tuning": "automl.methods.p_tuning:PTuning",
        "prefix": "automl.methods.prefix:Prefix",
        "adapter": "automl.methods.bottleneck:Bottlenecks",
        "llama-pro": "automl.methods.llama_pro:LlamaPro",
        "ia3": "automl.methods.ia3:IA3",
        "bitfit": "automl.methods.whole:BitFit",
        "full": "automl.methods.whole:Full",
    },
    _method,
    families={"peft": "automl.methods.gateway:method_of"},
)
"""Every method `method` may name; `peft:vera` and its like are the tuners that only PEFT has."""
