"""From a finished search, and from an adapter that plain PEFT has made, to a smaller adapter on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import automl
from automl.cli.main import main
from automl.methods.attaching import adapted_model
from automl.report.recipe import recipe
from automl.results.squeezed import squeeze_of, squeezed_ranks
from automl.storage.sql import open_database
from automl.training.cut import read_config
from automl.training.export import verify_manifest
from tests.architectures import save_tiny
from tests.sweep.tiny_world import WORDS, make_world

Said = tuple[int, str, str]
Run = Callable[..., Said]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search of three trials."""
    folder = tmp_path_factory.mktemp("squeezed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("AUTOML_CACHE", str(folder / "cache"))
        space = make_world(folder, trials=3)
        space.write_text(space.read_text().replace("low: 1, high: 8", "low: 5, high: 8"))
        automl.search(space=automl.load_space(folder / "space.yaml"), show_progress=False)
    return folder


@pytest.fixture
def run(world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in the world's folder: code, stdout, stderr."""
    monkeypatch.chdir(world)
    monkeypatch.setenv("AUTOML_CACHE", str(world / "cache"))

    def call(*arguments: str) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return int(stop.value.code or 0), said.out, said.err

    return call


def test_a_study_is_squeezed_to_its_knee(world: Path, run: Run) -> None:
    code, out, err = run("squeeze", "tiny", "--output", "small", "--json")
    assert code == 0, err
    found = json.loads(out)
    study = automl.open_study("tiny")
    assert found["whole"]["metrics"]["accuracy"] == pytest.approx(study.best_value)
    kinds = [cut["kind"] for cut in found["curve"]]
    assert kinds[0] == "whole"
    assert kinds.count("global") == 5
    assert kinds.count("even") == 3
    even = {cut["parameters"]: cut for cut in found["curve"] if cut["kind"] == "even"}
    assert even
    for cut in found["curve"]:
        if cut["kind"] == "global" and cut["parameters"] in even:
            assert cut["kept"] >= even[cut["parameters"]]["kept"]
    knee = found["knee"]
    assert knee["metrics"]["accuracy"] >= study.best_value - found["margin"]
    assert found["chosen"] == knee
    weights = load_file(world / "small/adapter_model.safetensors")
    assert sum(tensor.numel() for name, tensor in weights.items() if ".lora_" in name) == knee["parameters"]
    about = verify_manifest(world / "small")
    assert about["trial"] == study.best.number
    assert about["metrics"] == knee["metrics"]
    assert about["squeezed"]["of"] == found["whole"]["parameters"]
    made = recipe(str(world / "small"))
    assert made is not None
    assert "may be better still" in found["caution"]


def test_it_is_recorded_with_the_study(world: Path, run: Run) -> None:
    code, out, err = run("squeeze", "tiny", "--json")
    assert code == 0, err
    found = json.loads(out)
    with open_database(f"sqlite:///{world / 'automl.db'}", create=False) as database:
        number = automl.open_study("tiny").best.number
        row = squeeze_of(database, "tiny", number)
        kept = database.store("tiny").artifacts()
    assert row is not None
    assert {cut.parameters: cut.metrics for cut in row.cuts if cut.kind != "even"} == {
        cut["parameters"]: cut["metrics"] for cut in found["curve"] if cut["kind"] != "even"
    }
    assert row.adapter_sha256 == next(each.sha256 for each in kept if each.trial == number)
    assert row.at_knee.parameters == found["knee"]["parameters"]
    assert squeezed_ranks(row, row.knee) == {each.module: each.knee_rank for each in row.modules}
    assert {module: rank for module, rank in squeezed_ranks(row, row.knee).items() if rank} == found["ranks"]
    assert row.whole.even_rank == row.modules[0].rank


def test_what_a_person_reads_and_an_asked_size(world: Path, run: Run) -> None:
    number = next(trial.number for trial in automl.open_study("tiny").trials if trial.adapter)
    code, out, err = run("squeeze", "tiny", "--trial", str(number), "--share", "0.5", "-o", "half")
    assert code == 0, err
    assert f"trial {number} of tiny" in out
    assert "parameters in " in out
    assert "one trained at the small rank, with a learning rate of its own, may be better still" in out
    config = read_config(world / "half")
    weights = load_file(world / "half/adapter_model.safetensors")
    spent = sum(tensor.numel() for name, tensor in weights.items() if ".lora_" in name)
    about = verify_manifest(world / "half")["squeezed"]
    assert about["parameters"] == spent <= about["of"] / 2
    assert config["peft_type"] == "LORA"


def test_cuts_are_recovered_beside_the_plain_ones(world: Path, run: Run) -> None:
    code, out, err = run("squeeze", "tiny", "--rank", "1", "--recover", "15", "-o", "recovered", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["recovery_steps"] == 15
    assert found["recovery_rate"] > 0
    for cut in found["curve"]:
        assert (cut["recovered"] is not None) == (cut["kind"] in ("global", "asked"))
    chosen = found["chosen"]
    is_better = chosen["recovered"]["accuracy"] > chosen["metrics"]["accuracy"]
    about = verify_manifest(world / "recovered")
    assert about["metrics"] == (chosen["recovered"] if is_better else chosen["metrics"])
    assert about["squeezed"].get("recovered", False) == is_better
    with open_database(f"sqlite:///{world / 'automl.db'}", create=False) as database:
        row = squeeze_of(database, "tiny", automl.open_study("tiny").best.number)
    assert row is not None
    assert row.recovery_steps == 15
    assert {cut.parameters: cut.recovered for cut in row.cuts if cut.kind == "asked"} == {
        chosen["parameters"]: chosen["recovered"]
    }


def test_python_finds_the_same(world: Path, run: Run) -> None:
    found = automl.open_study("tiny").squeeze(rank=1, output=world / "from-python", show_progress=False)
    assert found.chosen.kind == "asked"
    assert repr(found).startswith("<automl squeezed: trial ")
    assert found.output == str(world / "from-python")
    code, out, _ = run("squeeze", "tiny", "--rank", "1", "--json")
    assert code == 0
    assert json.loads(out) | {"output": found.output} == json.loads(json.dumps(found.as_dict()))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--budget", "0"], 2, "--budget: 0 parameters keep nothing"),
        (["--budget", "7"], 2, "--budget: 7 parameters keep nothing; the smallest direction has 64"),
        (["--budget", "10000000"], 2, "--budget: 10,000,000 parameters are more than the adapter's"),
        (["--recover", "0"], 2, "--recover: 0 steps train nothing"),
        (["--rank", "99"], 2, "--rank: the adapter has rank"),
        (["--output", "model"], 2, "--output: exists already"),
        (["--trial", "77"], 1, "trial 77 of study 'tiny' does not exist"),
        (["--adapter", "nowhere", "--model", "model"], 2, "STUDY: and --adapter are two adapters"),
    ],
)
def test_what_cannot_be_done_is_one_line(run: Run, arguments: list[str], code: int, said: str) -> None:
    found, _, err = run("-q", "squeeze", "tiny", *arguments)
    assert found == code
    assert said in err
    assert len(err.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def stranger(world: Path) -> Path:
    """An adapter with alpha of its own in one module, trained and saved by PEFT alone."""
    base = AutoModelForSequenceClassification.from_pretrained(world / "model", num_labels=3)
    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    config = LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=["query", "value"])
    config.alpha_pattern = {r"^bert\.encoder\.layer\.1\.attention\.self\.value$": 20}
    torch.manual_seed(1)
    model = adapted_model(base, config).train()
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=2e-2)
    rows = [json.loads(line) for line in (world / "data.jsonl").read_text().splitlines()]
    for step in range(20):
        some = rows[12 * step : 12 * step + 12]
        batch = tokenizer([row["text"] for row in some], return_tensors="pt", padding=True)
        labels = torch.tensor([list(WORDS).index(row["label"]) for row in some])
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(world / "stranger")
    return world / "stranger"


