"""AutoML hyperparameter search for LoRA fine-tuning, from Python as from the command line.

    study = automl.search(model="./model", data="reviews.jsonl", space={"rank": automl.Int(2, 32, log=True)}, trials=24)
    model, tokenizer = study.load_model()

Importing this package is cheap on purpose: a name is loaded when it is first used, and with it torch and the like.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from automl.errors import (
        AutomlError,
        ConfigError,
        DataError,
        InterruptedSearch,
        MissingExtraError,
        ModelError,
        ResourceError,
        SearchError,
        SpaceChangedError,
        StorageError,
        StudyBusyError,
        StudyNotFoundError,
    )
    from automl.library.adapter import load_adapter
    from automl.library.parameters import Categorical, Float, Int
    from automl.library.search import search
    from automl.library.study import Study, open_study
    from automl.library.trial import Trial
    from automl.packed.trainer import PackedTrainer
    from automl.packed.workload import Workload
    from automl.space.load import load_space

__version__ = "0.1.0"

__all__ = [
    "AutomlError",
    "Categorical",
    "ConfigError",
    "DataError",
    "Float",
    "Int",
    "InterruptedSearch",
    "MissingExtraError",
    "ModelError",
    "PackedTrainer",
    "ResourceError",
    "SearchError",
    "SpaceChangedError",
    "StorageError",
    "Study",
    "StudyBusyError",
    "StudyNotFoundError",
    "Trial",
    "Workload",
    "load_adapter",
    "load_space",
    "open_study",
    "search",
]

_MODULES = {
    "automl.library.adapter": ("load_adapter",),
    "automl.library.parameters": ("Categorical", "Float", "Int"),
    "automl.library.search": ("search",),
    "automl.library.study": ("Study", "open_study"),
    "automl.library.trial": ("Trial",),
    "automl.packed.trainer": ("PackedTrainer",),
    "automl.packed.workload": ("Workload",),
    "automl.space.load": ("load_space",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
"""The module of every public name that is no error."""


def __getattr__(name: str) -> object:
    """Load a public name when it is first used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'automl' has no attribute {name!r}; it has {', '.join(__all__)}")
    found: object = getattr(import_module(_MODULE_OF.get(name, "automl.errors")), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
