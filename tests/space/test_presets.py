"""Every preset is valid, for the loader and for an editor, and refers to what is really there."""

from __future__ import annotations

import json
import runpy
from importlib.util import find_spec
from pathlib import Path

import jsonschema
import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from automl.lora import Hyperparameters
from automl.models.memory import backbone_bytes
from automl.packed.memory import SHARE, pack_bytes
from automl.space.assemble import assemble
from automl.space.defaults import resolve
from automl.space.extremes import extremes
from automl.space.load import json_schema, load_space, load_spaces
from automl.training.memory import TOKEN_BUDGET

FOLDER = Path(__file__).parents[2] / "search_spaces"
PRESETS = sorted(FOLDER.glob("*.yaml"))


def test_there_are_presets() -> None:
    assert {path.stem for path in PRESETS} >= {
        "bbc-topics",
        "smollm2-instruct",
        "smollm2-dpo",
        "reviews-stars",
        "reviews-topics",
        "prompt-tuning-t5",
        "three-customers",
        "gpu-7b-instruct",
        "nightly",
    }


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset_is_valid(path: Path) -> None:
    specs = load_spaces(path)
    for spec in specs:
        assert spec.study == path.stem if len(specs) == 1 else spec.study.startswith(f"{path.stem}-")
        space = resolve(spec.space, 100_000_000, spec.search.steps)
        for entry in space.enqueue:
            assemble(space, entry)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset_follows_the_schema(path: Path) -> None:
    # An editor reads YAML 1.1: numbers such as 1e-4 would be texts to it, so presets write 1.0e-4.
    jsonschema.Draft202012Validator(json_schema()).validate(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset_refers_to_what_is_there(path: Path) -> None:
    specs = load_spaces(path)
    files = [file for spec in specs for file in spec.task.data.files.values()]
    assert all(Path(file).is_file() for file in files)
    for kind, location, inner in (
        *((spec.model.kind, spec.model.location, spec.model.path) for spec in specs),
        *((spec.task.data.kind, spec.task.data.location, spec.task.data.path) for spec in specs),
    ):
        if kind == "package":
            package = find_spec(location)
            assert package is not None
            assert (Path(next(iter(package.submodule_search_locations or []))) / inner).exists()


SIZES = {
    "qlora-7b": ("qwen2", {"hidden": 3584, "layers": 28, "heads": 28, "kv": 4, "inner": 18944, "words": 152064}, 24),
    "qlora-70b": ("llama", {"hidden": 8192, "layers": 80, "heads": 64, "kv": 8, "inner": 28672, "words": 128256}, 80),
}
"""Architecture and sizes of the models that these presets name, and the GB of the GPU that they promise to fit into."""


@pytest.mark.parametrize("name", SIZES)
def test_a_quantised_preset_fits_where_it_says(name: str) -> None:
    """Planned from the configuration alone: the costliest trials in all slots, with gradient checkpointing."""
    architecture, size, gigabytes = SIZES[name]
    config = AutoConfig.for_model(
        architecture,
        hidden_size=size["hidden"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        num_key_value_heads=size["kv"],
        intermediate_size=size["inner"],
        vocab_size=size["words"],
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    spec = load_space(FOLDER / f"{name}.yaml")
    fixed, slots = spec.space.fixed, spec.run.slots or 1
    largest = Hyperparameters(rank=extremes(spec.space, "rank")[-1], dropout=0.1, target=str(fixed["target"]))
    tokens = int(fixed["batch_size"]) * spec.task.max_length
    device = "cuda" if slots > 1 else "cpu"  # one trial alone has no bank
    trials = pack_bytes(
        model,
        largest,
        slots=slots,
        tokens=tokens,
        token_budget=TOKEN_BUDGET["cuda"],
        dtype="bf16",
        recompute=True,
        device=device,
    )
    held = backbone_bytes(model, 2, spec.model.quantization)
    assert held + trials < SHARE * gigabytes * 1e9
    assert backbone_bytes(model, 2, None) > 0.6 * gigabytes * 1e9  # in 16 bits it would not leave room for them


def test_the_instructions_are_what_their_script_writes() -> None:
    script = runpy.run_path(str(FOLDER / "data" / "make_instructions.py"))
    written = (FOLDER / "data" / "instructions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in written]
    assert [row._asdict() for row in script["rows"]()] == rows
    assert len({(row["instruction"], row["input"]) for row in rows}) >= 195
    assert all(row["output"] for row in rows)


def test_preferences_are_what_their_script_writes() -> None:
    script = runpy.run_path(str(FOLDER / "data" / "make_preferences.py"))
    written = (FOLDER / "data" / "preferences.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in written]
    assert script["rows"]() == rows
    assert all(row["chosen"] in row["rejected"] != row["chosen"] for row in rows)


def test_reviews_are_what_their_script_writes() -> None:
    script = runpy.run_path(str(FOLDER / "data" / "make_reviews.py"))
    written = (FOLDER / "data" / "reviews.jsonl").read_text(encoding="utf-8").splitlines()
    assert script["rows"]() == [json.loads(line) for line in written]


def test_messages_to_customers_are_what_their_script_writes() -> None:
    script = runpy.run_path(str(FOLDER / "data" / "make_customers.py"))
    for name in script["DESKS"]:
        written = (FOLDER / "data" / f"customer_{name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert script["rows"](name) == [json.loads(line) for line in written]
