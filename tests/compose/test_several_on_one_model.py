"""Several adapters on one loaded model, and adapters that plain PEFT has saved: each says what it says alone."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoHaConfig, LoraConfig, PeftConfig, PeftModel, PromptTuningConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import automl
from automl.errors import CheckpointError, ConfigError, ModelError, SearchError
from automl.methods.attaching import adapted_model
from tests.architectures import save_tiny


def logits(model: Any, tokenizer: Any) -> torch.Tensor:
    inputs = tokenizer(["w3 w4 w5 w20", "w9 w10 w30", "w6"], return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        found: torch.Tensor = model(**inputs).logits
    return found


@pytest.mark.parametrize(
    ("study", "trials"),
    [("tiny", (0, 2, 3)), ("others", (0, 1)), ("others", (2, 3)), ("others", (4, 5, 2)), ("others", (6, 7))],
    ids=["lora", "ia3", "full", "bottlenecks and full", "dora and lora"],
)
def test_after_a_switch_it_says_what_the_adapter_says_alone(world: Path, study: str, trials: tuple[int, ...]) -> None:
    found = automl.open_study(study)
    alone = {f"trial-{number}": logits(*found.load_model(number)) for number in trials}
    names = list(alone)
    for ours, theirs in pairwise(names):
        assert not torch.allclose(alone[ours], alone[theirs], atol=1e-3)  # else a switch would not be seen
    model, tokenizer = found.load_model(adapters=trials)
    assert torch.allclose(logits(model, tokenizer), alone[names[0]], rtol=0, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for name in (*names[1:], *names):
        model.set_adapter(name, inference_mode=True)
        assert torch.allclose(logits(model, tokenizer), alone[name], rtol=0, atol=1e-6), name
        assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_folder_is_known_by_its_name(world: Path) -> None:
    study = automl.open_study("tiny")
    folder = study.export(world / "taken-out", 3, check=False)
    model, tokenizer = study.load_model(adapters=[0, folder])
    model.set_adapter("taken-out")
    assert torch.allclose(logits(model, tokenizer), logits(*study.load_model(3)), rtol=0, atol=1e-6)


def test_adapters_that_cannot_be_on_one_model_are_one_line(world: Path) -> None:
    tiny, others = automl.open_study("tiny"), automl.open_study("others")
    lora = shutil.copytree(Path(tiny.trials[0].adapter or ""), world / "lora")
    cases: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: others.load_model(adapters=[4, 7]), ModelError, "its method adapts in place, other than PEFT's"),
        (lambda: others.load_model(adapters=[0, 7]), ModelError, "Cannot combine adapters with different peft types"),
        (lambda: tiny.load_model(adapters=[0, 77]), SearchError, "trial 77 of study 'tiny' does not exist"),
        (lambda: tiny.load_model(adapters=[0, 0]), ConfigError, "adapters: 'trial-0' is there twice"),
        (lambda: tiny.load_model(adapters=[]), ConfigError, "adapters: none is given"),
        (lambda: tiny.load_model(1, adapters=[0]), ConfigError, "adapters: and trial say both which adapter"),
        (lambda: tiny.load_model(adapters=[lora]), ModelError, "PEFT has no adapters of the name 'lora'"),
        (lambda: tiny.load_model(adapters=["nowhere"]), CheckpointError, "nowhere"),
    ]
    for call, kind, said in cases:
        with pytest.raises(kind, match=said) as error:
            call()
        assert len(str(error.value).splitlines()) == 1
    model, _ = others.load_model(adapters=[4, 5])
    with pytest.raises(ModelError, match="no adapter 'trial-6' on this model; it has trial-4, trial-5"):
        model.set_adapter("trial-6")


def rough(model: Any) -> Any:
    """The adapted model with numbers in its adapter and head that are nothing like their start."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape))
            assert "default" not in name or torch.isfinite(parameter).all()
    return model


