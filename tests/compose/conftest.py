"""A folder with two finished searches: `tiny`, of LoRA, and `others`, of methods beside it, two trials of each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import automl
from tests.sweep.tiny_world import make_world

SEARCH: dict[str, Any] = {
    "model": "./model",
    "data": "data.jsonl",
    "task": {"type": "classification", "seed": 3},
    "sampler": "random",
    "pruner": "none",
    "evaluate_every": 10,
    "steps": 20,
    "seed": 3,
    "keep": 9,
    "squeeze": False,
    "run": {"executor": "inline", "threads": 1, "precision": "fp32"},
    "show_progress": False,
}
ALIKE: list[dict[str, Any]] = [
    {"rank": 4, "target": "qv", "learning_rate": 0.03},
    {"rank": 4, "target": "qv", "learning_rate": 0.02},
    {"rank": 2, "target": "qv", "learning_rate": 0.03},
    {"rank": 4, "target": "mlp", "learning_rate": 0.02},
]
OTHERS: list[dict[str, Any]] = [
    {"method": "ia3"},
    {"method": "ia3"},
    {"method": "full"},
    {"method": "full"},
    {"method": "adapter", "adapter_size": 3},
    {"method": "adapter", "adapter_size": 4},
    {"method": "lora", "use_dora": True},
    {"method": "lora", "use_dora": False},
]


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("composed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("AUTOML_CACHE", str(folder / "cache"))
        make_world(folder)
        fixed = {"batch_size": 8, "max_length": 12}
        automl.search(
            **SEARCH,
            study="tiny",
            space={"rank": [2, 4], "target": ["qv", "mlp"], "learning_rate": automl.Float(0.01, 0.1)},
            fixed=fixed,
            enqueue=ALIKE,
            trials=len(ALIKE),
        )
        automl.search(
            **SEARCH | {"steps": 5, "evaluate_every": 5},
            study="others",
            space={
                "method": ["ia3", "full", "adapter", "lora"],
                "adapter_size": automl.Int(2, 8),
                "use_dora": [False, True],
            },
            fixed=fixed | {"learning_rate": 0.01, "adapter_place": "pfeiffer", "rank": 2},
            enqueue=OTHERS,
            trials=len(OTHERS),
        )
    return folder


@pytest.fixture(scope="module")
def world(searched: Path) -> Iterator[Path]:
    """The folder, which is the working one as long as a module is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(searched)
        patch.setenv("AUTOML_CACHE", str(searched / "cache"))
        yield searched
