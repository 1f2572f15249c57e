from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from automl.errors import CheckpointError, ModelError
from automl.importance.cuts import even_ranks, global_ranks, parameters
from automl.methods.attaching import adapted_layers, adapted_model
from automl.methods.base import LowRank
from automl.methods.lora import Lora
from automl.models.backbone import load_backbone
from automl.training.cut import TurnedAdapter, check_cuttable, input_moments, read_config
from automl.training.export import load_adapter, verify_manifest
from automl.training.host import SoloHost
from automl.training.runtime import HostSettings, Runtime
from automl.trial import Measurement
from tests.fresh import run_python
from tests.training.training_cases import LABELS, runtime_with, trial_spec

PLAIN_PEFT = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
torch.set_num_threads(1)
answers = []
for base, classes, rows, folders in json.load(open(sys.argv[1])):
    for folder in folders:
        auto = AutoModelForSequenceClassification if classes else AutoModelForCausalLM
        model = auto.from_pretrained(base, **({"num_labels": classes} if classes else {}))
        with warnings.catch_warnings(action="error", category=RuntimeWarning):  # a pattern that fits nothing
            warnings.filterwarnings("ignore", message=".*lora_E'")  # except AdaLoRA's, which is no pattern of LoRA
            model = PeftModel.from_pretrained(model, folder).eval()
        with torch.no_grad():
            answers.append([model(input_ids=torch.tensor([ids])).logits.flatten().tolist() for ids in rows])
print(json.dumps(answers))
"""
"""What a stranger would write; knows nothing of this project."""


def trained(settings: HostSettings, output: Path, **hyper: Any) -> Path:
    """An adapter that has learnt something: every update far from zero, of no simple form."""
    settings = replace(settings, output=str(output))
    host = SoloHost(settings, runtime_with(settings))
    host.open(trial_spec(4, steps=8, evaluate_every=8, **hyper))
    last = host.advance()[-1]
    host.shutdown()
    assert isinstance(last, Measurement), last
    return Path(last.adapter or "")


def some_rows(settings: HostSettings) -> list[list[int]]:
    return [list(row["input_ids"]) for row in runtime_with(settings).evaluation_rows[:6]]


def logits(cases: list[tuple[HostSettings, list[Path]]], file: Path) -> list[torch.Tensor]:
    """Logits of some rows under each adapter, in a process that has only PEFT."""
    inputs = [
        [each.backbone.path, len(each.prepared.labels), some_rows(each), list(map(str, folders))]
        for each, folders in cases
    ]
    file.write_text(json.dumps(inputs))
    answer = run_python("-c", PLAIN_PEFT, file)
    assert answer.returncode == 0, answer.stderr
    return [torch.cat([torch.tensor(row) for row in of_folder]) for of_folder in json.loads(answer.stdout)]


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def turned(folder: Path, settings: HostSettings) -> tuple[TurnedAdapter, Runtime]:
    runtime = runtime_with(settings)
    return TurnedAdapter(folder, runtime, runtime.train_rows[:64]), runtime


CASES: list[tuple[str, dict[str, Any]]] = [
    ("bert", {}),
    ("bert", {"use_rslora": True, "rank_pattern": (("bert.encoder.layer.0.attention.self.query", 7),)}),
    ("bert", {"method": "adalora", "learning_rate": 0.1}),
    ("gpt2", {}),
    ("llama", {}),
]


def full_and_cut(settings: HostSettings, place: Path, hyper: dict[str, Any]) -> tuple[list[Path], torch.Tensor]:
    """The trained adapter, written again at full size, and cut; and the logits of the cut one in memory."""
    folder = trained(settings, place / "out", **hyper)
    found, _ = turned(folder, settings)
    small = global_ranks(found.strengths, found.costs, parameters(even_ranks(found.strengths, 1), found.costs))
    assert 0 in small
    assert max(small) > 1
    for name, ranks in (("full", even_ranks(found.strengths, 99)), ("small", small)):
        found.cut(ranks)
        found.write(ranks, place / name, {"kind": "adapter"})
    with torch.no_grad():
        inside = [found.model(input_ids=torch.tensor([ids])).logits.flatten() for ids in some_rows(settings)]
    return [folder, place / "full", place / "small"], torch.cat(inside)


def test_a_cut_adapter_is_in_plain_peft_what_it_is_here(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """At full size the adapter's logits to 1e-6; smaller, the logits of the cut in memory, to rounding."""
    cases, inside = [], []
    for number, (name, hyper) in enumerate(CASES):
        settings: HostSettings = request.getfixturevalue(name)
        folders, found = full_and_cut(settings, tmp_path / str(number), hyper)
        cases.append((settings, folders))
        inside.append(found)
    answers = logits(cases, tmp_path / "cases.json")
    for number, cut_here in enumerate(inside):
        before, whole, cut = answers[3 * number : 3 * number + 3]
        assert relative(whole, before) < 1e-6, CASES[number]
        assert relative(cut, cut_here) < 1e-6, CASES[number]
        assert relative(cut, before) > 1e-4, CASES[number]