CLASSIFIERS: dict[str, Callable[[], PeftConfig]] = {
    "lora": lambda: LoraConfig(task_type="SEQ_CLS", r=3, target_modules=["query", "dense"], use_rslora=True),
    "dora": lambda: LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["value"], use_dora=True, bias="lora_only"),
    "loha": lambda: LoHaConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], modules_to_save=["classifier"]),
    "ia3": lambda: IA3Config(task_type="SEQ_CLS", target_modules=["key"], feedforward_modules=[]),
    "prompt": lambda: PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4),
    "adalora": lambda: AdaLoraConfig(
        task_type="SEQ_CLS", init_r=4, target_r=2, target_modules=["query"], total_step=9, tinit=1, tfinal=1
    ),
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder with a head for three classes."""
    folder = tmp_path_factory.mktemp("base") / "bert"
    save_tiny(folder, "bert", kind="classification")
    return folder


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_classifier_of_plain_peft_is_loaded(bert: Path, tmp_path: Path, kind: str) -> None:
    base = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=4, ignore_mismatched_sizes=True)
    tokenizer = AutoTokenizer.from_pretrained(bert)
    theirs = rough(adapted_model(base, CLASSIFIERS[kind]())).eval()
    theirs.save_pretrained(tmp_path / kind)
    assert not (tmp_path / kind / "manifest.json").exists()
    model, given = automl.load_adapter(tmp_path / kind)
    assert isinstance(model, PeftModel)
    assert given("w3 w4") == tokenizer("w3 w4")
    assert torch.allclose(logits(model, tokenizer), logits(theirs, tokenizer), rtol=0, atol=1e-6)
    assert model.config.id2label == {index: f"LABEL_{index}" for index in range(4)}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    base.config.id2label = {0: "a", 1: "b", 2: "c", 3: "d"}
    base.config.save_pretrained(tmp_path / kind)
    assert automl.load_adapter(tmp_path / kind)[0].config.id2label[3] == "d"


@pytest.fixture
def writer(tmp_path: Path) -> Path:
    """A folder of plain PEFT for a model that writes text, in `llama` beside it."""
    save_tiny(tmp_path / "llama", "llama", kind="causal-lm")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "llama")
    config = LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted_model(base, config).save_pretrained(tmp_path / "writer")
    return tmp_path / "writer"


def changed(folder: Path, **values: Any) -> None:
    """Change entries of the adapter's configuration."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | values), encoding="utf-8")


def test_a_writer_of_plain_peft_is_loaded_wherever_its_model_is(writer: Path) -> None:
    model, tokenizer = automl.load_adapter(writer)
    base = AutoModelForCausalLM.from_pretrained(writer.parent / "llama")
    plain = logits(base, tokenizer)
    with warnings.catch_warnings(action="ignore"):  # see automl.methods.attaching
        theirs = PeftModel.from_pretrained(base, writer).eval()
    assert torch.allclose(logits(model, tokenizer), logits(theirs, tokenizer), rtol=0, atol=1e-6)
    assert not torch.allclose(plain, logits(model, tokenizer), atol=1e-3)
    changed(writer, base_model_name_or_path="somebody/model")
    with pytest.raises(
        ModelError, match=r"its base model is 'somebody/model', which is no folder here; say where it is"
    ):
        automl.load_adapter(writer)
    moved, _ = automl.load_adapter(writer, model=writer.parent / "llama")
    assert torch.equal(logits(moved, tokenizer), logits(model, tokenizer))


def test_what_is_not_loaded_is_said_in_a_line(writer: Path, bert: Path) -> None:
    cases: list[tuple[Callable[[], object], str]] = [
        (
            lambda: changed(writer, task_type="QUESTION_ANS"),
            r"task_type QUESTION_ANS is not loaded; known: SEQ_CLS, TOKEN_CLS, CAUSAL_LM, SEQ_2_SEQ_LM$",
        ),
        (
            lambda: changed(writer, task_type="CAUSAL_LM", peft_type="XLORA"),
            "peft_type XLORA is not loaded; known: LORA",
        ),
        (lambda: changed(writer, peft_type="LORA", megatron_config={"a": 1}), "megatron_config names code to import"),
        (lambda: changed(writer, megatron_config=None, base_model_name_or_path=None), "its base model is not named"),
    ]
    for change, said in cases:
        change()
        with pytest.raises(ModelError, match=said) as error:
            automl.load_adapter(writer)
        assert len(str(error.value).splitlines()) == 1
    with pytest.raises(ModelError, match="is an encoder and sees the tokens it should predict"):
        automl.load_adapter(writer, model=bert)
    llama, weights = writer.parent / "llama", load_file(writer / "adapter_model.safetensors")
    first = min(weights)
    save_file({name: each for name, each in weights.items() if name != first}, writer / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"1 tensors are missing for this model, base_model.model"):
        automl.load_adapter(writer, model=llama)
    save_file(weights | {"base_model.model.more": weights[first].clone()}, writer / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"1 tensors have no place in this model, base_model.model.more"):
        automl.load_adapter(writer, model=llama)
    (writer / "adapter_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors cannot be read"):
        automl.load_adapter(writer, model=llama)
    (writer / "adapter_model.safetensors").rename(writer / "adapter_model.bin")
    with pytest.raises(
        ModelError, match=r"has adapter_model.bin but no adapter_model.safetensors; pickled weights are not"
    ):
        automl.load_adapter(writer, model=llama)
    shutil.rmtree(writer)
    with pytest.raises(CheckpointError, match="writer"):
        automl.load_adapter(writer, model=llama)
