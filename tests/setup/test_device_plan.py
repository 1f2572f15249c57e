"""The plan for devices: known figures of papers and courses, and what it says of what fits."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from automl.errors import ConfigError, ModelError
from automl.lora import Hyperparameters
from automl.models.described import Described, describe
from automl.models.strategies import STRATEGIES
from automl.setup.device_advice import advice, explained
from automl.setup.device_plan import Devices, Load, Sizer, Variant, way
from automl.setup.device_request import devices_of, plan_devices, request_of, variants_of
from automl.space.load import parse_space
from automl.space.sizes import GB
from automl.space.spec import Quantization

CONFIGS = Path(__file__).resolve().parents[2] / "docs" / "configs"
NF4 = Quantization(kind="nf4", double=True)


@cache
def model(name: str) -> Described:
    return describe(str(CONFIGS / f"{name}.json"), 2 if name.startswith("bert") else 0)


def sizer(name: str, variant: Variant, rows: int = 1, length: int = 512) -> Sizer:
    return Sizer(model(name).model, variant, Load(rows=rows, length=length))


def variant(
    method: str = "lora", precision: str = "bf16", held: Quantization | None = None, **hyper: object
) -> Variant:
    return Variant(hyper=replace(Hyperparameters(method=method), **hyper), precision=precision, quantization=held)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama-2-7b", 6_738_415_616),
        ("llama-2-13b", 13_015_864_320),
        ("llama-2-70b", 68_976_648_192),
        ("llama-3-8b", 8_030_261_248),
        ("llama-3-70b", 70_553_706_496),
        ("mistral-7b", 7_241_732_096),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen3-8b", 8_190_735_360),
        ("gpt2", 124_439_808),
        ("bert-base", 109_483_778),
    ],
)
def test_configurations_have_the_parameters_that_their_publishers_give(name: str, parameters: int) -> None:
    assert model(name).parameters == parameters


def test_weights_are_those_of_the_course() -> None:
    """Of 6 billion: 24, 12 and 6 GB in fp32, bf16 and int8; here of 6.74 billion."""
    billions = model("llama-2-7b").parameters / 1e9
    assert sizer("llama-2-7b", variant("full", "fp32")).whole.trained / GB == pytest.approx(4 * billions)
    lora = sizer("llama-2-7b", variant()).whole
    assert lora.frozen / GB == pytest.approx(2 * billions)
    eight = sizer("llama-2-7b", variant(held=Quantization(kind="int8"))).whole
    # Embeddings and lm_head stay in 16 bits, and one layer is dense in float32 while it computes.
    kept = 2 * 32000 * 4096
    assert eight.frozen == pytest.approx(1e9 * billions + kept + 4 * 4096 * 11008, rel=0.001)


def test_full_training_is_four_times_the_weights_and_lora_a_little_more_than_them() -> None:
    full = sizer("llama-2-7b", variant("full", "fp32"))
    assert full.whole.total == 16 * model("llama-2-7b").parameters  # Alpaca's 7 x 4 x 4 = 112 GB, of 7.0 billion
    one = way(model("llama-2-7b").model, variant(), Load(rows=1, length=512), Devices(count=1, memory=80 * GB), 8)
    weights = 2 * model("llama-2-7b").parameters
    assert 1.0 < one.cells[0].total / weights < 1.4  # "about 14 GB" where the weights of 6 billion are 12


def test_an_adapter_of_gpt3_is_ten_thousand_times_smaller() -> None:
    """Hu et al. 2021, section 1 and 4.2: rank 4 on q and v, 350 GB to 35 MB."""
    found = sizer("gpt-3-175b", variant(rank=4, target="qv"))
    assert 2 * found.trained / 2**20 == pytest.approx(35, rel=0.05)
    assert 2 * model("gpt-3-175b").parameters / GB == pytest.approx(350, rel=0.01)
    assert model("gpt-3-175b").parameters / found.trained == pytest.approx(10_000, rel=0.1)


def test_sharded_states_are_those_of_the_zero_paper() -> None:
    devices = Devices(count=8, memory=80 * GB)
    found = way(model("llama-2-7b").model, variant("full"), Load(rows=1, length=128), devices, 8)
    states = {cell.strategy: cell.states.total / model("llama-2-7b").parameters for cell in found.cells}
    assert {name: round(7 * width, 2) for name, width in states.items()} == {
        "one-device": 112.0,
        "data-parallel": 112.0,
        "zero-1": 38.5,
        "zero-2": 26.25,
        "zero-3": 14.0,
        "offload": 14.0,
        "zero-3-offload": 0.0,
    }


def test_seventy_billion_in_four_bits_fit_one_card_of_80_gigabytes() -> None:
    devices, load = Devices(count=4, memory=80 * GB), Load(rows=8, length=2048)
    found = plan_devices(model("llama-2-70b"), [variant(held=NF4, rank=16)], load, devices)
    assert found.ways[0].best is not None
    assert found.ways[0].best.strategy == "one-device"
    assert found.ways[0].best.recompute
    said = "\n".join(advice(found.ways, found.sizer, devices))
    assert "one device is enough" in said
    assert "4 devices train 4 trials" in said
    assert "quantization: nf4" in said


@pytest.mark.parametrize(
    ("way_of_training", "said"),
    [
        (variant(held=NF4, rank=16), "in a space file: run: {shards: 4, precision: bf16}, model: {quantization: nf4}"),
        (variant("adalora", held=NF4, rank=16), "zero-3 of adalora, bf16, nf4 with double quantisation weights is for"),
    ],
)
def test_what_is_shared_out_is_told_how(way_of_training: Variant, said: str) -> None:
    devices = Devices(count=4, memory=24 * GB)
    found = plan_devices(model("llama-2-70b"), [way_of_training], Load(rows=1, length=512), devices)
    assert found.ways[0].best is not None
    assert found.ways[0].best.strategy == "zero-3"
    assert said in "\n".join(advice(found.ways, found.sizer, devices))


def test_what_does_not_fit_is_answered_by_what_does() -> None:
    devices = Devices(count=1, memory=24 * GB)
    asked = variants_of("lora", None, None, Hyperparameters(rank=64))
    found = plan_devices(model("llama-2-13b"), asked, Load(rows=4, length=2048), devices)
    first = found.ways[0]
    assert first.variant.quantization is None
    assert first.cells[0].most_rows == 0  # 26 GB of weights on a card of 24
    by_kind = {str(each.variant.quantization or ""): each for each in found.ways}
    four = by_kind["nf4 with double quantisation"]
    assert four.best is not None
    assert four.best.strategy == "one-device"
    assert four.best.total < devices.room


def test_eager_attention_keeps_scores_which_grow_with_the_square() -> None:
    """Korthikanti et al. 2022, section 4: heads x length^2 scores in each block; here those of the softmax."""

    def extra(length: int) -> int:
        eager, fused = (
            Sizer(model("gpt2").model, variant(), Load(rows=1, length=length, attention=name)).counted.body
            for name in ("eager", "sdpa")
        )
        return eager - fused

    blocks, heads, width = 12, 12, 2
    growth = blocks * heads * width * (1024**2 - 8 * 128**2)
    assert extra(1024) - 8 * extra(128) == pytest.approx(growth, rel=0.01)


def test_checkpointing_keeps_the_inputs_of_blocks() -> None:
    found = sizer("llama-2-7b", variant(), length=1024).counted
    tokens = found.tokens
    assert found.is_counted
    assert found.depth == 32
    assert {block.given for block in found.blocks} == {2 * 4096 * tokens}
    assert found.recomputed < found.body / 10


def test_every_part_is_explained_and_they_add_up() -> None:
    devices = Devices(count=2, memory=40 * GB)
    one = sizer("qwen3-0.6b", variant(), rows=2)
    found = way(model("qwen3-0.6b").model, variant(), one.load, devices, 8)
    for cell in found.cells:
        lines = list(explained(one, cell, devices))
        parts = {line.what: line.size for line in lines}
        assert sum(size for name, size in parts.items() if name != "total") == parts["total"] == cell.total
        assert all(line.formula for line in lines)
    assert [cell.strategy for cell in found.cells] == list(STRATEGIES)
    assert next(cell.strategy for cell in found.cells if cell.most_rows) == "one-device"


def test_the_largest_micro_batch_is_the_last_that_fits() -> None:
    devices = Devices(count=1, memory=8 * GB)
    load = Load(rows=1, length=256, recompute=False)
    cell = way(model("qwen3-0.6b").model, variant(), load, devices, 8).cells[0]

    def total(rows: int) -> int:
        again = way(model("qwen3-0.6b").model, variant(), replace(load, rows=rows), devices, 8)
        return again.cells[0].total

    assert cell.most_rows > 1
    assert total(cell.most_rows) <= devices.room
    one, two = total(1), total(2)
    assert one + cell.most_rows * (two - one) > devices.room


@pytest.mark.parametrize("text", ["", "80 apples", "-5GB", "0GB", "80GBGB", "nan", "1e3GB", "8" * 400])
def test_sizes_that_are_none_are_refused_in_a_line(text: str) -> None:
    with pytest.raises(ConfigError, match="--gpu-memory"):
        devices_of(1, text)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "should hold a JSON object"),
        ("{", "not readable as JSON"),
        ("{}", "model_type is missing"),
        ('{"model_type": "llama", "auto_map": {"AutoModel": "evil.py"}}', "never run"),
        ('{"model_type": "nothing-known"}', "cannot read config.json"),
        ('{"model_type": "llama", "num_hidden_layers": 1000000000}', "above 1,024"),
        ('{"model_type": "llama", "num_labels": 1000000000000}', "above 1,000,000"),
        ('{"model_type": "bert"}', "give --labels"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "config"),
    ],
)
def test_configurations_that_describe_no_model_are_refused_in_a_line(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=said) as caught:
        describe(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_hub_that_cannot_be_reached_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, said in (
        ("nobody/nothing-here", "nothing-here"),
        ("a/b/c", "neither a folder"),
        ("./missing", "no such"),
        ("~nobody-of-this-name/model", "no such folder"),
        ("x" * 5000, "'x{60}': no such folder"),
    ):
        with pytest.raises(ModelError, match=said) as caught:
            describe(name)
        assert "\n" not in str(caught.value)


def test_a_decoder_without_a_padding_token_is_counted_as_a_classifier(tmp_path: Path) -> None:
    found = describe(small_config(tmp_path), 2)
    assert Sizer(found.model, variant(), Load(rows=8, length=64)).counted.is_counted
    assert getattr(found.model.config, "pad_token_id", None) is None, "the model itself stays as it is described"


def test_what_transformers_says_of_a_wrong_value_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"Validation error for field 'hidden_size': .*int"):
        describe(small_config(tmp_path, hidden_size="64"))


def test_an_encoder_with_a_decoder_is_planned_as_a_model_that_writes(tmp_path: Path) -> None:
    small = {"model_type": "t5", "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
    small |= {"vocab_size": 1000, "is_encoder_decoder": True}
    (tmp_path / "config.json").write_text(json.dumps(small), encoding="utf-8")
    found = describe(str(tmp_path))
    assert type(found.model).__name__ == "T5ForConditionalGeneration"
    rows = '{"source": "a", "target": "b"}'
    (tmp_path / "data.jsonl").write_text(rows, encoding="utf-8")
    text = f"version: 1\nstudy: s\nmodel: {{folder: {tmp_path}}}\ntask: {{type: seq2seq, data: data.jsonl}}\n"
    asked, variants, load = request_of(parse_space(f"{text}space: {{rank: auto}}\n", "s.yaml", tmp_path))
    assert type(asked.model) is type(found.model)
    made = plan_devices(asked, variants, load, devices_of(1, "24GB"))
    best = made.ways[0].best
    assert best is not None
    assert best.logits >= 12 * best.rows * load.length * 1000, "the vocabulary counts"


def test_what_full_training_leaves_is_called_a_model(tmp_path: Path) -> None:
    for method, said in (("full", "the trained model is "), ("lora", "a trained adapter is ")):
        variants = variants_of(method, "bf16", None, Hyperparameters())
        made = plan_devices(describe(small_config(tmp_path)), variants, Load(rows=1, length=16), devices_of(1, "24GB"))
        assert [line for line in advice(made.ways, made.sizer, made.devices) if line.startswith(said)]


def small_config(folder: Path, **entries: object) -> str:
    small = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    small |= {"num_hidden_layers": 2, "vocab_size": 100, **entries}
    (folder / "config.json").write_text(json.dumps(small), encoding="utf-8")
    return str(folder)


def test_sizes_that_a_configuration_does_not_give_are_named(tmp_path: Path) -> None:
    for file in (CONFIGS / f"{name}.json" for name in ("gpt2", "bert-base", "qwen3-0.6b")):
        assert not describe(str(file), 2 if file.name.startswith("bert") else 0).notes, file
    given = json.loads((CONFIGS / "llama-2-7b.json").read_text())
    file = tmp_path / "config.json"
    file.write_text(json.dumps({name: value for name, value in given.items() if name not in _LEFT_OUT}))
    assert describe(str(file)).notes == (
        f"{file} gives no hidden_size: 4,096 is taken, which is usual for llama",
        f"{file} gives no vocab_size: 32,000 is taken, which is usual for llama",
    )


_LEFT_OUT = ("hidden_size", "vocab_size")


def test_experts_that_no_quantisation_reaches_are_named(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    small = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    file.write_text(json.dumps({"model_type": "mixtral", "vocab_size": 1000, "num_key_value_heads": 2, **small}))
    described = describe(str(file))
    devices = devices_of(1, "24GB")
    held, dense = (variant(held=each) for each in (Quantization(kind="nf4"), None))
    made = plan_devices(described, [held], Load(rows=1, length=64), devices)
    (told,) = [text for text in advice(made.ways, made.sizer, devices) if "experts" in text]
    experts = 2 * 8 * 3 * 256 * 512
    assert told == (
        f"{experts:,} of {described.parameters:,} parameters are in no linear layer (experts of a mixture, as one"
        " tensor): nf4 does not hold them in few bits, they stay in bf16"
    )
    plain = plan_devices(described, [dense], Load(rows=1, length=64), devices)
    assert not [text for text in advice(plain.ways, plain.sizer, devices) if "experts" in text]