def test_the_folder_is_like_one_of_ours(bert: HostSettings, tmp_path: Path) -> None:
    folder = trained(bert, tmp_path / "out")
    found, _ = turned(folder, bert)
    ranks = global_ranks(found.strengths, found.costs, parameters(even_ranks(found.strengths, 1), found.costs))
    about = {**verify_manifest(folder), "squeezed": True}
    found.write(ranks, tmp_path / "small", about)
    assert verify_manifest(tmp_path / "small") == about
    assert {path.name for path in folder.iterdir()} == {path.name for path in (tmp_path / "small").iterdir()}
    model, tokenizer = load_adapter(tmp_path / "small", bert.backbone)
    assert model.config.id2label == dict(enumerate(LABELS))
    assert tokenizer("w1 w2")["input_ids"] == [1, 5, 6, 2]
    before, after = (
        load_file(folder / "adapter_model.safetensors"),
        load_file(tmp_path / "small/adapter_model.safetensors"),
    )
    heads = {name for name in before if ".lora_" not in name}
    assert len(heads) == 2
    assert all(torch.equal(before[name], after[name]) for name in heads)
    kept = {path: rank for path, rank in zip(found.paths, ranks, strict=True) if rank}
    config = read_config(tmp_path / "small")
    assert config["target_modules"] == sorted(kept)
    for path, rank in kept.items():
        assert len(after[f"base_model.model.{path}.lora_A.weight"]) == rank
        key = "^" + path.replace(".", r"\.") + "$"
        own = config["rank_pattern"].get(key, config["r"]), config["alpha_pattern"].get(key, config["lora_alpha"])
        assert own == (rank, 2 * rank)  # alpha / rank as it was trained
    assert len(after) == 2 * len(kept) + len(heads)


def test_moments_are_those_of_real_tokens(bert: HostSettings, tmp_path: Path) -> None:
    """Against inputs gathered row by row, without any padding."""
    runtime = runtime_with(bert)
    model, _ = load_adapter(trained(bert, tmp_path / "out"), bert.backbone)
    layers, updates, rows = adapted_layers(model.get_base_model()), Lora().low_rank(model), runtime.train_rows[:9]
    seen: dict[str, list[torch.Tensor]] = {path: [] for path in layers}
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, path=path: seen[path].append(inputs[0].flatten(0, -2)))
        for path, layer in layers.items()
    ]
    with torch.no_grad():
        for row in rows:
            model(input_ids=torch.tensor([list(row["input_ids"])]))
    for hook in hooks:
        hook.remove()
    idle = LowRank("idle", torch.ones(2, 3), torch.nn.Parameter(torch.ones(4, 2)), 1.0)  # an expert nobody asks
    *found, nothing = input_moments(runtime, model, {**layers, "idle": torch.nn.Linear(3, 4)}, [*updates, idle], rows)
    assert torch.equal(nothing, torch.zeros(2, 2, dtype=torch.float64))
    assert len({len(row["input_ids"]) for row in rows}) > 1
    for update, moments in zip(updates, found, strict=True):
        x = torch.cat(seen[update.path]).double()
        wanted = update.a.detach().double() @ (x.mT @ x / len(x)) @ update.a.detach().double().mT
        assert torch.allclose(moments, wanted, rtol=1e-4, atol=1e-6 * float(wanted.abs().max()))


@pytest.fixture(scope="module")
def adapter(bert: HostSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(bert, tmp_path_factory.mktemp("refused"))


def damaged(adapter: Path, folder: Path, **config: Any) -> Path:
    """A copy of the adapter, as plain PEFT would leave it, with other entries in its configuration."""
    folder.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (folder / name).write_bytes((adapter / name).read_bytes())
    found = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(found | config))
    return folder


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type IA3 cannot be cut"),
        ({"use_dora": True}, "use_dora cannot be cut"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights pissa_niter_4 cannot be cut"),
    ],
)
def test_what_cannot_be_cut_is_refused(
    bert: HostSettings, adapter: Path, tmp_path: Path, config: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        check_cuttable(damaged(adapter, tmp_path / "x", **config), runtime_with(bert).model)


def test_an_adapter_of_another_model_is_refused(
    bert: HostSettings, llama: HostSettings, adapter: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"is an adapter of another model: here is no linear layer 'bert\.encoder"):
        check_cuttable(adapter, runtime_with(llama).model)
    folder = damaged(adapter, tmp_path / "x")
    weights = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in weights if name.endswith("query.lora_A.weight"))
    save_file(weights | {name: torch.ones(4, 48)}, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"another model: 'bert.*query' has 32 inputs here and 48 there"):
        check_cuttable(folder, runtime_with(bert).model)
    other = load_backbone(bert.backbone, "classification", ("one", "two"))
    with pytest.raises(ModelError, match=r"\(3,.*\) there and \(2,.*\) here"):
        check_cuttable(adapter, other)


def test_weights_that_are_no_weights_are_one_line(bert: HostSettings, adapter: Path, tmp_path: Path) -> None:
    folder = damaged(adapter, tmp_path / "nan")
    weights = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in weights if name.endswith("query.lora_B.weight"))
    weights[name][0, 0] = float("nan")
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="weights are not finite"):
        turned(folder, bert)
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors cannot be read"):
        turned(folder, bert)
    with pytest.raises(ModelError, match="no adapter of PEFT"):
        check_cuttable(tmp_path, runtime_with(bert).model)


def test_an_adapter_that_was_never_trained_has_nothing_to_cut(bert: HostSettings, tmp_path: Path) -> None:
    base = load_backbone(bert.backbone, "classification", LABELS)
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query"])
    adapted_model(base, config).save_pretrained(tmp_path / "new")
    with pytest.raises(ModelError, match="every update is zero"):
        turned(tmp_path / "new", bert)