def test_an_adapter_of_a_stranger_is_squeezed(world: Path, stranger: Path, run: Run) -> None:
    place = ("--adapter", "stranger", "--model", "model", "--data", "data.jsonl")
    code, out, err = run("squeeze", *place, "--rank", "4", "-o", "whole-stranger", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["whole"]["metrics"]["accuracy"] > 0.6
    assert not found["notes"]
    before, after = products(stranger), products(world / "whole-stranger")
    assert before.keys() == after.keys()
    for path, product in before.items():
        assert torch.allclose(after[path], product, atol=1e-6 * float(product.abs().max())), path
    code, out, err = run("squeeze", *place)
    assert code == 0, err
    assert "nothing was written" in out


def products(folder: Path) -> dict[str, torch.Tensor]:
    """alpha / r * B A of every module, by the configuration's patterns."""
    config, weights = read_config(folder), load_file(folder / "adapter_model.safetensors")
    found = {}
    for name in weights:
        if name.endswith(".lora_A.weight"):
            path = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            key = "^" + path.replace(".", r"\.") + "$"
            a, b = weights[name].double(), weights[name.replace("lora_A", "lora_B")].double()
            found[path] = config["alpha_pattern"].get(key, config["lora_alpha"]) / len(a) * b @ a
    return found


def test_adapters_that_are_not_of_this_model_or_data(world: Path, stranger: Path, run: Run) -> None:
    save_tiny(world / "other", "llama", kind="classification")
    code, _, err = run("-q", "squeeze", "--adapter", "stranger", "--model", "other", "--data", "data.jsonl")
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert "was trained on" in err
    moved = shutil.copytree(stranger, world / "moved")
    config: dict[str, Any] = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "gone/away"}))
    code, _, err = run("-q", "squeeze", "--adapter", "moved", "--model", "other", "--data", "data.jsonl")
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert "is an adapter of another model: here is no linear layer 'bert." in err
    weights = load_file(moved / "adapter_model.safetensors")
    name = next(name for name in weights if name.endswith("lora_A.weight"))
    save_file(weights | {name: weights[name] * float("nan")}, moved / "adapter_model.safetensors")
    code, _, err = run("-q", "squeeze", "--adapter", "moved", "--model", "model", "--data", "data.jsonl")
    assert code == 1
    assert len(err.strip().splitlines()) == 1
    assert "weights are not finite" in err
