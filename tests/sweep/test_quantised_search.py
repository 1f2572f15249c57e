"""A search on a backbone in 4 bits, from the space file to an adapter that plain PEFT and bitsandbytes load."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig

from automl.results.recorded import GROUND
from automl.setup.setup import for_one_trial, set_up
from automl.space.load import load_space
from automl.space.spec import SweepSpec
from automl.storage.sql import Database, open_database
from automl.sweep.export import complete_trial, export_trial, load_trial
from automl.sweep.run import run_sweep
from automl.training.export import evaluate_export, evaluate_merged, merge_adapter
from tests.sweep.tiny_world import make_world
from tests.training.quantised_cases import wide_model


class Searched(NamedTuple):
    database: Database
    spec: SweepSpec
    cache: Path


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searched]:
    folder = tmp_path_factory.mktemp("quantised")
    file = make_world(folder, trials=3, steps=10)
    wide_model("bert", kind="classification").save_pretrained(folder / "model")
    text = file.read_text().replace("model: ./model", "model: {folder: ./model, quantization: nf4, double_quant: true}")
    file.write_text(text)
    spec = load_space(file)
    spec = replace(spec, run=replace(spec.run, output=folder / "out"), storage_url=f"sqlite:///{folder / 'automl.db'}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOML_CACHE", str(folder / "cache"))
        run_sweep(spec, folder / "cache")
        with open_database(spec.storage_url, create=False) as database:
            yield Searched(database, spec, folder / "cache")


def test_its_trials_are_packed_and_what_holds_them_is_recorded(searched: Searched) -> None:
    ground = searched.database.store("tiny").last_event(GROUND) or {}
    assert ground["packing"]["solo"] == ""
    assert ground["quantization"] == {"kind": "nf4", "double": True}


def test_the_winner_is_reproduced_by_plain_peft_and_bitsandbytes(searched: Searched, tmp_path: Path) -> None:
    exported = export_trial(searched.database, searched.spec, tmp_path / "adapter", None, merged=False, check=True)
    assert exported.measured == pytest.approx(exported.recorded, rel=1e-5)
    assert exported.unquantised is not None
    lines = "\n".join(exported.how_to_load())
    assert "from transformers import AutoConfig, AutoModelForSequenceClassification, BitsAndBytesConfig" in lines
    assert "bnb_4bit_quant_type='nf4'" in lines
    about = json.loads((tmp_path / "adapter" / "manifest.json").read_text())["about"]
    assert about["backbone"]["quantization"]["bnb_4bit_use_double_quant"] is True
    assert not hasattr(AutoConfig.from_pretrained(tmp_path / "adapter"), "quantization_config")


def test_merging_keeps_what_the_adapter_was_trained_on(searched: Searched, tmp_path: Path) -> None:
    database, spec, cache = searched
    setup = set_up(for_one_trial(spec), cache, database.store("tiny").last_event(GROUND), is_thorough=False)
    settings = setup.worker_settings()
    adapter = Path(complete_trial(database, spec, None).adapter or "")
    merge_adapter(adapter, settings, tmp_path / "merged")

    with safe_open(tmp_path / "merged" / "model.safetensors", framework="pt") as tensors:
        assert {tensors.get_tensor(name).dtype for name in tensors.keys()} == {torch.bfloat16}  # noqa: SIM118
    merged, unmerged = evaluate_merged(tmp_path / "merged", settings), evaluate_export(adapter, settings)
    stored = replace(settings, backbone=replace(settings.backbone, quantization=None))
    assert abs(merged["loss"] - unmerged["loss"]) < abs(evaluate_export(adapter, stored)["loss"] - unmerged["loss"])
    assert merged["loss"] == pytest.approx(unmerged["loss"], rel=1e-2)


def test_the_winner_is_loaded_on_the_backbone_it_was_trained_on(searched: Searched) -> None:
    model, _ = load_trial(searched.database, searched.spec, None)
    assert model.get_base_model().is_loaded_in_4bit
